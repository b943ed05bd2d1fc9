"""Fields that several of Ollama's requests share: options, messages, tools, format, …."""

from __future__ import annotations

from typing import Any

from ndani.api.edge import content
from ndani.api.edge.fields import array, flag, text
from ndani.api.edge.keep_alive import keep_alive_seconds
from ndani.engines.sampling import parse_options
from ndani.errors import BadRequest
from ndani.types import Constraint, Message, Sampling, Tool, ToolCall


def token_ids(body: dict[str, Any], name: str) -> tuple[int, ...] | None:
    """A list of token ids, or None where the field is missing."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**31 for n in value):
        raise BadRequest(f"{name} must be an array of token ids")
    return tuple(value)


def keep_alive(body: dict[str, Any]) -> float | None:
    """Seconds, from a number or a Go duration; negative is for ever, None where the field is missing."""
    value = body.get("keep_alive")
    if isinstance(value, bool) or not isinstance(value, int | float | str | None):
        raise BadRequest("keep_alive must be a number of seconds or a duration such as 5m")
    return keep_alive_seconds(value)


def sampling(body: dict[str, Any]) -> tuple[Sampling, list[str]]:
    """The options of a request, and the names of ignored ones.

    A wrong type is status 400 here (500 in Ollama). A fraction where an integer is needed is cut off, as in Ollama; null is
    as if the option were missing.
    """
    options = body.get("options")
    if options is None:
        return Sampling(), []
    if not isinstance(options, dict):
        raise BadRequest("options must be an object")
    return parse_options(options)


def options(body: dict[str, Any]) -> tuple[Sampling, list[str], str]:
    """As `sampling`, and the sentence of an error in a value, which is raised later: only after the model was found, as in Ollama."""
    try:
        return (*sampling(body), "")
    except BadRequest as error:
        if not isinstance(body.get("options"), dict):
            raise
        return Sampling(), [], str(error)


def messages(body: dict[str, Any], roles: tuple[str, ...] = ()) -> tuple[Message, ...]:
    """The messages of a conversation.

    With `roles`, a role must be one of them; otherwise it is whatever the model's template knows (`control`, `document 2`).
    A missing role is empty.
    """
    parsed = []
    for index, message in enumerate(array(body, "messages")):
        if not isinstance(message, dict):
            raise BadRequest(f"messages[{index}] must be an object with role and content")
        message = {key.lower(): value for key, value in message.items()}
        try:
            role = text(message, "role").lower()
            texts = {name: text(message, name) for name in ("content", "thinking", "tool_name", "tool_call_id")}
            parsed.append(Message(role, **texts, images=images(message), tool_calls=_tool_calls(message)))
        except BadRequest as error:
            raise BadRequest(f"messages[{index}].{error}") from None
        if roles and role not in roles:
            raise BadRequest(f"messages[{index}].role must be one of {', '.join(roles)}")
    return tuple(parsed)


def images(body: dict[str, Any]) -> tuple[bytes, ...]:
    """The field `images`: base64 texts."""
    return tuple(content.decode_base64(value, f"images[{index}]") for index, value in enumerate(array(body, "images")))


def tools(body: dict[str, Any]) -> tuple[Tool, ...]:
    """The field `tools`: functions with a name and the JSON Schema of their parameters."""
    return tuple(content.parse_tool(value, f"tools[{index}]") for index, value in enumerate(array(body, "tools")))


def _tool_calls(message: dict[str, Any]) -> tuple[ToolCall, ...]:
    """The field `tool_calls`: what the assistant called earlier in the conversation."""
    calls = []
    for position, value in enumerate(array(message, "tool_calls")):
        where = f"tool_calls[{position}]"
        if not isinstance(value, dict) or not isinstance(value.get("function"), dict):
            raise BadRequest(f"{where} must be an object with a function")
        function = value["function"]
        if not isinstance(function.get("name"), str) or not isinstance(function.get("arguments") or {}, dict):
            raise BadRequest(f"{where}.function must have a name, and arguments as an object")
        index = function.get("index")
        calls.append(
            ToolCall(
                function["name"],
                function.get("arguments") or {},
                text(value, "id"),
                index if isinstance(index, int) and not isinstance(index, bool) and 0 <= index < 1 << 31 else position,
            )
        )
    return tuple(calls)


def think(body: dict[str, Any]) -> bool | str | None:
    """The field `think`: a boolean or a level; None where it is missing or an empty text."""
    value = body.get("think")
    if value is not None and not isinstance(value, (bool, str)):
        raise BadRequest('think must be a boolean or string ("high", "medium", "low", "max", true, or false)')
    if isinstance(value, str) and value not in ("high", "medium", "low", "max", "true", "false", ""):
        raise BadRequest('invalid think value (must be "high", "medium", "low", "max", true, or false)')
    return {"true": True, "false": False, "": None}.get(value, value) if isinstance(value, str) else value


def constraint(body: dict[str, Any]) -> Constraint | None:
    """The field `format`: "json", or a JSON Schema; or, as an addition of ours, the fields `grammar` (GBNF) and `regex`."""
    value = body.get("format")
    given = {kind: body.get(kind) for kind in ("grammar", "regex") if body.get(kind) not in (None, "")}
    if len(given) + (value not in (None, "")) > 1:
        raise BadRequest("format, grammar and regex exclude each other; send one of them")
    for name, pattern in given.items():
        if not isinstance(pattern, str):
            raise BadRequest(f"{name} must be a string")
        return Constraint("gbnf" if name == "grammar" else "regex", pattern)
    if value is None or value == "":
        return None
    if value == "json":
        return Constraint("json")
    if isinstance(value, dict):
        return Constraint("schema", value)
    raise BadRequest('invalid format; expected "json" or a valid JSON Schema object')


def logprobs(body: dict[str, Any]) -> int | None:
    """How many alternatives are wanted with each token's log-probability; None: no log-probabilities."""
    top = body.get("top_logprobs")
    if top is not None and (isinstance(top, bool) or not isinstance(top, int) or not 0 <= top <= 20):
        raise BadRequest("top_logprobs must be between 0 and 20")
    return top or 0 if flag(body, "logprobs", False) or top else None
