"""Parses the bodies of /v1/messages and /v1/messages/count_tokens. Pure functions; `conversation` reads the turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ndani.api.anthropic.bodies import ConversationBody, CountTokensBody, MessagesBody, OutputConfig, ToolBody
from ndani.api.anthropic.conversation import parse_conversation
from ndani.api.edge import content
from ndani.api.edge.body_type import convert
from ndani.api.edge.keep_alive import keep_alive_seconds
from ndani.engines.sampling import parse_options
from ndani.errors import BadRequest
from ndani.types import ChatRequest, Constraint, Sampling, Tool, ToolChoice

#: The effort of a model that thinks in levels, by the tokens that a request lets it think: below the first, and below the second.
_LOW_BUDGET, _MEDIUM_BUDGET = 2048, 4096

_MODES: Mapping[str, ToolChoice] = {"auto": ToolChoice("auto"), "none": ToolChoice("none"), "any": ToolChoice("required")}


def parse_messages(body: dict[str, Any]) -> tuple[MessagesBody, ChatRequest]:
    """Parse a body of /v1/messages. Raises BadRequest."""
    parsed = convert(body, MessagesBody)
    if not parsed.model:
        raise BadRequest("model is required")
    if parsed.max_tokens is None or parsed.max_tokens <= 0:
        raise BadRequest("max_tokens is required and must be positive")
    budget = parsed.thinking.budget_tokens if parsed.thinking else None
    if budget is not None and budget >= parsed.max_tokens:
        raise BadRequest("thinking.budget_tokens must be less than max_tokens")
    _refuse_services(parsed)
    if "" in (parsed.stop_sequences or ()):
        raise BadRequest("stop_sequences must not hold an empty text")
    sampling, _ = parse_options(
        {
            "num_ctx": parsed.num_ctx,
            "num_predict": min(parsed.max_tokens, 2**31 - 1),
            "temperature": parsed.temperature,
            "top_p": parsed.top_p,
            "top_k": parsed.top_k,
            "stop": parsed.stop_sequences,
        }
    )
    return parsed, _chat_request(parsed, sampling)


def parse_count_tokens(body: dict[str, Any]) -> tuple[CountTokensBody, ChatRequest]:
    """Parse a body of /v1/messages/count_tokens. Raises BadRequest."""
    parsed = convert(body, CountTokensBody)
    if not parsed.model:
        raise BadRequest("model is required")
    return parsed, _chat_request(parsed, parse_options({"num_ctx": parsed.num_ctx})[0])


def _chat_request(body: ConversationBody, sampling: Sampling) -> ChatRequest:
    """The request without its options. A prompt that is too long is an error, as in Anthropic's API: no turn is left out silently."""
    if not body.messages:
        raise BadRequest("messages is required")
    if body.container is not None:
        raise BadRequest("container is a service of Anthropic's, which this server does not have; leave it out")
    if body.mcp_servers:
        raise BadRequest("mcp_servers are not called by this server; leave them out, and send their tools as tools of your own")
    if body.context_management and not _changes_nothing(body.context_management):
        raise BadRequest("context_management is not in this version; leave it out, and shorten the conversation before it is sent")
    tools = _tools(body.tools or [])
    tool_choice, parallel_tool_calls = _tool_choice(body, tools)
    return ChatRequest(
        model=body.model.strip(),
        messages=parse_conversation(body.system, body.messages),
        tools=tools,
        tool_choice=tool_choice,
        parallel_tool_calls=parallel_tool_calls,
        sampling=sampling,
        keep_alive=keep_alive_seconds(body.keep_alive),
        think=_think(body),
        think_if_possible=True,
        think_budget=_think_budget(body),
        constraint=_constraint(body),
        truncate=False,
        shift=False,
    )


def _refuse_services(body: MessagesBody) -> None:
    if body.speed not in (None, "standard"):
        raise BadRequest("speed must be standard; this server has no other")
    if body.inference_geo is not None:
        raise BadRequest("inference_geo has no meaning here: everything is computed on this machine; leave it out")
    if body.diagnostics is not None:
        raise BadRequest("diagnostics are not in this version; leave them out")


def _changes_nothing(context_management: dict[str, Any]) -> bool:
    """Whether every edit keeps all thinking: nothing is removed here without being asked to, so that is done already."""
    edits = context_management.get("edits")
    return not edits or (
        isinstance(edits, list)
        and all(
            isinstance(edit, dict) and str(edit.get("type")).startswith("clear_thinking") and edit.get("keep") == "all" for edit in edits
        )
    )


def _tools(bodies: list[ToolBody]) -> tuple[Tool, ...]:
    tools: dict[str, Tool] = {}
    for index, body in enumerate(bodies):
        tool = _tool(body, f"tools[{index}]")
        if tool.name in tools:
            raise BadRequest(f"tools[{index}].name is that of an earlier tool; names must be unique")
        tools[tool.name] = tool
    return tuple(tools.values())


def _tool(body: ToolBody, where: str) -> Tool:
    if body.type not in (None, "custom"):
        raise BadRequest(f"{where} is a tool of Anthropic's own; only tools with an input_schema, which the client runs, are served here")
    if body.input_schema is None:
        raise BadRequest(f"{where}.input_schema is required")
    if body.defer_loading or body.input_examples or (body.allowed_callers or ["direct"]) != ["direct"]:
        raise BadRequest(f"{where} uses defer_loading, input_examples or allowed_callers, which are not in this version; leave them out")
    name = content.tool_name(body.name, f"{where}.name")
    function: dict[str, Any] = {"name": name, "description": body.description or "", "parameters": body.input_schema}
    return Tool(name, body.input_schema, {"type": "function", "function": function})


def _tool_choice(body: ConversationBody, tools: tuple[Tool, ...]) -> tuple[ToolChoice, bool]:
    """What the model may call, and whether several tools in one answer."""
    choice = body.tool_choice
    if choice is None:
        return ToolChoice(), True
    if choice.type in ("any", "tool") and not tools:
        raise BadRequest(f"tool_choice is {choice.type}, but there are no tools; send some, or leave it out")
    if choice.type == "tool" and choice.name not in {tool.name for tool in tools}:
        raise BadRequest("tool_choice.name is not the name of any of the tools")
    mode = _MODES.get(choice.type) or ToolChoice("required", choice.name or "")
    return mode, not choice.disable_parallel_tool_use


def _think(body: ConversationBody) -> bool | str:
    """Whether the model thinks, and with which effort. A client that does not ask for it expects no thinking in the answer."""
    effort = (body.output_config or OutputConfig()).effort
    level = "high" if effort == "xhigh" else effort
    if body.thinking is None:
        return level or False
    if body.thinking.type == "disabled":
        return False
    budget = _think_budget(body)
    if level is None and budget is not None:
        return "low" if budget < _LOW_BUDGET else "medium" if budget < _MEDIUM_BUDGET else "high"
    return level or True


def _think_budget(body: ConversationBody) -> int | None:
    budget = body.thinking.budget_tokens if body.thinking and body.thinking.type != "disabled" else None
    if budget is not None and budget <= 0:
        raise BadRequest("thinking.budget_tokens must be positive")
    return budget


def _constraint(body: ConversationBody) -> Constraint | None:
    formats = [given for given in (body.output_config and body.output_config.format, body.output_format) if given]
    if len(formats) > 1:
        raise BadRequest("output_format is the older name of output_config.format; send one of them")
    return Constraint("schema", formats[0].schema) if formats else None
