"""Fields that several of OpenAI's requests share, from their form into ours: options, constraints, tools, reasoning.

A field that has no effect here is refused with a sentence, unless it has none by its definition (labels such as `user`); one that
this file does not know is named in the header of ignored fields.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from ndani.api.edge.content import parse_tool
from ndani.api.edge.keep_alive import keep_alive_seconds
from ndani.api.openai.bodies import (
    AnswerBody,
    ChatBody,
    ChatMessage,
    EmbeddingsBody,
    GrammarFormat,
    ImagePart,
    ImageUrl,
    JsonObjectFormat,
    JsonSchemaFormat,
    LarkFormat,
    RegexFormat,
    ResponseFormatField,
)
from ndani.engines.sampling import OPTIONS, parse_options
from ndani.errors import BadRequest
from ndani.types import Constraint, Sampling, Tool, ToolChoice

#: What a field may be beside null, and the sentence for anything else.
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "functions": ((), "functions is the older form of tools; send tools"),
    "function_call": ((), "function_call is the older form of tool_choice; send tool_choice"),
    "modalities": ((["text"],), "modalities must be text only; no model here makes audio"),
    "audio": ((), "audio is not supported; no model here makes audio"),
    "prediction": ((), "prediction is not supported; leave it out"),
    "web_search_options": ((), "web_search_options is not supported; this server connects to nothing"),
    "store": ((False,), "store is not supported for a chat; /v1/responses keeps what it answers for a while"),
    "service_tier": (("auto", "default"), "service_tier must be auto or default; there is one tier here"),
    "verbosity": (("medium",), "verbosity is not supported; say in the prompt how long the answer should be"),
    "prompt_cache_retention": (("in-memory", "in_memory"), "prompt_cache_retention must be in-memory; prompts are never kept on disk"),
    "ep": (("cpu", "CPU"), "ep must be cpu or left out; this engine chooses the accelerator itself"),
    "format": ((), "format is of another API; send response_format"),
}

#: What `think` is for each effort.
_EFFORTS: dict[str, bool | str] = {
    "none": False, "minimal": "low", "low": "low", "medium": "medium", "high": "high", "max": "max", "xhigh": "max", "ultra": "max",
}  # fmt: skip

#: Keys of the object that OpenAI puts a schema into.
_SCHEMA_ENVELOPE = frozenset({"name", "schema", "strict", "description"})

#: The bias by which OpenAI's API forbids a token.
_FORBIDDEN = -100.0


def refuse_unsupported(body: dict[str, Any], names: Iterable[str] = _REFUSED) -> None:
    """Refuse the first field that this server cannot obey. Raises BadRequest."""
    for name in names:
        accepted, sentence = _REFUSED[name]
        if body.get(name) is not None and body[name] not in accepted:
            raise BadRequest(sentence)


def ignored_fields(body: dict[str, Any], body_type: type[msgspec.Struct]) -> list[str]:
    """The names of fields that the body has and its type does not: they have no effect, and a header says so."""
    return [name for name in body if name not in body_type.__struct_fields__ and name not in _REFUSED]


def ignored_in_messages(messages: Sequence[ChatMessage]) -> list[str]:
    """The names of fields inside of messages that have no effect."""
    ignored = ["name"] if any(message.name and message.role != "tool" for message in messages) else []
    parts = (part for message in messages if isinstance(message.content, list) for part in message.content)
    images = (part.image_url for part in parts if isinstance(part, ImagePart))
    if any(isinstance(image, ImageUrl) and image.detail not in (None, "auto") for image in images):
        ignored.append("detail")
    return ignored


def model_name(body: AnswerBody | EmbeddingsBody) -> str:
    """The model's name without blanks around it; it may be empty."""
    return (body.model or "").strip()


def sampling(body: AnswerBody, body_fields: dict[str, Any], max_tokens: int | None) -> Sampling:
    """The options of an answer: those of OpenAI's API, then those in `options`, then OpenAI's defaults.

    These two defaults count before those of a model, as in Ollama's OpenAI layer. Raises BadRequest.
    """
    if body.seed is not None and body.random_seed is not None and body.seed != body.random_seed:
        raise BadRequest("seed and random_seed are two names for one thing; send one of them")
    named = {
        "num_predict": max_tokens,
        "stop": [body.stop] if isinstance(body.stop, str) else body.stop,
        "seed": body.random_seed if body.seed is None else body.seed,
        **{name: getattr(body, name) for name in ("temperature", "top_p", "top_k", "min_p", "num_ctx")},
        **{name: getattr(body, name) for name in ("repeat_penalty", "frequency_penalty", "presence_penalty")},
    }
    if body_fields.get("ep") is not None:  # it is cpu: others are refused
        named["num_gpu"] = 0
    return _merged_options({"temperature": 1.0, "top_p": 1.0}, body.options, named)


def runner_options(body: EmbeddingsBody) -> Sampling:
    """The options of a request that samples nothing."""
    return _merged_options({}, body.options, {"num_ctx": body.num_ctx})


def _merged_options(defaults: dict[str, Any], options: dict[str, Any] | None, named: dict[str, Any]) -> Sampling:
    unknown = [name for name in options or {} if name not in OPTIONS]
    if unknown:
        raise BadRequest("options has a name that is not one of an option; use those of a Modelfile's PARAMETER")
    layers = (defaults, options or {}, named)
    return parse_options({name: value for layer in layers for name, value in layer.items() if value is not None})[0]


def max_tokens(first: int | None, second: int | None = None) -> int | None:
    """The limit of an answer's tokens, which has two names. Raises BadRequest where they differ."""
    if first is not None and second is not None and first != second:
        raise BadRequest("max_tokens and max_completion_tokens are two names for one thing; send one of them")
    return second if first is None else first


def keep_alive(body: AnswerBody | EmbeddingsBody) -> float | None:
    """Seconds that the model stays loaded; `ttl` is Foundry Local's name for it. Raises BadRequest."""
    try:
        return keep_alive_seconds(body.ttl if body.keep_alive is None else body.keep_alive)
    except BadRequest:
        raise BadRequest("keep_alive must be a number of seconds, or a duration such as 5m") from None


def logit_bias(biases: dict[str, float] | None) -> tuple[tuple[int, float], ...]:
    """What is added to the logits of token ids; -100 forbids a token. Raises BadRequest."""
    parsed = []
    for token, bias in (biases or {}).items():
        if not (token.isascii() and token.isdigit() and int(token) < 2**31):
            raise BadRequest("logit_bias must have token ids as its names; /api/tokenize says which ids a text has")
        if not -100 <= bias <= 100:
            raise BadRequest("logit_bias must have values between -100 and 100")
        parsed.append((int(token), -math.inf if bias == _FORBIDDEN else bias))
    return tuple(parsed)


def thinking(body: ChatBody) -> bool | str | None:
    """Whether and how much to think, of `reasoning_effort`, `reasoning.effort` or Ollama's `think`. Raises BadRequest."""
    effort = body.reasoning_effort or (body.reasoning.effort if body.reasoning else None)
    if not effort and (body.think is None or isinstance(body.think, bool)):
        return body.think
    effort = effort or str(body.think)
    if effort not in _EFFORTS:
        raise BadRequest(f"reasoning_effort must be one of {', '.join(_EFFORTS)}")
    return _EFFORTS[effort]


def alternatives(body: ChatBody) -> int | None:
    """How many alternatives are wanted with each token's log-probability; None: no log-probabilities. Raises BadRequest."""
    if body.top_logprobs and body.logprobs is False:
        raise BadRequest("top_logprobs needs logprobs to be true")
    return body.top_logprobs or 0 if body.logprobs or body.top_logprobs else None


def constraint(response_format: ResponseFormatField | None, body: AnswerBody) -> Constraint | None:
    """What the text must match, of `response_format`, `regex` or `grammar`. Raises BadRequest where several are sent."""
    found = [_format_constraint(response_format)] if response_format else []
    found += [Constraint("regex", body.regex)] if body.regex else []
    found += [Constraint("gbnf", body.grammar)] if body.grammar else []
    wanted = [one for one in found if one]
    if len(wanted) > 1:
        raise BadRequest("response_format, regex and grammar exclude each other; send one of them")
    return wanted[0] if wanted else None


def _format_constraint(response_format: ResponseFormatField) -> Constraint | None:
    if isinstance(response_format, JsonObjectFormat):
        return Constraint("json")
    if isinstance(response_format, JsonSchemaFormat):
        return schema_constraint(response_format.json_schema)
    if isinstance(response_format, LarkFormat):
        return Constraint("lark", response_format.lark_grammar)
    if isinstance(response_format, RegexFormat):
        return Constraint("regex", response_format.regex)
    if isinstance(response_format, GrammarFormat):
        return Constraint("gbnf", response_format.grammar)
    return None


def schema_constraint(json_schema: dict[str, Any]) -> Constraint:
    """The schema of a `json_schema`: in OpenAI's envelope (without one, any object is meant), or bare as in Foundry Local."""
    if not json_schema or not json_schema.keys() <= _SCHEMA_ENVELOPE or not json_schema.keys() & {"name", "schema"}:
        return Constraint("schema", json_schema)
    schema = json_schema.get("schema")
    if schema is None:
        return Constraint("json")
    if not isinstance(schema, (dict, bool)):
        raise BadRequest("response_format.json_schema.schema must be a JSON Schema object")
    return Constraint("schema", schema)


def tools_and_choice(body: ChatBody) -> tuple[tuple[Tool, ...], ToolChoice]:
    """The tools that the model may call, and whether it must. Raises BadRequest."""
    tools = tuple(parse_tool(value, f"tools[{index}]") for index, value in enumerate(body.tools or ()))
    value = body.tool_choice
    if isinstance(value, dict) and value.get("type") == "allowed_tools":
        allowed = value.get("allowed_tools", value)
        if not isinstance(allowed, dict) or not isinstance(allowed.get("tools"), list):
            raise BadRequest("tool_choice.allowed_tools must be an object with mode and tools")
        names = {_chosen_name(tool, f"tool_choice.allowed_tools.tools[{index}]") for index, tool in enumerate(allowed["tools"])}
        for name in names:
            _require_tool(name, tools)
        tools, value = tuple(tool for tool in tools if tool.name in names), allowed.get("mode", "auto")
    return tools, _tool_choice(value, tools)


def _tool_choice(value: Any, tools: tuple[Tool, ...]) -> ToolChoice:
    if value is None or value == "auto":
        return ToolChoice()
    if value == "none":
        return ToolChoice("none")
    if value == "required":
        if not tools:
            raise BadRequest("tool_choice required needs tools")
        return ToolChoice("required")
    if not isinstance(value, dict):
        raise BadRequest("tool_choice must be auto, none, required, or an object that names a function")
    name = _chosen_name(value, "tool_choice")
    _require_tool(name, tools)
    return ToolChoice("required", name)


def _chosen_name(value: Any, where: str) -> str:
    """The name in `{"type": "function", "function": {"name"}}`, or in the shorter `{"type": "function", "name"}`."""
    if not isinstance(value, dict) or value.get("type", "function") != "function":
        raise BadRequest(f"{where} must be an object of the type function")
    function = value.get("function", value)
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise BadRequest(f"{where} must have the name of a function")
    return name


def _require_tool(name: str, tools: tuple[Tool, ...]) -> None:
    if all(tool.name != name for tool in tools):
        raise BadRequest("tool_choice names a function that is not among tools")
