"""The verbs that make answers: generate and chat. Each finds the model, leases a runner, asks, and accounts for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Literal

from ndani.engines.answer import Question, answer
from ndani.engines.sampling import merge
from ndani.engines.template import Template
from ndani.errors import BadRequest, EngineFailed, Failed, Unsupported
from ndani.ledger.counts import Counts
from ndani.runtime.pool import Pool
from ndani.runtime.residence import LEAST_CTX, Lease
from ndani.service.cards import Card, Cards, read_template
from ndani.store import Entry
from ndani.types import ChatRequest, Done, Event, GenerateRequest, Message, Outlet, Sampling


class Answers:
    """What can be asked of a model."""

    def __init__(self, cards: Cards, pool: Pool, counts: Counts) -> None:
        self._cards = cards
        self._pool = pool
        self._counts = counts

    async def generate(self, request: GenerateRequest, outlet: Outlet | None = None) -> AsyncGenerator[Event]:
        """Continue a prompt. An empty prompt loads the model; with keep_alive 0 it unloads it.

        Texts that `outlet` takes are not among the events.
        """
        entry = self._cards.find(request.model, missing=f"model '{request.model}' not found")
        if not request.prompt and request.keep_alive == 0:
            return self._unload(entry)
        card = await self._cards.card(entry)
        if not request.prompt:
            return self._load(card, request.sampling, request.keep_alive)
        _require_speech(card, request.model, "generate")
        way = await _rendering(card, request)
        said: tuple[Message, ...] = (Message("user", request.prompt),)
        system = request.system if request.system is not None else entry.system
        if not request.raw:
            said = (*([Message("system", system)] if system else []), *(() if request.context else entry.messages), *said)
        question = Question(
            said,
            merge(request.sampling, card.options),
            render=way,
            suffix=request.suffix,
            render_only=request.render_only,
            context=request.context or (),
            truncate=request.truncate,
            shift=request.shift,
            wants_context=not request.raw,
        )
        return self._answer(card, question, request.keep_alive, outlet)

    async def chat(self, request: ChatRequest, outlet: Outlet | None = None) -> AsyncGenerator[Event]:
        """Continue a conversation. No messages load the model; with keep_alive 0 they unload it. `outlet`: as in `generate`."""
        entry = self._cards.find(request.model, missing=f"model '{request.model}' not found")
        if not request.messages and request.keep_alive == 0:
            return self._unload(entry)
        card = await self._cards.card(entry)
        if not request.messages:
            return self._load(card, request.sampling, request.keep_alive)
        _require_speech(card, request.model, "chat")
        said = entry.messages + request.messages
        if entry.system and request.messages[0].role != "system":
            said = (Message("system", entry.system), *said)
        question = Question(
            said,
            merge(request.sampling, card.options),
            render=await _rendering(card, request),
            render_only=request.render_only,
            truncate=request.truncate,
            shift=request.shift,
        )
        return self._answer(card, question, request.keep_alive, outlet)

    # How it is done.

    async def _unload(self, entry: Entry) -> AsyncGenerator[Event]:
        self._pool.unload(entry.weights.digest)
        yield Done("unload")

    async def _load(self, card: Card, sampling: Sampling, keep_alive: float | None) -> AsyncGenerator[Event]:
        async with self._pool.lease(self._cards.want(card, merge(sampling, card.options)), self._cards.keep_alive(keep_alive)):
            pass
        yield Done("load")

    async def _answer(self, card: Card, question: Question, keep_alive: float | None, outlet: Outlet | None) -> AsyncGenerator[Event]:
        """Lease, ask, account: the road of every answer."""
        started = time.monotonic_ns()
        async with self._pool.lease(self._cards.want(card, question.sampling), self._cards.keep_alive(keep_alive)) as lease:
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


async def _rendering(card: Card, request: GenerateRequest | ChatRequest) -> Template | Literal["engine", "plain"]:
    """How the messages of a request become a prompt. Raises BadRequest, Unsupported."""
    said, suffix, raw = "", "", False
    if isinstance(request, GenerateRequest):
        said, suffix, raw = request.template, request.suffix, request.raw
    template = await asyncio.to_thread(read_template, said) if said else card.template
    if suffix and not (isinstance(template, Template) and template.mentions("suffix")):
        raise Unsupported(f"{card.entry.name.full} does not support insert")
    if raw:
        return "plain"
    if isinstance(template, BadRequest):
        raise BadRequest(str(template))
    return template or ("engine" if card.native else "plain")


def _require_speech(card: Card, model: str, verb: str) -> None:
    if not card.speaks:
        raise Unsupported(f'"{model}" does not support {verb}')


def _context(said: int | None, lease: Lease) -> int:
    """The context of one request: what it asked for, at most what its slot has."""
    return max(min(said, lease.num_ctx), LEAST_CTX) if said else lease.num_ctx
