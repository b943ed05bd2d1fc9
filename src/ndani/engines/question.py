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
from ndani.prompts.fit import Fitted, RenderPrompt, fit
from ndani.prompts.template import Conversation, Template, Turn
from ndani.prompts.template.bounds import OUTPUT
from ndani.types import Done, Event, Message, Rendered, Sampling, Sink, Text, Usage

#: Letters of an answer for each token that it may have, beside the longest word it may be stopped at: no token has so many.
_PER_TOKEN, _BESIDE = 512, 1 << 20

#: A model that says the same token this often in a row will not stop by itself (reference 5).
MOST_REPEATS = 30

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
        tally = Tally(question.sampling.num_predict == 0, question.wants_context, options["n_predict"])
        try:
            async with aclosing(engine.complete(fitted.prompt, options, tally.tap(sink) if sink else None)) as chunks:
                async for chunk in chunks:
                    if tally.last:  # it came by the sink
                        break
                    if event := tally.take(chunk):
                        yield event
                    if tally.last:
                        break
            break
        except TooLong:
            if counted:
                raise BadRequest(TOO_LONG) from None
            fitted, counted = await _fit(engine, question, render), True
    context = (*await _ids(engine, fitted), *tally.made) if question.wants_context else None
    yield tally.done(context, fitted.truncated, question.slot_ctx)


class Tally:
    """What has come of one answer so far. `silent`: nothing is to be said (num_predict 0). `most`: pieces that may come of it."""

    def __init__(self, silent: bool, keep: bool, most: int) -> None:
        self.made: list[int] = []
        self.last: Chunk | None = None
        self._silent, self._keep, self._most = silent, keep, most
        self._started = time.monotonic_ns()
        self._piece, self._repeats, self._count = "", 0, 0
        self._room = most * _PER_TOKEN + _BESIDE

    def take(self, chunk: Chunk) -> Text | None:
        """The text of a chunk, where it has one; `last` is set when the answer ends with it."""
        if chunk.stop:
            self.last = chunk
        elif chunk.prompt_progress is not None:
            return None
        else:
            self._count += 1
            piece = chunk.content.strip()
            self._repeats = self._repeats + 1 if self._count > 1 and piece == self._piece else 0
            self._piece = piece
            self._room -= len(chunk.content)
            if (
                self._repeats >= MOST_REPEATS or self._count > self._most or self._room < 0
            ):  # an engine that does not stop where it was told to
                self.last = Chunk(stop=True, stop_type="limit", tokens_evaluated=chunk.tokens_evaluated)
        if self._silent or not chunk.content:
            if self._keep and not self._silent:
                self.made += chunk.tokens
            return None
        if not self._keep:
            return Text(chunk.content)
        self.made += chunk.tokens
        return Text(chunk.content, tuple(chunk.tokens))

    def tap(self, sink: Sink) -> Callable[[Chunk], bool]:
        """Takes the pieces of an answer to `sink` on the shortest way: from the socket's news, past every waiting generator.

        Two cores are all the engine has, and waking those costs more than all else that is done for a token.
        """
        ready, put, take = sink.ready, sink.put, self.take

        def offer(chunk: Chunk) -> bool:
            if chunk.stop or chunk.error is not None or self.last or not ready():
                return False
            if text := take(chunk):
                put(text)
            return True

        return offer

    def done(self, context: tuple[int, ...] | None, truncated: int, slot_ctx: int) -> Done:
        """The end, with what it cost. What went past the slot's context pushed as many tokens out of sight."""
        last = self.last
        assert last is not None  # `complete` raises rather than end without one
        timings = last.timings or Timings(predicted_n=self._count, predicted_ms=(time.monotonic_ns() - self._started) / 1e6)
        usage = Usage(
            prompt_tokens=max(last.tokens_evaluated, 0),
            cached_tokens=max(timings.cache_n, 0),
            output_tokens=0 if self._silent else max(timings.predicted_n, 0),
            prompt_ns=max(int(timings.prompt_ms * 1e6), 1),
            output_ns=max(int(timings.predicted_ms * 1e6), 1),
        )
        pushed_out = max(0, usage.prompt_tokens + usage.output_tokens - slot_ctx) if slot_ctx else 0
        return Done("length" if last.stop_type == "limit" else "stop", usage, context, truncated + pushed_out)


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
        if isinstance(way, Template):  # a second or two at worst, so not on the loop
            return prefix + await asyncio.to_thread(_filled, way, messages, suffix, think)
        if way == "engine":
            return prefix + await engine.render(messages, think)
        return prefix + "\n\n".join(m.content for m in messages)

    return render


def _filled(template: Template, messages: tuple[Message, ...], suffix: str, think: bool | None) -> str:
    if sum(len(message.content) for message in messages) > OUTPUT:
        raise BadRequest(f"the prompt is longer than {OUTPUT:,} characters; shorten it")
    turns = tuple(Turn(m.role, m.content, m.thinking, tool_name=m.tool_name, tool_call_id=m.tool_call_id) for m in messages)
    return template.render(Conversation(turns, prompt=messages[-1].content if suffix else "", suffix=suffix, think=think))


async def _fit(engine: Engine, question: Question, render: RenderPrompt) -> Fitted:
    keep = question.sampling.num_keep or 0
    fitted = await fit(question.messages, question.num_ctx, keep, render, engine.tokenize, cut=question.shift)
    if fitted is None or (fitted.truncated and not question.truncate):
        raise BadRequest(TOO_LONG)
    return fitted


async def _ids(engine: Engine, fitted: Fitted) -> list[int]:
    return fitted.prompt if isinstance(fitted.prompt, list) else await engine.tokenize(fitted.prompt)
