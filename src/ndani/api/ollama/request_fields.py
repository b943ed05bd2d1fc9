"""The fields that several of Ollama's requests share: options, messages, keep_alive, token ids; and the header of ignored options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ndani.api.edge.fields import array, text
from ndani.durations import parse_duration
from ndani.engines.sampling import parse_options
from ndani.errors import BadRequest
from ndani.types import Message, Sampling


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
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise BadRequest("keep_alive must be a number of seconds or a duration such as 5m")
    if isinstance(value, str):
        return parse_duration(value.strip())
    if isinstance(value, float):
        return value
    return max(-1.0, min(value, 1e12))  # a JSON integer may be too large for a float


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


def messages(body: dict[str, Any], roles: tuple[str, ...] = ()) -> tuple[tuple[Message, ...], frozenset[str]]:
    """The messages of a conversation, and the features they need beyond text: images, tool_calls.

    With `roles`, a role must be one of them; otherwise it is whatever the model's template knows (`control`, `document 2`).
    A missing role is empty.
    """
    parsed, features = [], set()
    for index, message in enumerate(array(body, "messages")):
        if not isinstance(message, dict):
            raise BadRequest(f"messages[{index}] must be an object with role and content")
        message = {key.lower(): value for key, value in message.items()}
        try:
            role = text(message, "role").lower()
            features |= {name for name in ("images", "tool_calls") if array(message, name)}
            texts = {name: text(message, name) for name in ("content", "thinking", "tool_name", "tool_call_id")}
        except BadRequest as error:
            raise BadRequest(f"messages[{index}].{error}") from None
        if roles and role not in roles:
            raise BadRequest(f"messages[{index}].role must be one of {', '.join(roles)}")
        parsed.append(Message(role, **texts))
    return tuple(parsed), frozenset(features)


def ignored_headers(ignored: Sequence[str]) -> dict[str, str]:
    """The header that names ignored options. Only short plain names, and not too many: clients accept headers of a few KiB."""
    names = [name for name in ignored if len(name) <= 64 and name.isascii() and name.isidentifier()][:32]
    return {"X-Ndani-Ignored": ", ".join(names)} if names else {}
