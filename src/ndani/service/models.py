"""The verbs about models: list, show, copy, delete, pull, push, create."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

from ndani import names
from ndani.convert.quant_types import parse_kind
from ndani.convert.supervisor import Supervisor
from ndani.engines.sampling import parse_options
from ndani.errors import BadRequest, NotFound, StoreFailed
from ndani.ledger.log import Log
from ndani.prompts import read_template
from ndani.runtime.pool import Pool
from ndani.service.resolver import ModelResolver, require_local, runner_key
from ndani.service.weights import made
from ndani.sources.fetcher import Fetcher, without_success
from ndani.store import Store, StoredModel
from ndani.store.create import Recipe, create
from ndani.store.handover import accept, prepare
from ndani.store.parameters import check_parameters
from ndani.store.threads import in_thread, in_thread_reporting
from ndani.store.upload import receive
from ndani.store.weights_info import WeightsInfo
from ndani.types import Model, Progress, Report, Resident


@dataclass(frozen=True, slots=True)
class Shown:
    """Everything that is known of one model, for `show`."""

    model: Model
    entry: StoredModel
    header: WeightsInfo
    weights: Path


class Models:
    """What can be done with the models of a store."""

    def __init__(self, store: Store, resolver: ModelResolver, pool: Pool, fetcher: Fetcher, supervisor: Supervisor, log: Log) -> None:
        self.store = store
        self._resolver = resolver
        self._pool = pool
        self._fetcher = fetcher
        self._supervisor = supervisor
        self._log = log
        self._told: set[str] = set()

    async def installed(self) -> list[Model]:
        """The models in the store, the newest first; those that cannot be read are left out, which the log says once.

        In a thread: what was never looked at is read from the disk.
        """
        found = await asyncio.to_thread(self.store.list)
        for sentence in self.store.damaged:
            if sentence not in self._told:
                self._log.warn(sentence)
        self._told = set(self.store.damaged)
        return found

    def residents(self) -> list[Resident]:
        """The models in memory, the one that stays longest first."""
        return self._pool.residents()

    async def show(self, model: str) -> Shown:
        """What a model is. Raises NotFound. In a thread: the head of weights that were never looked at takes a while to read."""
        return await asyncio.to_thread(self._shown, model)

    def _shown(self, model: str) -> Shown:
        name = names.parse(model)
        entry = self._resolver.find(model, missing=f"model '{name}' not found", remote="remote model details are unavailable")
        return Shown(self.store.describe(entry), entry, self.store.header(entry), entry.weights_path)

    async def copy(self, source: str, destination: str) -> None:
        """Give a model one more name. In a thread: another process may hold the store's lock."""
        old = names.parse(source, error=f'source "{source}" is invalid')
        new = names.parse(destination, error=f'destination "{destination}" is invalid')
        require_local(new)
        replaced = self._runs(new)
        await in_thread(self.store.copy, old, new, missing=f'model "{source}" not found')
        self._let_go(replaced)

    async def delete(self, model: str) -> None:
        """Remove a name, and from memory a model that has lost its last one. A damaged one can be removed too.

        What is removed is gone, so the name is taken to the letter: nothing around it is cut off, and no scheme.
        """
        name = names.parse(model, error=f'name "{model}" is invalid', scheme=False)
        old = self._runs(name)
        await in_thread(self.store.delete, name, missing=f"model '{model}' not found")
        if old:
            self._let_go(old)
        else:
            self._pool.unload_by_name(str(name))

    async def pull(self, model: str, insecure: bool, report: Report) -> None:
        """Bring a model into the store, in the fetcher; `insecure` allows a registry without TLS.

        What it asks for and this version lacks is said before the last step. Raises Offline, NotFound, SourceFailed,
        StoreFailed, Failed.
        """
        name = names.parse(model)
        await self._fetcher.pull(name, insecure, without_success(report))
        for warning in await asyncio.to_thread(self._warnings, name):
            report(Progress(f"warning: {warning}"))
        report(Progress("success"))

    async def push(self, model: str, insecure: bool, report: Report) -> None:
        """Send a model to the registry that its name says, in the fetcher. Raises NotFound, Offline, SourceFailed, Failed."""
        name = self.store.find(names.parse(model), missing=f"model '{model}' not found").name
        await self._fetcher.push(name, insecure, report)

    def has_blob(self, digest: str) -> bool:
        """Whether the store has this blob, and it was not found damaged. Raises BadRequest for a digest that is none."""
        return self.store.blobs.sound(digest)

    async def receive(self, digest: str, size: int, pieces: AsyncIterator[bytes]) -> bool:
        """Store a blob that a client sends; False when it was here before. Raises BadRequest, StoreFailed."""
        return await receive(self.store, digest, size, pieces)

    async def prepare_handover(self) -> str:
        """A place in the store where its own user may link a file to. Raises StoreFailed, Unsupported."""
        return await in_thread(prepare, self.store.layout)

    async def accept_handover(self, place: str, report: Report) -> None:
        """Make a blob of what was linked there; the last step has its digest. Raises BadRequest, NotFound, StoreFailed."""
        await in_thread_reporting(lambda report: accept(self.store, place, report), report)

    async def create(self, model: str, base: str, recipe: Recipe, report: Report) -> None:
        """Make a model of another (`base`, pulled when it is not here) or of blobs, converted, joined and quantised as it takes.

        Raises BadRequest, StoreFailed, …
        """
        name = names.parse(model)
        require_local(name)
        await asyncio.to_thread(_check, recipe)
        if base:
            try:
                entry = self._resolver.find(base, missing="")
            except NotFound:
                await self._fetcher.pull(names.parse(base), False, without_success(report))
                entry = self._resolver.find(base, missing=f"model '{base}' not found")
            recipe = replace(recipe, base=entry)
        old = self._runs(name)
        async with made(self.store, self._supervisor, recipe, report) as ready:
            await in_thread_reporting(lambda report: create(self.store, name, ready, report), report)
        self._let_go(old)

    def _warnings(self, name: names.Name) -> list[str]:
        with contextlib.suppress(NotFound, StoreFailed):  # gone again, or odd: whoever asks for it is told
            return self.store.find(name).config.warnings
        return []

    def _runs(self, name: names.Name) -> StoredModel | None:
        """What a name stands for, where it stands for something that a runner may have loaded."""
        with contextlib.suppress(NotFound, StoreFailed):
            entry = self.store.find(name)
            return entry if entry.weights else None
        return None

    def _let_go(self, old: StoredModel | None) -> None:
        """Unload what the store has no more: nobody can ask for it again."""
        if old and not all(path.exists() for path in (old.weights_path, old.adapter) if path):
            self._pool.unload(runner_key(old))


def _check(recipe: Recipe) -> None:
    """Refuse what is wrong with a recipe and only an engine knows of. Raises BadRequest."""
    parse_options(check_parameters(recipe.parameters)[0])
    if recipe.quantize:
        parse_kind(recipe.quantize)
    if error := read_template(recipe.template).error:
        raise BadRequest(f"template error: {error}")
