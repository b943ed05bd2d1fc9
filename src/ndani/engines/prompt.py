"""From a conversation to the prompt of one request: rendered, and made to fit its context.

Rendering is done by a model's own TEMPLATE, or by the chat template that the engine has read from the weights.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from ndani.engines.client import PromptTooLong, RunnerClient
from ndani.engines.wire import PromptWithImages
from ndani.errors import BadRequest
from ndani.prompts import fill
from ndani.prompts.fit import Fitted, RenderPrompt, fit
from ndani.prompts.template import Template
from ndani.types import Message

if TYPE_CHECKING:
    from ndani.engines.question import Question

TOO_LONG = (
    "the prompt is longer than the context length currently available to the model; shorten the prompt, "
    "adjust the context length in settings, or use a model with a longer context length"
)


async def prompt_renderer(engine: RunnerClient, question: Question) -> RenderPrompt:
    """The function that turns messages into a prompt, as the question wants it."""
    prefix = await _context_text(engine, question.context) if question.context else ""
    renderer, tools = question.render, question.tools

    async def render(messages: tuple[Message, ...]) -> str:
        if question.tags:
            messages = question.tags.put(messages)
        if isinstance(renderer, Template):  # in a thread: it may take seconds
            prompt = await asyncio.to_thread(fill, renderer, messages, question.suffix, question.think, tools)
        elif renderer == "engine":
            prompt = await engine.render(messages, question.think, tools)
        else:
            prompt = "\n\n".join(m.content for m in messages)
        return prefix + prompt + question.prompt_end

    return render


async def fit_prompt(engine: RunnerClient, question: Question, render: RenderPrompt, refusal: PromptTooLong | None = None) -> Fitted:
    """The prompt of as much of the conversation as fits, as token ids. Raises BadRequest when nothing may be left out.

    One with images stays text, whose middle cannot be cut. The `refusal` of the whole prompt tells how many tokens an image has.
    """
    keep, tags = question.sampling.num_keep or 0, question.tags
    if tags is None:
        fitted = await fit(question.messages, question.num_ctx, keep, render, engine.tokenize, cut=question.shift)
    else:
        if refusal:
            prompt = await render(question.messages)
            tags.learn(prompt, len(await engine.tokenize(tags.plain(prompt))), refusal.tokens)

        async def tokenize(prompt: str) -> list[int]:
            return await engine.tokenize(tags.plain(prompt)) + [0] * tags.tokens(prompt)

        fitted = await fit(question.messages, question.num_ctx, keep, render, tokenize, cut=False)
        fitted = fitted and replace(fitted, prompt=await render(fitted.messages))
    if fitted is None or (fitted.truncated and not question.truncate):
        raise BadRequest(TOO_LONG)
    return fitted


async def prompt_ids(engine: RunnerClient, question: Question, fitted: Fitted) -> list[int]:
    """The token ids of a prompt; its images have none."""
    if isinstance(fitted.prompt, list):
        return fitted.prompt
    return await engine.tokenize(question.tags.plain(fitted.prompt) if question.tags else fitted.prompt)


def prompt_with_images(engine: RunnerClient, question: Question, prompt: str | list[int]) -> str | list[int] | PromptWithImages:
    """A prompt as the engine gets it."""
    if question.tags is None or isinstance(prompt, list):
        return prompt
    return PromptWithImages(*question.tags.placed(prompt, engine.media_marker))


async def continued_prompt(engine: RunnerClient, question: Question, fitted: Fitted, answer: list[int], end: str) -> str | list[int]:
    """The prompt together with a part of its answer, and a text."""
    if question.tags and isinstance(fitted.prompt, str):
        return fitted.prompt + (await engine.detokenize(answer) if answer else "") + end
    return [*await prompt_ids(engine, question, fitted), *answer, *await engine.tokenize(end, special=False)]


async def _context_text(engine: RunnerClient, context: tuple[int, ...]) -> str:
    """The text of an earlier exchange without the tokens that the model adds before every prompt: it adds them again."""
    prefix = tuple(await engine.tokenize(""))
    while prefix and context[: len(prefix)] == prefix:
        context = context[len(prefix) :]
    return await engine.detokenize(context) if context else ""
