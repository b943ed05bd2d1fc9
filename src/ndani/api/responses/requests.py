"""Parses bodies of POST /v1/responses. Pure functions: what a request refers to is resolved by the route.

Every parameter of OpenAI's is obeyed, or refused with a sentence; one that this file does not know is named in the header of
ignored fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from ndani.api.edge.body_type import convert
from ndani.api.edge.content import tool_name, tool_parameters, unenforced_strict
from ndani.api.edge.keep_alive import keep_alive_seconds
from ndani.api.responses.metadata import require_metadata
from ndani.api.responses.objects import ConversationReference, CreateResponse, FunctionTool, ReasoningOptions, TextFormat
from ndani.engines.sampling import parse_options
from ndani.errors import BadRequest, Unsupported
from ndani.types import Constraint, Sampling, Tool, ToolChoice

#: What `include` may ask for. The text of reasoning and the URLs of images are in the items anyway.
_LOGPROBS, _ENCRYPTED = "message.output_text.logprobs", "reasoning.encrypted_content"
_INCLUDABLE = (_LOGPROBS, _ENCRYPTED, "message.input_image.image_url")

#: How far a model is to think, for each effort.
_THINK: dict[str, bool | str] = {"none": False, "minimal": "low", "xhigh": "max", "ultra": "max"}

#: What other APIs call a parameter, with its name here.
_ELSEWHERE = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "functions": "tools",
}

#: The largest number of tokens that an engine reads.
_MAX_TOKENS = 2**31 - 1

#: The names of sampling options, where they differ from those in the body.
_OPTIONS = {"max_output_tokens": "num_predict"}


@dataclass(frozen=True, slots=True)
class ResponseRequest:
    """A parsed body. `given` is the body as it was sent, for the fields that a response repeats.

    `tools` are those that the model is shown, `declared` all of the request. `conversation` is an id, or empty.
    """

    given: CreateResponse
    sampling: Sampling
    tools: tuple[Tool, ...]
    declared: list[FunctionTool]
    tool_choice: ToolChoice
    constraint: Constraint | None
    text: TextFormat
    think: bool | str | None
    logprobs: int | None
    keep_alive: float | None
    conversation: str
    shows_encrypted: bool
    ignored: list[str]


def parse_response(body: dict[str, Any]) -> ResponseRequest:
    """Parse a body. Raises BadRequest, and Unsupported for what no model could do here."""
    for name, ours in _ELSEWHERE.items():
        if body.get(name) is not None:
            raise BadRequest(f"{name} is of another API; send {ours}")
    given = convert(body, CreateResponse)
    if not given.model.strip():
        raise BadRequest("model is required")
    _refuse(given)
    require_metadata(given.metadata)
    declared = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(given.tools or ())]
    choice, tools = _tool_choice(given, declared)
    text = given.text.format if given.text and given.text.format else TextFormat(type="text")
    return ResponseRequest(
        given=given,
        sampling=_sampling(given),
        tools=tuple(_shown(tool) for tool in tools),
        declared=declared,
        tool_choice=choice,
        constraint=_constraint(text),
        text=text,
        think=_think(given.reasoning),
        logprobs=_logprobs(given),
        keep_alive=keep_alive_seconds(given.keep_alive),
        conversation=given.conversation.id if isinstance(given.conversation, ConversationReference) else given.conversation or "",
        shows_encrypted=_ENCRYPTED in (given.include or ()),
        ignored=[name for name in body if name not in CreateResponse.__struct_fields__]
        + unenforced_strict((tool.strict for tool in declared), choice),
    )


def _refuse(given: CreateResponse) -> None:
    """Refuse what is not served here."""
    refusals = {
        "background is not served here: leave it out, and the answer comes in this response": given.background,
        "prompt is not served here, since no prompts are kept: send its text as instructions and input": given.prompt is not None,
        "context_management is not served here: set truncation to auto to have the oldest turns left out": given.context_management,
        "moderation is not served here; leave it out": given.moderation,
        "service_tier must be auto or default; there is one tier here": given.service_tier not in (None, "auto", "default"),
        "prompt_cache_retention must be in_memory; the prefix cache is nowhere else": given.prompt_cache_retention
        not in (None, "in_memory", "in-memory"),
        "text.verbosity must be medium: how long an answer is cannot be steered here, so say it in the instructions": given.text
        and given.text.verbosity not in (None, "medium"),
        "stream_options.include_obfuscation is not served here; leave it out, or set it to false": given.stream_options
        and given.stream_options.include_obfuscation,
        f"include may have {', '.join(_INCLUDABLE)}; nothing else is kept here": set(given.include or ()) - set(_INCLUDABLE),
        f"max_output_tokens must be between 1 and {_MAX_TOKENS}": given.max_output_tokens is not None
        and not 1 <= given.max_output_tokens <= _MAX_TOKENS,
        "max_tool_calls must be 1 or more": given.max_tool_calls is not None and given.max_tool_calls < 1,
        "temperature must be between 0 and 2": given.temperature is not None and not 0 <= given.temperature <= 2,
        "top_logprobs must be between 0 and 20": given.top_logprobs is not None and not 0 <= given.top_logprobs <= 20,
        "conversation and previous_response_id exclude each other; send one of them": given.conversation and given.previous_response_id,
    }
    for sentence, holds in refusals.items():
        if holds:
            raise BadRequest(sentence)


def _sampling(given: CreateResponse) -> Sampling:
    """The sampling options. Temperature and top_p are 1 where they are not sent, as in OpenAI's API, whatever the model says."""
    names = ("max_output_tokens", "num_ctx", "seed", "presence_penalty", "frequency_penalty")
    options: dict[str, Any] = {_OPTIONS.get(name, name): getattr(given, name) for name in names}
    options["temperature"] = 1.0 if given.temperature is None else given.temperature
    options["top_p"] = 1.0 if given.top_p is None else given.top_p
    options["stop"] = [given.stop] if isinstance(given.stop, str) else given.stop
    return parse_options(options)[0]


def _tool(raw: dict[str, Any], where: str) -> FunctionTool:
    kind = raw.get("type")
    if kind != "function":
        raise BadRequest(
            f"{where}.type must be function; tools that a server runs itself (web_search, file_search, mcp, …) are not served here"
        )
    try:
        tool = convert({key: raw.get(key) for key in FunctionTool.__struct_fields__} | {"type": "function"}, FunctionTool)
    except BadRequest as error:
        raise BadRequest(f"{where}.{error}") from None
    tool_name(tool.name, f"{where}.name")
    return tool


def _shown(tool: FunctionTool) -> Tool:
    """A tool as templates get it: in the form of chats, its fields in one object."""
    parameters = tool_parameters({"parameters": tool.parameters}, tool.name)
    function = {"name": tool.name} | ({"description": tool.description} if tool.description else {}) | {"parameters": parameters}
    return Tool(tool.name, parameters, {"type": "function", "function": function})


def _tool_choice(given: CreateResponse, declared: list[FunctionTool]) -> tuple[ToolChoice, list[FunctionTool]]:
    """Which tools may or must be called, and the tools that the model is shown."""
    choice = given.tool_choice if given.tool_choice is not None else "auto"
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            raise BadRequest("tool_choice must be auto, none, required, or an object that names a function")
        if choice == "required" and not declared:
            raise BadRequest("tool_choice is required, but there are no tools; send tools")
        return ToolChoice(cast(Any, choice)), declared
    if choice.get("type") == "function":
        _require_declared(choice.get("name"), declared)
        return ToolChoice("required", str(choice["name"])), declared
    if choice.get("type") == "allowed_tools":
        return _allowed_tools(choice, declared)
    raise BadRequest("tool_choice.type must be function or allowed_tools; other tools are not served here")


def _allowed_tools(choice: dict[str, Any], declared: list[FunctionTool]) -> tuple[ToolChoice, list[FunctionTool]]:
    allowed, mode = choice.get("tools"), choice.get("mode")
    if mode not in ("auto", "required"):
        raise BadRequest("tool_choice.mode must be auto or required")
    if not isinstance(allowed, list) or not allowed or not all(isinstance(tool, dict) for tool in allowed):
        raise BadRequest("tool_choice.tools must be an array of objects with type and name")
    for tool in allowed:
        _require_declared(tool.get("name"), declared)
    names = {tool["name"] for tool in allowed}
    return ToolChoice(cast(Any, mode)), [tool for tool in declared if tool.name in names]


def _require_declared(name: object, declared: list[FunctionTool]) -> None:
    if not any(tool.name == name for tool in declared):
        raise BadRequest("tool_choice names a function that is not among the tools")


def _constraint(text: TextFormat) -> Constraint | None:
    if text.type == "text":
        return None
    if text.type == "json_object":
        return Constraint("json")
    if text.schema is None or not text.name:
        raise BadRequest("text.format needs a name and a schema when its type is json_schema")
    return Constraint("schema", text.schema)


def _think(reasoning: ReasoningOptions | None) -> bool | str | None:
    if reasoning is None:
        return None
    if "concise" in (reasoning.summary, reasoning.generate_summary):
        raise Unsupported("reasoning.summary must be auto or detailed: the thoughts are given as they are, and nothing here shortens them")
    if reasoning.context not in (None, "auto") or reasoning.mode not in (None, "standard"):
        raise Unsupported(
            "reasoning.context must be auto and reasoning.mode standard; the model's template decides what it sees of earlier thoughts"
        )
    return None if reasoning.effort is None else _THINK.get(reasoning.effort, reasoning.effort)


def _logprobs(given: CreateResponse) -> int | None:
    if given.top_logprobs or _LOGPROBS in (given.include or ()):
        return given.top_logprobs or 0
    return None
