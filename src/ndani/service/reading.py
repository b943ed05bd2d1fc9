"""How an answer will be read: what a request's think, tools and constraint mean for this model. Pure decisions.

Ollama's rules: a model that can think does so unless it is told not to; a TEMPLATE shows the tags around thinking and before tool
calls. A chat template in the weights is the engine's, and the engine reads what it makes the model write.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ndani.engines.constraint import call_constraint
from ndani.errors import BadRequest
from ndani.prompts.template import Template
from ndani.service.resolver import ResolvedModel
from ndani.types import AnswerRequest, ChatRequest, Constraint, Tool

#: The tags around thinking in every chat template of weights that thinks in plain text.
_TAGS = ("<think>", "</think>")


@dataclass(frozen=True, slots=True)
class Reading:
    """The fields of a `Question` that decide how its answer is made and read. Names and meanings are those of `Question`."""

    think: bool | str | None = None
    tools: tuple[Tool, ...] = ()
    must_call: bool = False
    one_call: bool = False
    constraint: Constraint | None = None
    prompt_end: str = ""
    thinking_tags: tuple[str, str] | None = None
    tool_tag: str | None = None
    engine_reads: bool = False


def decide_reading(model: ResolvedModel, request: AnswerRequest, render: Template | Literal["engine", "plain"]) -> Reading:
    """How the answer to a request is read. Raises BadRequest for a tool choice that names no tool, or with no tool to call."""
    tools, must_call, one_call = _tools(request)
    think = False if must_call and "thinking" in model.capabilities else effective_think(model, request)
    thinking_tags, engine_reads = _thinking(model, render) if think else (None, False)
    tag = render.tool_tag() if isinstance(render, Template) and tools else None
    if must_call:
        is_text = bool(tag) and tag[0] not in "{["  # type: ignore[index]
        return Reading(think, tools, True, True, call_constraint(tools), prompt_end=tag or "" if is_text else "")
    constraint = request.constraint
    if tools and render == "engine":
        # The engine cannot read calls and obey a grammar at once; a grammar leaves no room for a call.
        engine_reads = constraint is None
    return Reading(
        think,
        tools,
        one_call=one_call,
        constraint=constraint,
        thinking_tags=thinking_tags,
        tool_tag=tag if constraint is None else None,
        engine_reads=engine_reads,
    )


def effective_think(model: ResolvedModel, request: AnswerRequest) -> bool | str | None:
    """What a request's `think` means for this model: one that can think does so unless it is told not to."""
    if "thinking" in model.capabilities:
        return True if request.think is None else request.think
    return None if request.think_if_possible else request.think


def _tools(request: AnswerRequest) -> tuple[tuple[Tool, ...], bool, bool]:
    """The tools that the model is shown, whether it must call one, and whether one call is all that is wanted."""
    if not isinstance(request, ChatRequest):
        return (), False, False
    choice, tools = request.tool_choice, request.tools
    if choice.mode == "none":
        return (), False, False
    if choice.name:
        tools = tuple(tool for tool in tools if tool.name == choice.name)
        if not tools:
            raise BadRequest("tool_choice names a tool that is not among tools")
    must_call = choice.mode == "required" or bool(choice.name)
    if must_call and not tools:
        raise BadRequest("tool_choice wants a call, but there are no tools; send tools, or leave it out")
    return tools, must_call, not request.parallel_tool_calls


def _thinking(model: ResolvedModel, render: Template | Literal["engine", "plain"]) -> tuple[tuple[str, str] | None, bool]:
    """The tags around thinking, or that the engine reads it, since it has a form of its own."""
    if isinstance(render, Template):
        opening, closing = render.thinking_tags()
        return ((opening, closing) if opening and closing else _TAGS), False
    if render == "engine":
        return (_TAGS, False) if model.thinks_in_tags else (None, True)
    return None, False
