"""One answer, from a conversation or a prompt to its last token: render, fit, complete.

The prompt is sent as it is and counted only when the engine says that it does not fit (counting costs 5 ms at
1,500 tokens, and most prompts fit); then what must go is found, the ids are sent, and the end says how many tokens
the model never saw.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

from ndani.engines.client import Chunk, Engine, Timings, TooLong
from ndani.engines.sampling import translate
from ndani.errors import BadRequest
from ndani.outputs import Accumulator
from ndani.prompts import fill
from ndani.prompts.fit import Fitted, RenderPrompt, fit
from ndani.prompts.template import Template
from ndani.types import Done, Event, Message, Rendered, Sampling, Sink, Text, Usage

TOO_LONG = (
    "the prompt is longer than the context length currently available to the model; shorten the prompt, "
    "adjust the context length in settings, or use a model with a longer context length"
)


@dataclass(frozen=True, slots=True)
class Question:
    """What an engine is asked, whatever dialect it came in.

    `render` says how the messages become a prompt: by a template of ours, by the chat template that the engine has read
    from the weights, or plainly, their texts joined. With `suffix`, a template of ours fills in the middle. `think` is what
    templates are told of thinking. `render_only` ends with the prompt. `context` is put in front of the prompt. `num_ctx` is
    this request's context, at most the slot's, `slot_ctx`; both are known once a slot is leased.
    """

    messages: tuple[Message, ...]
    sampling: Sampling
    num_ctx: int = 0
    slot_ctx: int = 0
    render: Template | Literal["engine", "plain"] = "engine"
    suffix: str = ""
    think: bool | None = None
    render_only: bool = False
    context: tuple[int, ...] = ()
    truncate: bool = True
    shift: bool = True
    wants_context: bool = False

    @property
    def silent(self) -> bool:
        """Whether nothing is to be said, only the prompt read: an engine gives one token anyway."""
        return self.sampling.num_predict == 0


async def ask(engine: Engine, question: Question, sink: Sink | None = None) -> AsyncGenerator[Event]:
    """The answer as it is made: Text…, then one Done; or one Rendered. Texts that `sink` takes are not among them.

    Raises BadRequest, EngineFailed.
    """
    render = _renderer(engine, question, await _before(engine, question.context) if question.context else "")
    prompt = await render(question.messages)
    fitted = Fitted(prompt, 0)
    # A token has at least one byte: only a prompt of more bytes than the request's own, smaller context can exceed it.
    counted = question.num_ctx < question.slot_ctx or not question.shift or question.render_only
    counted = counted and len(prompt.encode()) >= question.num_ctx
    if counted:
        fitted = await _fit(engine, question, render)
    if question.render_only:
        yield Rendered(fitted.prompt if isinstance(fitted.prompt, str) else await engine.detokenize(fitted.prompt))
        return
    while True:
        options = translate(question.sampling, question.num_ctx)
        if not question.shift:  # without shifting the answer ends where the context does
            options["n_predict"] = min(options["n_predict"], max(question.num_ctx - len(await _ids(engine, fitted)), 1))
        made = Accumulator(options["n_predict"], silent=question.silent, keep=question.wants_context)
        completion = _Completion(made)
        try:
            async with aclosing(engine.complete(fitted.prompt, options, completion.tap(sink) if sink else None)) as chunks:
                async for chunk in chunks:
                    # By what the sink took it may be over before this one.
                    if not completion.over and (event := completion.take(chunk)):
                        yield event
                    if completion.over:
                        break
            break
        except TooLong:
            if counted:
                raise BadRequest(TOO_LONG) from None
            fitted, counted = await _fit(engine, question, render), True
    context = (*await _ids(engine, fitted), *made.tokens) if question.wants_context else None
    yield completion.done(question, context, fitted.truncated)


class _Completion:
    """One completion as it comes: chunks of an engine in, texts out, and at its end what it cost."""

    def __init__(self, accumulator: Accumulator) -> None:
        self._accumulator = accumulator
        self._last = Chunk()  # that has come
        self._began = time.monotonic_ns()

    @property
    def over(self) -> bool:
        """Whether nothing more is to be read: the engine has ended it, or it has been enough."""
        return self._last.stop or self._accumulator.over

    def take(self, chunk: Chunk) -> Text | None:
        """The text of a chunk, where it has one to tell."""
        if chunk.stop:
            self._last = chunk
            return self._accumulator.finish(chunk.content, chunk.tokens)
        if chunk.prompt_progress is not None:
            return None
        self._last = chunk
        return self._accumulator.take(chunk.content, chunk.tokens)

    def tap(self, sink: Sink) -> Callable[[Chunk], bool]:
        """Takes the pieces of an answer to `sink` on the shortest way: from the socket's news, past every waiting generator.

        Two cores are all the engine has, and waking those costs more than all else that is done for a token.
        """
        accumulator, accumulate, ready, put = self._accumulator, self._accumulator.take, sink.ready, sink.put

        def offer(chunk: Chunk) -> bool:
            if chunk.stop or chunk.error is not None or accumulator.over or not ready():
                return False
            if chunk.prompt_progress is None:
                self._last = chunk
                if text := accumulate(chunk.content, chunk.tokens):
                    put(text)
            return True

        return offer

    def done(self, question: Question, context: tuple[int, ...] | None, truncated: int) -> Done:
        """The end, with what it cost. What went past the slot's context pushed as many tokens out of sight."""
        last, made, cut = self._last, self._accumulator, not self._last.stop
        measured = Timings(predicted_n=made.count, predicted_ms=(time.monotonic_ns() - self._began) / 1e6)
        timings = last.timings if last.timings and not cut else measured
        usage = Usage(
            prompt_tokens=max(last.tokens_evaluated, 0),
            cached_tokens=max(timings.cache_n, 0),
            output_tokens=0 if question.silent else max(timings.predicted_n, 0),
            prompt_ns=max(int(timings.prompt_ms * 1e6), 1),
            output_ns=max(int(timings.predicted_ms * 1e6), 1),
        )
        pushed_out = max(0, usage.prompt_tokens + usage.output_tokens - question.slot_ctx) if question.slot_ctx else 0
        return Done("length" if cut or last.stop_type == "limit" else "stop", usage, context, truncated + pushed_out)


async def _before(engine: Engine, context: tuple[int, ...]) -> str:
    """The text of an earlier exchange, without what the model puts in front of every prompt: it will do so again."""
    front = tuple(await engine.tokenize(""))
    while front and context[: len(front)] == front:
        context = context[len(front) :]
    return await engine.detokenize(context) if context else ""


def _renderer(engine: Engine, question: Question, prefix: str) -> RenderPrompt:
    """The one place that decides how messages become a prompt."""
    way, suffix, think = question.render, question.suffix, question.think

    async def render(messages: tuple[Message, ...]) -> str:
        if isinstance(way, Template):  # not on the loop
            return prefix + await asyncio.to_thread(fill, way, messages, suffix, think)
        if way == "engine":
            return prefix + await engine.render(messages, think)
        return prefix + "\n\n".join(m.content for m in messages)

    return render


async def _fit(engine: Engine, question: Question, render: RenderPrompt) -> Fitted:
    keep = question.sampling.num_keep or 0
    fitted = await fit(question.messages, question.num_ctx, keep, render, engine.tokenize, cut=question.shift)
    if fitted is None or (fitted.truncated and not question.truncate):
        raise BadRequest(TOO_LONG)
    return fitted


async def _ids(engine: Engine, fitted: Fitted) -> list[int]:
    return fitted.prompt if isinstance(fitted.prompt, list) else await engine.tokenize(fitted.prompt)
