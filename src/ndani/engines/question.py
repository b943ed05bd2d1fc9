"""One answer, from a conversation or a prompt to its last token: render, fit, complete.

Where the engine itself refuses a prompt that is too long, it is sent unchanged, and its tokens are counted only after a refusal
(counting costs 5 ms at 1,500 tokens, and most prompts fit). Elsewhere they are counted first. A prompt that does not fit is
truncated and sent as token ids, and the Done event tells how many tokens were left out.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

from ndani.engines.client import MAX_SPECIAL_TOKENS, PromptTooLong, RunnerClient
from ndani.engines.completion import Completion
from ndani.engines.constraint import engine_grammar
from ndani.engines.engine_chat import EngineChat
from ndani.engines.prompt import TOO_LONG, continued_prompt, fit_prompt, prompt_ids, prompt_renderer, prompt_with_images
from ndani.engines.sampling import translate
from ndani.engines.wire import ChatChunk, Chunk
from ndani.errors import BadRequest, EngineFailed
from ndani.outputs import Accumulator, AnswerParser
from ndani.prompts.fit import Fitted, RenderPrompt
from ndani.prompts.image_tags import ImageTags
from ndani.prompts.template import Template
from ndani.types import Constraint, Event, Message, Piece, Rendered, Sampling, Sink, Tool, Usage

AnyChunk = TypeVar("AnyChunk", Chunk, ChatChunk)
Chunk_contra = TypeVar("Chunk_contra", contravariant=True)


class Reader(Protocol[Chunk_contra]):
    """What reads an answer: `Completion`, or `EngineChat` where the engine has read it already."""

    @property
    def over(self) -> bool:
        """Whether the answer is complete."""
        ...

    def take(self, chunk: Chunk_contra) -> Sequence[Piece]:
        """The pieces of a chunk."""
        ...

    def end(self) -> Sequence[Piece]:
        """What is left when no more chunks will come."""
        ...


@dataclass(frozen=True, slots=True)
class Question:
    """A request to an engine, independent of the API dialect.

    `render` decides how the messages become a prompt: with the model's TEMPLATE, with the chat template that the engine has read
    from the weights, or plain: their texts joined. With `suffix`, the TEMPLATE fills in the middle. `think` is the thinking option
    for templates. `render_only` asks for the prompt only. `context` is put before the prompt, `prompt_end` after it. `num_ctx` is
    the context of this request, at most that of the slot, `slot_ctx`; both are known once a slot is leased. `tags` say where the
    images of the messages belong; None without images.

    The answer: `constraint` is what its text must match, and `must_call` says that this makes it a call of one of the `tools`.
    `thinking_tags` are the texts around thinking, `tool_tag` is what stands before a call, `call_tags` are the texts around calls that
    are spelt as in a program; None where the answer is not to be read for them. `engine_reads` leaves all this to the engine.
    """

    messages: tuple[Message, ...]
    sampling: Sampling
    num_ctx: int = 0
    slot_ctx: int = 0
    render: Template | Literal["engine", "plain"] = "engine"
    suffix: str = ""
    think: bool | str | None = None
    think_budget: int | None = None
    render_only: bool = False
    context: tuple[int, ...] = ()
    prompt_end: str = ""
    truncate: bool = True
    shift: bool = True
    wants_context: bool = False
    tags: ImageTags | None = None
    tools: tuple[Tool, ...] = ()
    must_call: bool = False
    one_call: bool = False
    constraint: Constraint | None = None
    logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    thinking_tags: tuple[str, str] | None = None
    tool_tag: str | None = None
    call_tags: tuple[str, str] | None = None
    engine_reads: bool = False

    @property
    def silent(self) -> bool:
        """Whether only the prompt is to be processed and the answer left out: an engine generates one token anyway."""
        return self.sampling.num_predict == 0

    @property
    def thinks_first(self) -> bool:
        """Whether thinking and answer are two passes: the answer has a constraint, which is not for thoughts, or these a budget."""
        limited = self.constraint is not None or self.think_budget is not None
        return bool(self.thinking_tags and self.think) and limited and not self.engine_reads


async def ask(engine: RunnerClient, question: Question, sink: Sink | None = None) -> AsyncGenerator[Event]:
    """The events of an answer: pieces, then one Done; or one Rendered. Pieces that `sink` has taken are not yielded.

    Raises BadRequest, EngineFailed.
    """
    options = await _engine_options(engine, question)
    render = await prompt_renderer(engine, question)
    if question.engine_reads and not question.render_only:
        answer = _chat(engine, question, options, render, sink)
    elif question.thinks_first and not question.render_only:
        answer = _think_then_answer(engine, question, options, render, sink)
    else:
        answer = _complete(engine, question, options, render, sink)
    async with aclosing(answer) as events:
        async for event in events:
            yield event


async def count_tokens(engine: RunnerClient, question: Question) -> int:
    """How many tokens the prompt of a question has, as `ask` would send it."""
    render = await prompt_renderer(engine, question)
    prompt = await render(question.messages)
    if question.thinks_first:
        prompt = _with_thinking_opened(prompt, question)
    if question.tags:
        question.tags.require_all(prompt)
        return await _count_with_images(engine, question, prompt)
    return (await engine.measure(prompt, 0, 0))[2]


async def _count_with_images(engine: RunnerClient, question: Question, prompt: str) -> int:
    """Only the engine knows how many tokens an image has: it gets the prompt, and is stopped once it has told the size."""
    options = translate(replace(question.sampling, num_predict=1), question.num_ctx)
    try:
        async with aclosing(engine.complete(prompt_with_images(engine, question, prompt), options)) as chunks:
            async for chunk in chunks:
                if chunk.prompt_progress or chunk.stop:
                    return chunk.prompt_progress.total if chunk.prompt_progress else chunk.tokens_evaluated
    except PromptTooLong as refusal:
        return refusal.tokens
    raise EngineFailed("the engine did not tell the size of a prompt; ask again")


async def _engine_options(engine: RunnerClient, question: Question) -> dict[str, Any]:
    """The fields of the engine's request."""
    options = translate(question.sampling, question.num_ctx)
    if question.logprobs is not None:
        # The engine gives as many alternatives as it gives probabilities; without any it gives no log-probability either.
        options["n_probs"] = max(question.logprobs, 1)
    if question.logit_bias:
        try:
            await engine.detokenize([token for token, _ in question.logit_bias])
        except BadRequest:  # the engine would leave them out
            raise BadRequest("logit_bias has token ids that this model does not have; /api/tokenize says which ids a text has") from None
        options["logit_bias"] = [[token, False if bias == float("-inf") else bias] for token, bias in question.logit_bias]
    if marks := _marks(question):
        options["preserved_tokens"] = marks
    if question.constraint:
        options["grammar"] = await engine_grammar(question.constraint)
    return options


def _marks(question: Question) -> list[str]:
    """The marks that an answer is read by. Where a model has control tokens for them, the engine leaves those out unless told."""
    read = [*(question.thinking_tags or ()), *([question.tool_tag] if question.tool_tag else []), *(question.call_tags or ())]
    if question.engine_reads or not read:
        return []
    marks = question.render.answer_marks() if isinstance(question.render, Template) else ()
    return list(dict.fromkeys([*read, *marks]))


async def _fitted(engine: RunnerClient, question: Question, render: RenderPrompt) -> tuple[Fitted, bool]:
    """The prompt, and whether it was counted and made to fit."""
    prompt = await render(question.messages)
    image_tokens = 0
    if question.tags:
        question.tags.require_all(prompt)
        image_tokens = question.tags.tokens(prompt)
    # A token has at least one byte, so only a prompt with more bytes than the request's context has tokens can exceed it.
    # With the slot's whole context for the request, the engine itself refuses such a prompt, and then it is fitted; else it is now.
    engine_refuses_too_long = question.num_ctx >= question.slot_ctx and question.shift and not question.render_only
    if not engine_refuses_too_long and len(prompt.encode()) + image_tokens >= question.num_ctx:
        return await fit_prompt(engine, question, render), True
    return Fitted(prompt, 0), False


async def _complete(
    engine: RunnerClient, question: Question, options: dict[str, Any], render: RenderPrompt, sink: Sink | None
) -> AsyncGenerator[Event]:
    """The answer as a completion of a prompt, read here."""
    fitted, was_fitted = await _fitted(engine, question, render)
    if question.render_only:
        prompt = fitted.prompt if isinstance(fitted.prompt, str) else await engine.detokenize(fitted.prompt)
        yield Rendered(question.tags.shown(prompt), question.tags.count(prompt)) if question.tags else Rendered(prompt)
        return
    while True:
        options = await _within_context(engine, question, options, fitted.prompt)
        completion = _completion(question, options, fitted)
        try:
            async with aclosing(_run(engine, question, fitted.prompt, options, completion, sink)) as pieces:
                async for piece in pieces:
                    yield piece
            break
        except PromptTooLong as refusal:
            if was_fitted:
                raise BadRequest(TOO_LONG) from None
            fitted, was_fitted = await fit_prompt(engine, question, render, refusal), True
    context = (*await prompt_ids(engine, question, fitted), *completion.tokens) if question.wants_context else None
    yield completion.done(silent=question.silent, slot_ctx=question.slot_ctx, context=context, truncated=fitted.truncated)


async def _within_context(engine: RunnerClient, question: Question, options: dict[str, Any], prompt: str | list[int]) -> dict[str, Any]:
    """Without a context shift the answer ends at the end of the context. With images the engine never shifts it."""
    if question.shift or question.tags:
        return options
    # A token has at least one byte, so only a prompt and an answer that could be longer together are counted.
    most = len(prompt) if isinstance(prompt, list) else len(prompt.encode()) + MAX_SPECIAL_TOKENS
    if most + options["n_predict"] <= question.num_ctx:
        return options
    count = len(prompt) if isinstance(prompt, list) else (await engine.measure(prompt, 0, 0))[2]
    return options | {"n_predict": min(options["n_predict"], max(question.num_ctx - count, 1))}


def _completion(question: Question, options: dict[str, Any], fitted: Fitted) -> Completion:
    accumulator = Accumulator(options["n_predict"], silent=question.silent, keep=question.wants_context)
    parser = None
    if question.thinking_tags or question.tool_tag is not None or question.call_tags or question.must_call:
        opening = question.thinking_tags[0] if question.thinking_tags else ""
        parser = AnswerParser(
            thinking=question.thinking_tags,
            thinking_began=bool(opening) and isinstance(fitted.prompt, str) and fitted.prompt.rstrip().endswith(opening),
            tool_tag=question.tool_tag,
            call_tags=question.call_tags,
            tools=question.tools,
            called=question.must_call,
        )
    return Completion(accumulator, parser, logprobs=question.logprobs is not None, one_call=question.one_call)


async def _run(
    engine: RunnerClient, question: Question, prompt: str | list[int], options: dict[str, Any], completion: Completion, sink: Sink | None
) -> AsyncGenerator[Event]:
    """Run one completion of a prompt; its pieces go into `sink` where that is ready, and are yielded elsewhere."""
    tap = completion.tap(sink) if sink else None
    async with aclosing(_pieces(engine.complete(prompt_with_images(engine, question, prompt), options, tap), completion)) as pieces:
        async for piece in pieces:
            yield piece


async def _pieces(chunks: AsyncGenerator[AnyChunk], reader: Reader[AnyChunk]) -> AsyncGenerator[Event]:
    """What a reader makes of the chunks that its tap has left, up to the answer's end."""
    async with aclosing(chunks):
        async for chunk in chunks:
            # The pieces that the sink took may already have ended it.
            if not reader.over:
                for piece in reader.take(chunk):
                    yield piece
            if reader.over:
                break
    for piece in reader.end():
        yield piece


async def _think_then_answer(
    engine: RunnerClient, question: Question, options: dict[str, Any], render: RenderPrompt, sink: Sink | None
) -> AsyncGenerator[Event]:
    """Two passes: the model thinks freely until it closes its thoughts or has used up their budget, then it answers."""
    assert question.thinking_tags
    _, closing = question.thinking_tags

    async def render_open(messages: tuple[Message, ...]) -> str:
        return _with_thinking_opened(await render(messages), question)

    fitted, was_fitted = await fit_prompt(engine, question, render_open), question.tags is None
    logprobs = question.logprobs is not None
    while True:
        options = await _within_context(engine, question, options, fitted.prompt)
        free = {name: value for name, value in options.items() if name != "grammar"} | {"stop": [*options["stop"], closing]}
        if question.think_budget is not None:
            free["n_predict"] = min(question.think_budget, options["n_predict"])
        thinking = Completion(Accumulator(free["n_predict"], silent=question.silent, keep=True), logprobs=logprobs, thought=True)
        try:
            async with aclosing(_run(engine, question, fitted.prompt, free, thinking, sink)) as pieces:
                async for piece in pieces:
                    yield piece
            break
        except PromptTooLong as refusal:  # its images have more tokens than they were taken to have
            if was_fitted:
                raise BadRequest(TOO_LONG) from None
            fitted, was_fitted = await fit_prompt(engine, question, render_open, refusal), True
    first = thinking.done(silent=question.silent, slot_ctx=question.slot_ctx, context=None, truncated=fitted.truncated)
    left = options["n_predict"] - first.usage.output_tokens
    if question.silent or first.stop_sequence not in (None, closing):
        yield first
        return
    if left < 1 or (first.reason == "length" and free["n_predict"] == options["n_predict"]):
        yield replace(first, reason="length", stop_sequence=None)
        return
    # The tokens are all that the model wrote: also the closing tag, or the token with which it ended its turn instead.
    ended = first.reason == "stop" and first.stop_sequence is None
    thoughts = thinking.tokens[:-1] if ended else thinking.tokens
    end = "\n\n" if first.stop_sequence == closing else f"\n{closing}\n\n"
    prompt = await continued_prompt(engine, question, fitted, thoughts, end)
    rest = options | {"n_predict": left}
    answering = _completion(replace(question, thinking_tags=None), rest, fitted)
    try:
        async with aclosing(_run(engine, question, prompt, rest, answering, sink)) as pieces:
            async for piece in pieces:
                yield piece
    except PromptTooLong:
        raise BadRequest(TOO_LONG) from None
    ids = await prompt_ids(engine, question, Fitted(prompt, 0)) if question.wants_context else []
    context = (*ids, *answering.tokens) if question.wants_context else None
    last = answering.done(silent=False, slot_ctx=question.slot_ctx, context=context, truncated=fitted.truncated)
    yield replace(last, usage=_sum(first.usage, last.usage))


def _with_thinking_opened(prompt: str, question: Question) -> str:
    """The prompt, with the tag at its end that begins the thinking."""
    assert question.thinking_tags
    opening = question.thinking_tags[0]
    return prompt if prompt.rstrip().endswith(opening) else prompt + opening + "\n"


def _sum(first: Usage, last: Usage) -> Usage:
    """The usage of two passes over one prompt."""
    return replace(
        first,
        output_tokens=first.output_tokens + last.output_tokens,
        prompt_ns=first.prompt_ns + last.prompt_ns,
        output_ns=first.output_ns + last.output_ns,
    )


async def _chat(
    engine: RunnerClient, question: Question, options: dict[str, Any], render: RenderPrompt, sink: Sink | None
) -> AsyncGenerator[Event]:
    """The answer as the engine reads it. Only whole turns can be left out of a conversation that is too long."""
    options = options | {"parallel_tool_calls": not question.one_call} if question.tools else options
    if question.think and question.think_budget is not None:
        options = options | {"thinking_budget_tokens": question.think_budget}
    messages, truncated, was_fitted = question.messages, 0, False
    if question.num_ctx < question.slot_ctx:  # the engine refuses only what is too long for its slot
        fitted = await fit_prompt(engine, replace(question, shift=False), render)
        messages, truncated = fitted.messages, fitted.truncated
    while True:
        limited = options if question.shift else await _within_context(engine, question, options, await render(messages))
        chat = EngineChat(Accumulator(limited["n_predict"], silent=question.silent), one_call=question.one_call)
        tap = chat.tap(sink) if sink else None
        try:
            async with aclosing(_pieces(engine.chat(messages, question.think, question.tools, limited, tap), chat)) as pieces:
                async for piece in pieces:
                    yield piece
            break
        except PromptTooLong as refusal:
            if was_fitted:
                raise BadRequest(TOO_LONG) from None
            fitted = await fit_prompt(engine, replace(question, shift=False), render, refusal)
            messages, truncated, was_fitted = fitted.messages, fitted.truncated, True
    yield chat.done(silent=question.silent, slot_ctx=question.slot_ctx, truncated=truncated)
