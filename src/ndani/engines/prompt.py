"""From a conversation to the prompt of one request: rendered, and made to fit its context.

Rendering is done by a model's own TEMPLATE, or by the chat template that the engine has read from the weights.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ndani.engines.client import RunnerClient
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
        if isinstance(renderer, Template):  # in a thread: it may take seconds
            prompt = await asyncio.to_thread(fill, renderer, messages, question.suffix, question.think, tools)
        elif renderer == "engine":
            prompt = await engine.render(messages, question.think, tools)
        else:
            prompt = "\n\n".join(m.content for m in messages)
        return prefix + prompt + question.prompt_end

    return render


async def fit_prompt(engine: RunnerClient, question: Question, render: RenderPrompt) -> Fitted:
    """The prompt of as much of the conversation as fits, as token ids. Raises BadRequest when nothing may be left out."""
    keep = question.sampling.num_keep or 0
    fitted = await fit(question.messages, question.num_ctx, keep, render, engine.tokenize, cut=question.shift)
    if fitted is None or (fitted.truncated and not question.truncate):
        raise BadRequest(TOO_LONG)
    return fitted


async def prompt_ids(engine: RunnerClient, fitted: Fitted) -> list[int]:
    """The token ids of a prompt."""
    return fitted.prompt if isinstance(fitted.prompt, list) else await engine.tokenize(fitted.prompt)


async def _context_text(engine: RunnerClient, context: tuple[int, ...]) -> str:
    """The text of an earlier exchange without the tokens that the model adds before every prompt: it adds them again."""
    prefix = tuple(await engine.tokenize(""))
    while prefix and context[: len(prefix)] == prefix:
        context = context[len(prefix) :]
    return await engine.detokenize(context) if context else ""
