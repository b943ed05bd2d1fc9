"""One answer, from a conversation or a prompt to its last token: render, fit, complete.

Where the engine itself refuses a prompt that is too long, it is sent unchanged, and its tokens are counted only after a refusal
(counting costs 5 ms at 1,500 tokens, and most prompts fit). Elsewhere they are counted first. A prompt that does not fit is
truncated and sent as token ids, and the Done event tells how many tokens were left out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

from ndani.engines.client import Chunk, PromptTooLong, PromptWithImages, RunnerClient, Timings
from ndani.engines.sampling import translate
from ndani.errors import BadRequest
from ndani.outputs import Accumulator
from ndani.prompts import fill
from ndani.prompts.fit import Fitted, RenderPrompt, fit
from ndani.prompts.image_tags import ImageTags
from ndani.prompts.template import Template
from ndani.types import Done, Event, Message, Rendered, Sampling, Sink, Text, Usage

TOO_LONG = (
    "the prompt is longer than the context length currently available to the model; shorten the prompt, "
    "adjust the context length in settings, or use a model with a longer context length"
)


@dataclass(frozen=True, slots=True)
class Question:
    """A request to an engine, independent of the API dialect.

    The images of a message stand before its text; with `typed_tags`, the text says where: `[img-0]`.

    `render` decides how the messages become a prompt: with the model's TEMPLATE, with the chat template that the engine has read
    from the weights, or plain: their texts joined. With `suffix`, the TEMPLATE fills in the middle. `think` is the thinking option
    for templates. `render_only` asks for the prompt only. `context` is put before the prompt. `num_ctx` is the context of this
    request, at most that of the slot, `slot_ctx`; both are known once a slot is leased.
    """

    messages: tuple[Message, ...]
    sampling: Sampling
    num_ctx: int = 0
    slot_ctx: int = 0
    render: Template | Literal["engine", "plain"] = "engine"
    suffix: str = ""
    think: bool | str | None = None
    render_only: bool = False
    context: tuple[int, ...] = ()
    truncate: bool = True
    shift: bool = True
    wants_context: bool = False
    typed_tags: bool = False

    @property
    def silent(self) -> bool:
        """Whether only the prompt is to be processed and the answer left out: an engine generates one token anyway."""
        return self.sampling.num_predict == 0


async def ask(engine: RunnerClient, question: Question, sink: Sink | None = None) -> AsyncGenerator[Event]:
    """The events of an answer: Text…, then one Done; or one Rendered. Texts that `sink` has taken are not yielded.

    Raises BadRequest, EngineFailed.
    """
    render = _renderer(engine, question, await _context_text(engine, question.context) if question.context else "")
    tags = ImageTags(question.messages, typed=question.typed_tags)
    prompt = await render(tags.messages)
    tags.require_all(prompt)
    fitted = Fitted(prompt, 0, prompt)
    # A token has at least one byte, so only a prompt with more bytes than the request's context has tokens can exceed it.
    # With the slot's whole context for the request, the engine itself refuses such a prompt, and then it is fitted; else it is now.
    engine_refuses_too_long = question.num_ctx >= question.slot_ctx and question.shift and not question.render_only
    was_fitted = not engine_refuses_too_long and len(tags.plain(prompt).encode()) + tags.tokens(prompt) >= question.num_ctx
    if was_fitted:
        fitted = await _fit(engine, question, render, tags)
    if question.render_only:
        text = fitted.text if tags.images or isinstance(fitted.prompt, str) else await engine.detokenize(fitted.prompt)
        yield Rendered(tags.shown(text), len(tags.placed(text, "")[1]))
        return
    while True:
        options = translate(question.sampling, question.num_ctx)
        if not question.shift and not tags.images:  # without a context shift the answer ends at the end of the context
            options["n_predict"] = min(options["n_predict"], max(question.num_ctx - len(await _ids(engine, fitted, tags)), 1))
        accumulator = Accumulator(options["n_predict"], silent=question.silent, keep=question.wants_context)
        completion = _Completion(accumulator)
        try:
            async with aclosing(engine.complete(_placed(engine, fitted, tags), options, completion.tap(sink) if sink else None)) as chunks:
                async for chunk in chunks:
                    # The texts that the sink took may already have ended it.
                    if not completion.over and (event := completion.take(chunk)):
                        yield event
                    if completion.over:
                        break
            break
        except PromptTooLong as refusal:
            if was_fitted:
                raise BadRequest(TOO_LONG) from None
            if tags.images:
                tags.learn(prompt, len(await _ids(engine, fitted, tags)), refusal.tokens)
            fitted, was_fitted = await _fit(engine, question, render, tags), True
    context = (*await _ids(engine, fitted, tags), *accumulator.tokens) if question.wants_context else None
    yield completion.done(question, context, fitted.truncated)


class _Completion:
    """One running completion: takes chunks of the engine, gives texts, and at the end the usage."""

    def __init__(self, accumulator: Accumulator) -> None:
        self._accumulator = accumulator
        self._last = Chunk()  # the last chunk that arrived
        self._began = time.monotonic_ns()

    @property
    def over(self) -> bool:
        """Whether it is complete: the engine has ended it, or the accumulator stops it."""
        return self._last.stop or self._accumulator.over

    def take(self, chunk: Chunk) -> Text | None:
        """The text of a chunk, or None."""
        if chunk.stop:
            self._last = chunk
            return self._accumulator.finish(chunk.content, chunk.tokens)
        if chunk.prompt_progress is not None:
            return None
        self._last = chunk
        return self._accumulator.take(chunk.content, chunk.tokens)

    def tap(self, sink: Sink) -> Callable[[Chunk], bool]:
        """A tap that puts the texts of an answer into `sink` directly from the socket callback, past all waiting generators.

        The engine has only two cores, and waking the generators costs more than everything else that is done for a token.
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
        """The Done event with the usage. Each token beyond the slot's context has shifted one earlier token out."""
        last, stopped_by_us = self._last, not self._last.stop
        measured = Timings(predicted_n=self._accumulator.count, predicted_ms=(time.monotonic_ns() - self._began) / 1e6)
        timings = last.timings if last.timings and not stopped_by_us else measured
        usage = Usage(
            prompt_tokens=max(last.tokens_evaluated, 0),
            cached_tokens=max(timings.cache_n, 0),
            output_tokens=0 if question.silent else max(timings.predicted_n, 0),
            prompt_ns=max(int(timings.prompt_ms * 1e6), 1),
            output_ns=max(int(timings.predicted_ms * 1e6), 1),
        )
        shifted_out = max(0, usage.prompt_tokens + usage.output_tokens - question.slot_ctx) if question.slot_ctx else 0
        return Done("length" if stopped_by_us or last.stop_type == "limit" else "stop", usage, context, truncated + shifted_out)


async def _context_text(engine: RunnerClient, context: tuple[int, ...]) -> str:
    """The text of an earlier exchange without the tokens that the model adds before every prompt: it adds them again."""
    prefix = tuple(await engine.tokenize(""))
    while prefix and context[: len(prefix)] == prefix:
        context = context[len(prefix) :]
    return await engine.detokenize(context) if context else ""


def _renderer(engine: RunnerClient, question: Question, prefix: str) -> RenderPrompt:
    """The function that turns messages into a prompt, as the request wants it."""
    renderer, suffix, think = question.render, question.suffix, question.think

    async def render(messages: tuple[Message, ...]) -> str:
        if isinstance(renderer, Template):  # in a thread: it may take seconds
            return prefix + await asyncio.to_thread(fill, renderer, messages, suffix, think)
        if renderer == "engine":
            return prefix + await engine.render(messages, think)
        return prefix + "\n\n".join(m.content for m in messages)

    return render


async def _fit(engine: RunnerClient, question: Question, render: RenderPrompt, tags: ImageTags) -> Fitted:
    keep = question.sampling.num_keep or 0

    async def tokenize(text: str) -> list[int]:
        return await engine.tokenize(tags.plain(text)) + [0] * tags.tokens(text)

    # A prompt with images is sent as text, which cannot be cut.
    fitted = await fit(tags.messages, question.num_ctx, keep, render, tokenize, cut=question.shift and not tags.images)
    if fitted is None or (fitted.truncated and not question.truncate):
        raise BadRequest(TOO_LONG)
    return fitted


def _placed(engine: RunnerClient, fitted: Fitted, tags: ImageTags) -> str | list[int] | PromptWithImages:
    """A prompt as the engine gets it."""
    return PromptWithImages(*tags.placed(fitted.text, engine.media_marker)) if tags.images else fitted.prompt


async def _ids(engine: RunnerClient, fitted: Fitted, tags: ImageTags) -> list[int]:
    """The ids of a prompt's tokens, without those of its images, which have none."""
    if tags.images or isinstance(fitted.prompt, str):
        return await engine.tokenize(tags.plain(fitted.text))
    return fitted.prompt
