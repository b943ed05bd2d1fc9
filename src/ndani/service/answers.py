"""The verbs that make answers: generate and chat. Each finds the model, leases a runner, asks, and accounts for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Literal

from ndani import names
from ndani.engines.answer import Question, answer
from ndani.engines.sampling import merge
from ndani.engines.template import Template
from ndani.errors import BadRequest, EngineFailed, Failed, StoreFailed, Unsupported
from ndani.ledger.counts import Counts
from ndani.runtime.pool import Pool
from ndani.runtime.residence import Lease
from ndani.runtime.spec import LEAST_CTX
from ndani.service.cards import Card, Cards, read_template, runner_key
from ndani.types import ChatRequest, Done, Event, GenerateRequest, Message, Outlet, Sampling

#: What a request may ask for and a later version will bring, with what is said of it until then.
LATER = {
    "thinking": "thinking is not in this version; leave out think, or set it to false",
    "tools": "tools are not in this version; leave them out",
    "tool_calls": "tool_calls are not in this version; leave them out",
    "images": "images are not in this version; leave them out",
    "format": "format is not in this version; ask for free text",
    "logprobs": "logprobs are not in this version; leave out logprobs and top_logprobs",
}


#: An answer being made, and the names of what the model asks for and nothing obeys.
Answering = tuple[AsyncGenerator[Event], tuple[str, ...]]


class Answers:
    """What can be asked of a model."""

    def __init__(self, cards: Cards, pool: Pool, counts: Counts) -> None:
        self._cards = cards
        self._pool = pool
        self._counts = counts

    async def generate(self, request: GenerateRequest, outlet: Outlet | None = None) -> Answering:
        """Continue a prompt. An empty prompt loads the model; with keep_alive 0 it unloads it.

        Texts that `outlet` takes are not among the events.
        """
        if not request.prompt and request.keep_alive == 0:
            return self._unload(request.model), ()
        entry = self._cards.find(request.model, missing=f"model '{request.model}' not found")
        if request.raw and (request.template or request.system or request.context):
            raise BadRequest("raw mode does not support template, system, or context")
        card = await self._cards.card(entry)
        template = await asyncio.to_thread(read_template, request.template) if request.template else card.template
        _require(card, request, "generate")
        if request.suffix and not (isinstance(template, Template) and template.mentions("suffix")):
            raise Unsupported(f"{entry.name.full} does not support insert")
        _allow(request)
        if not request.prompt:
            return self._load(card, request.sampling, request.keep_alive), ()
        said: tuple[Message, ...] = (Message("user", request.prompt),)
        system = request.system or entry.system
        if not request.raw:
            turns = entry.messages if request.context is None else ()
            said = (*([Message("system", system)] if system else []), *turns, *said)
        question = Question(
            said,
            merge(request.sampling, card.options),
            render="plain" if request.raw else _rendering(card, template),
            suffix=request.suffix,
            think=request.think,
            render_only=request.render_only,
            context=request.context or (),
            truncate=request.truncate,
            shift=request.shift,
            wants_context=not request.raw,
        )
        unobeyed = () if request.raw else card.unobeyed
        if request.template or request.suffix:  # then no renderer would be asked
            unobeyed = tuple(word for word in unobeyed if word != "renderer")
        return self._answer(card, question, request.keep_alive, outlet), unobeyed

    async def chat(self, request: ChatRequest, outlet: Outlet | None = None) -> Answering:
        """Continue a conversation. No messages load the model; with keep_alive 0 they unload it. `outlet`: as in `generate`."""
        if not request.messages and request.keep_alive == 0:
            return self._unload(request.model), ()
        entry = self._cards.find(request.model, missing=f"model '{request.model}' not found")
        card = await self._cards.card(entry)
        _require(card, request, "chat")
        _allow(request)
        if not request.messages:
            return self._load(card, request.sampling, request.keep_alive), ()
        said = entry.messages + request.messages
        if entry.system and request.messages[0].role != "system":
            said = (Message("system", entry.system), *said)
        question = Question(
            said,
            merge(request.sampling, card.options),
            render=_rendering(card, card.template),
            think=request.think,
            render_only=request.render_only,
            truncate=request.truncate,
            shift=request.shift,
        )
        return self._answer(card, question, request.keep_alive, outlet), card.unobeyed

    # How it is done.

    def _unload(self, model: str) -> AsyncGenerator[Event]:
        """Let a model go, also one whose manifest has been damaged since: it is in memory by its name."""
        try:
            self._pool.unload(runner_key(self._cards.find(model, missing=f"model '{model}' not found")))
        except StoreFailed:
            self._pool.unload_named(str(names.parse(model)))
        return _unloaded()

    async def _load(self, card: Card, sampling: Sampling, keep_alive: float | None) -> AsyncGenerator[Event]:
        async with self._pool.lease(self._cards.spec(card, merge(sampling, card.options)), self._cards.keep_alive(keep_alive)):
            pass
        yield Done("load")

    async def _answer(self, card: Card, question: Question, keep_alive: float | None, outlet: Outlet | None) -> AsyncGenerator[Event]:
        """Lease, ask, account: the road of every answer."""
        started = time.monotonic_ns()
        async with self._pool.lease(self._cards.spec(card, question.sampling), self._cards.keep_alive(keep_alive)) as lease:
            asked = replace(question, num_ctx=_context(question.sampling.num_ctx, lease), slot_ctx=lease.num_ctx)
            try:
                async with aclosing(answer(lease.engine, asked, outlet)) as events:
                    async for event in events:
                        if isinstance(event, Done):
                            usage = replace(event.usage, load_ns=max(lease.waited_ns, 1), total_ns=time.monotonic_ns() - started)
                            event = replace(event, usage=usage)
                            self._counts.answered(event)
                        yield event
            except EngineFailed:
                if self._pool.closing:
                    raise Failed("the server is stopping") from None
                raise


async def _unloaded() -> AsyncGenerator[Event]:
    yield Done("unload")


def _require(card: Card, request: GenerateRequest | ChatRequest, verb: str) -> None:
    """Refuse what the model cannot do, in Ollama's order (reference 1.6); its options come after that, in `_allow`."""
    if "thinking" in request.asks and "thinking" not in card.capabilities:
        raise Unsupported(f'"{request.model}" does not support thinking')
    if "completion" not in card.capabilities:
        raise Unsupported(f'"{request.model}" does not support {verb}')
    if "tools" in request.asks and "tools" not in card.capabilities:
        raise Unsupported(f"{card.entry.name.full} does not support tools")


def _allow(request: GenerateRequest | ChatRequest) -> None:
    """Refuse what the model could do and this version cannot, then options that make no sense."""
    for word, sentence in LATER.items():
        if word in request.asks:
            raise Unsupported(sentence)
    if request.wrong:
        raise BadRequest(request.wrong)


def _rendering(card: Card, template: Template | BadRequest | None) -> Template | Literal["engine", "plain"]:
    """How the messages of a request become a prompt. Raises BadRequest where its template cannot be read."""
    if isinstance(template, BadRequest):
        raise BadRequest(str(template))
    return template or ("engine" if card.native else "plain")


def _context(said: int | None, lease: Lease) -> int:
    """The context of one request: what it asked for, at most what its slot has."""
    return max(min(said, lease.num_ctx), LEAST_CTX) if said else lease.num_ctx
