"""How an answer will be read: what a request's think, tools and constraint mean for this model. Pure decisions.

Ollama's rules: a model that can think does so unless it is told not to; a TEMPLATE shows the tags around thinking and before tool
calls. A chat template in the weights is the engine's, and the engine reads what it makes the model write; `store.answer_formats`
has the exceptions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ndani.engines.constraint import call_constraint
from ndani.errors import BadRequest, Unsupported
from ndani.prompts.template import Template
from ndani.service.resolver import ResolvedModel
from ndani.store.answer_formats import THINK_TAGS, AnswerFormat
from ndani.types import AnswerRequest, ChatRequest, Constraint, GenerateRequest, Tool


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
    call_tags: tuple[str, str] | None = None
    engine_reads: bool = False


def decide_reading(model: ResolvedModel, request: AnswerRequest, render: Template | Literal["engine", "plain"]) -> Reading:
    """How the answer to a request is read. Raises BadRequest for a wrong tool choice, Unsupported."""
    tools, must_call, one_call = _tools(request)
    think = False if must_call and "thinking" in model.capabilities else effective_think(model, request)
    answers = _format(model, render)
    if must_call:
        tag = (answers.tool_tag or "") if isinstance(render, Template) else ""
        return Reading(think, tools, True, True, call_constraint(tools), prompt_end="" if tag[:1] in ("{", "[") else tag)
    constraint = request.constraint
    reads_calls = bool(tools) and constraint is None  # a constraint leaves no room for a call
    # The engine cannot read an answer and obey a grammar at once.
    engine_reads = constraint is None and render == "engine" and (answers.engine_reads or (reads_calls and not answers.calls_are_ours))
    if engine_reads:
        _check_engine_reads(request)
    return Reading(
        think,
        tools,
        one_call=one_call,
        constraint=constraint,
        thinking_tags=answers.thinking if think else None,
        tool_tag=answers.tool_tag if reads_calls else None,
        call_tags=answers.call_tags if reads_calls else None,
        engine_reads=engine_reads,
    )


def _check_engine_reads(request: AnswerRequest) -> None:
    """Refuse what an answer cannot have that the engine reads. Raises Unsupported."""
    if request.logprobs is not None:
        together = "together with tools" if isinstance(request, ChatRequest) and request.tools else "with this form of thinking"
        raise Unsupported(f"the engine gives no logprobs {together} for this model; leave them out")
    if isinstance(request, GenerateRequest) and request.context:
        raise Unsupported("the engine takes no context with this model's form of thinking; send the conversation to /api/chat")


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


def _format(model: ResolvedModel, render: Template | Literal["engine", "plain"]) -> AnswerFormat:
    """How the answers to a prompt are read that is made in this way."""
    if isinstance(render, Template):
        opening, closing = render.thinking_tags()
        shown = AnswerFormat((opening, closing) if opening and closing else THINK_TAGS, render.tool_tag())
        return model.parser_format or shown
    return model.answer_format if render == "engine" else AnswerFormat()
