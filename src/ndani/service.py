"""The front desk: one method per verb. Each resolves the model, does the work through one room, and accounts for it.

Dialects call this and nothing below it; nothing here knows a dialect. What arrives are `types`, what leaves are
`types`, and what goes wrong is one error of the tree.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ndani import names
from ndani.engines.answer import Question, answer
from ndani.engines.sampling import merge, read
from ndani.engines.template import Template, parse
from ndani.errors import BadRequest, EngineFailed, Failed, Forbidden, NotFound, StoreFailed, Unsupported
from ndani.ledger.counts import Counts
from ndani.ledger.log import Log
from ndani.runtime.pool import Pool
from ndani.runtime.residence import DEFAULT_CTX, LEAST_CTX, Lease, Want
from ndani.runtime.runner import Runner
from ndani.settings import Settings
from ndani.sources.fetcher import Fetcher
from ndani.store import Entry, Store
from ndani.store.create import Recipe, create
from ndani.store.inspect import Header
from ndani.store.offloop import settled
from ndani.store.parameters import check_parameters
from ndani.store.upload import receive
from ndani.types import ChatRequest, Details, Done, Event, GenerateRequest, Message, Model, Progress, Resident, Sampling

#: Prompt tokens between two looks at the client: a smaller batch than this gains nothing.
MOST_BATCH = 512
LEAST_BATCH = 32

#: A keep-alive above this is for ever: Go's longest duration, in seconds; no calendar shows the date it would end on.
FOREVER = 2**63 / 1e9


#: Models that the service remembers what it needs to know of.
MOST_CARDS = 1000


@dataclass(frozen=True, slots=True)
class Card:
    """What every request needs to know of a model; `want` has what is the same for all its requests."""

    entry: Entry
    options: Sampling
    want: Want
    template: Template | BadRequest | None  # the Go template, or why it cannot be read
    native: bool  # its weights hold a chat template, which the engine applies
    speaks: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """Everything that is known of one model, for `show`."""

    model: Model
    entry: Entry
    header: Header
    weights: Path


class Service:
    """The verbs. Made once by the server, with its rooms; `open` starts the pool's owner, `close` ends every runner."""

    def __init__(self, settings: Settings, store: Store, pool: Pool, fetcher: Fetcher, log: Log, counts: Counts) -> None:
        self.settings = settings
        self.store = store
        self.pool = pool
        self.fetcher = fetcher
        self.log = log
        self.counts = counts
        self._cards: dict[tuple[names.Name, str], Card] = {}

    # Answers.

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event]:
        """Continue a prompt. An empty prompt loads the model; with keep_alive 0 it unloads it."""
        entry = self._resolve(request.model, missing=f"model '{request.model}' not found")
        if not request.prompt and request.keep_alive == 0:
            return self._unload(entry)
        card = await self._card(entry)
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
        return self._answer(card, question, request.keep_alive)

    async def chat(self, request: ChatRequest) -> AsyncGenerator[Event]:
        """Continue a conversation. No messages load the model; with keep_alive 0 they unload it."""
        entry = self._resolve(request.model, missing=f"model '{request.model}' not found")
        if not request.messages and request.keep_alive == 0:
            return self._unload(entry)
        card = await self._card(entry)
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
        return self._answer(card, question, request.keep_alive)

    # Models.

    def models(self) -> list[Model]:
        """The models in the store, the newest first."""
        return self.store.list()

    def residents(self) -> list[Resident]:
        """The models in memory, the one that stays longest first."""
        return self.pool.residents()

    def show(self, model: str) -> Shown:
        """What a model is. Raises NotFound."""
        name = names.parse(model)
        entry = self._resolve(model, missing=f"model '{name}' not found", remote="remote model details are unavailable")
        return Shown(self.store.describe(entry), entry, self.store.header(entry), entry.weights_path)

    async def copy(self, source: str, destination: str) -> None:
        """Give a model one more name. In a thread: another process may hold the store's lock."""
        old = names.parse(source, error=f'source "{source}" is invalid')
        new = names.parse(destination, error=f'destination "{destination}" is invalid')
        await settled(self.store.copy, old, new, missing=f'model "{source}" not found')

    async def delete(self, model: str) -> None:
        """Remove a name, and from memory a model that has lost its last one. A damaged one can be removed too."""
        name = names.parse(model, error=f'name "{model}" is invalid')
        weights: tuple[Path, str] | None = None
        with contextlib.suppress(StoreFailed):
            entry = self.store.find(name, missing=f"model '{model}' not found")
            weights = entry.weights_path, entry.weights.digest
        await settled(self.store.delete, name, missing=f"model '{model}' not found")
        if weights and not weights[0].exists():
            self.pool.unload(weights[1])

    async def pull(self, model: str, insecure: bool = False) -> AsyncGenerator[Progress]:
        """Bring a model into the store, in the fetcher; `insecure` allows a registry without TLS.

        Raises Offline, NotFound, SourceFailed, StoreFailed, Failed.
        """
        async with aclosing(self.fetcher.pull(names.parse(model), insecure)) as steps:
            async for step in steps:
                yield step

    async def push(self, model: str, insecure: bool = False) -> AsyncGenerator[Progress]:
        """Send a model to the registry that its name says, in the fetcher. Raises NotFound, Offline, SourceFailed, Failed."""
        name = self.store.find(names.parse(model), missing=f"model '{model}' not found").name
        async with aclosing(self.fetcher.push(name, insecure)) as steps:
            async for step in steps:
                yield step

    def has_blob(self, digest: str) -> bool:
        """Whether the store has this blob. Raises BadRequest for a digest that is none."""
        return self.store.blobs.has(digest)

    async def receive(self, digest: str, size: int, pieces: AsyncIterator[bytes]) -> bool:
        """Store a blob that a client sends; False when it was here before. Raises BadRequest, StoreFailed."""
        return await receive(self.store, digest, size, pieces)

    async def create(self, model: str, base: str, recipe: Recipe) -> AsyncGenerator[Progress]:
        """Make a model of another (`base`, pulled when it is not here) or of blobs. Raises BadRequest, StoreFailed, …"""
        name = names.parse(model)
        await asyncio.to_thread(_check, recipe)
        if base:
            try:
                entry = self._resolve(base, missing="")
            except NotFound:
                async with aclosing(self.pull(base)) as steps:
                    async for step in steps:
                        if step.status != "success":  # that is the last word of the whole
                            yield step
                entry = self._resolve(base, missing=f"model '{base}' not found")
            recipe = replace(recipe, base=entry)
        old = None
        with contextlib.suppress(NotFound, StoreFailed):
            old = self.store.find(name).weights
        making = create(self.store, name, recipe)
        try:
            while step_made := await settled(next, making, None):
                yield step_made
        finally:
            await settled(making.close)
        if old and not self.store.blobs.has(old.digest):
            self.pool.unload(old.digest)

    # The house itself.

    def health(self) -> dict[str, Any]:
        """What is loaded and counted. Raises Failed with the reason when nothing could be served."""
        if self.pool.closing:
            raise Failed("the server is stopping")
        self.store.list()
        return {
            "status": "ok",
            "loaded": [r.name for r in self.pool.residents()],
            "waiting": self.pool.waiting,
            "unconfined": [r.name for r in self.pool.residents() if r.confined != "confined"],
            "counts": self.counts.shown(),
        }

    async def doctor(self, probe: Callable[[Runner], Any]) -> tuple[str, str | None, Any]:
        """Probe a real runner: the one in memory, else the smallest model's, else the echo engine's.

        Returns the engine, the model or None, and what `probe` found.
        """
        want, name = self.pool.resident(), None
        models = [] if want else sorted(self.store.list(), key=lambda m: m.size)
        if models:
            want = self._want(await self._card(self.store.find(names.parse(models[0].name))), Sampling())
        if want is None:
            want = Want("echo", "echo", "", Details(), None, 0, 0, 0, engine="echo")
        else:
            name = want.name
        async with self.pool.lease(want, self._keep_alive(None) if name else 0.0):
            child = self.pool.child(want.key)
            if not isinstance(child, Runner):
                raise EngineFailed("the runner went away; try again")
            return want.engine, name, await probe(child)

    # How it is done.

    def _resolve(self, model: str, missing: str, remote: str = "remote model is unavailable") -> Entry:
        if not model:
            raise NotFound("model '' not found")
        name = names.parse(model)
        if name.tag == "cloud" or name.tag.endswith("-cloud"):
            raise Forbidden(f"ollama cloud is disabled: {remote}")
        return self.store.find(name, missing=missing)

    async def _card(self, entry: Entry) -> Card:
        """What every request needs to know of a model, worked out once for each content that a name has had."""
        key = (entry.name, entry.digest)
        if key not in self._cards:
            if len(self._cards) >= MOST_CARDS:
                self._cards.clear()
            self._cards[key] = await asyncio.to_thread(self._describe, entry)
        return self._cards[key]

    def _describe(self, entry: Entry) -> Card:
        if entry.projector or entry.adapter:
            raise Unsupported("models with a projector or an adapter are not in this version")
        model, header = self.store.describe(entry), self.store.header(entry)
        want = Want(
            key=entry.weights.digest,
            name=str(entry.name),
            digest=entry.digest,
            details=model.details,
            weights=entry.weights_path,
            size=entry.weights.size,
            kv_bytes=header.kv_bytes_per_token(self.settings.kv_cache_type),
            trained_ctx=header.context_length,
            engine="echo" if model.details.format == "echo" else "llama",
        )
        native = header.chat_template is not None
        # With a renderer of Ollama's own its template is a stopgap that says nothing; the weights know better.
        template = None if native and entry.config.renderer else _read(entry.template)
        return Card(entry, read(entry.params)[0], want, template, native, "completion" in model.capabilities)

    def _want(self, card: Card, said: Sampling) -> Want:
        """What a request needs of a runner: said by it, else by the model, else by the settings."""
        default = self.settings.context_length if self.settings.context_length > 0 else DEFAULT_CTX
        return replace(
            card.want,
            num_ctx=said.num_ctx or default,
            # llama.cpp aborts with a batch smaller than its slots, and looks for a client that left only between two.
            num_batch=None if said.num_batch is None else max(min(said.num_batch, MOST_BATCH), self.settings.num_parallel, LEAST_BATCH),
            num_thread=said.num_thread if said.num_thread and said.num_thread > 0 else None,
            num_gpu=None if said.num_gpu == -1 else said.num_gpu,
            main_gpu=said.main_gpu,
            use_mmap=said.use_mmap,
        )

    def _keep_alive(self, said: float | None) -> float:
        seconds = self.settings.keep_alive if said is None else said
        return -1.0 if seconds > FOREVER else seconds

    async def _unload(self, entry: Entry) -> AsyncGenerator[Event]:
        self.pool.unload(entry.weights.digest)
        yield Done("unload")

    async def _load(self, card: Card, sampling: Sampling, keep_alive: float | None) -> AsyncGenerator[Event]:
        async with self.pool.lease(self._want(card, merge(sampling, card.options)), self._keep_alive(keep_alive)):
            pass
        yield Done("load")

    async def _answer(self, card: Card, question: Question, keep_alive: float | None) -> AsyncGenerator[Event]:
        """Lease, ask, account: the road of every answer."""
        started = time.monotonic_ns()
        async with self.pool.lease(self._want(card, question.sampling), self._keep_alive(keep_alive)) as lease:
            asked = replace(question, num_ctx=_context(question.sampling.num_ctx, lease), slot_ctx=lease.num_ctx)
            try:
                async with aclosing(answer(lease.engine, asked)) as events:
                    async for event in events:
                        if isinstance(event, Done):
                            usage = replace(event.usage, load_ns=max(lease.waited_ns, 1), total_ns=time.monotonic_ns() - started)
                            event = replace(event, usage=usage)
                            self.counts.answered(event)
                        yield event
            except EngineFailed:
                if self.pool.closing:
                    raise Failed("the server is stopping") from None
                raise


def _read(text: str | None) -> Template | BadRequest | None:
    """A model's own template. One that cannot be read is an error only for those who need it."""
    try:
        return parse(text) if text else None
    except BadRequest as error:
        return error


def _check(recipe: Recipe) -> None:
    """Refuse what is wrong with a recipe and only an engine knows of. Raises BadRequest."""
    read(check_parameters(recipe.parameters)[0])
    if isinstance(error := _read(recipe.template), BadRequest):
        raise BadRequest(f"template error: {error}")


async def _rendering(card: Card, request: GenerateRequest | ChatRequest) -> Template | Literal["engine", "plain"]:
    """How the messages of a request become a prompt. Raises BadRequest, Unsupported."""
    said, suffix, raw = "", "", False
    if isinstance(request, GenerateRequest):
        said, suffix, raw = request.template, request.suffix, request.raw
    template = await asyncio.to_thread(_read, said) if said else card.template
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
