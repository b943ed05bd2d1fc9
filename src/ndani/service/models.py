"""The operations on models: list, show, copy, delete, pull, push, create, and blobs for create. Answers are in `answers`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

from ndani import names
from ndani.background import run_in_thread, run_in_thread_reporting
from ndani.convert.quant_types import parse_kind
from ndani.convert.supervisor import Supervisor
from ndani.engines.sampling import parse_options
from ndani.errors import BadRequest, NotFound, StoreFailed
from ndani.ledger.log import Log
from ndani.prompts import read_template
from ndani.runtime.pool import Pool
from ndani.service.resolver import ModelResolver, require_local, runner_key
from ndani.service.weights import prepared_weights
from ndani.sources.fetcher import Fetcher, without_success
from ndani.store import Store, StoredModel
from ndani.store.create import Recipe, create
from ndani.store.handover import accept_file, create_slot
from ndani.store.parameters import check_parameters
from ndani.store.upload import receive
from ndani.store.weights_info import WeightsInfo
from ndani.types import SUCCESS, Model, Progress, Report, Resident


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """Everything known about one model, for /api/show."""

    model: Model
    entry: StoredModel
    header: WeightsInfo
    weights: Path
    projector: WeightsInfo | None = None


class Models:
    """Lists, shows, changes and makes the models of a store."""

    def __init__(self, store: Store, resolver: ModelResolver, pool: Pool, fetcher: Fetcher, supervisor: Supervisor, log: Log) -> None:
        self.store = store
        self._resolver = resolver
        self._pool = pool
        self._fetcher = fetcher
        self._supervisor = supervisor
        self._log = log
        self._logged: set[str] = set()

    async def installed(self) -> list[Model]:
        """The models in the store, the newest first. Damaged ones are left out, with one log line for each.

        Runs in a thread, since models that are not cached yet are read from the disk.
        """
        models = await asyncio.to_thread(self.store.list_models)
        for sentence in self.store.damaged:
            if sentence not in self._logged:
                self._log.warn(sentence)
        self._logged = set(self.store.damaged)
        return models

    def residents(self) -> list[Resident]:
        """The models in memory, the one that stays longest first."""
        return self._pool.residents()

    async def show(self, model: str) -> ModelDescription:
        """Describe a model. Raises NotFound. Runs in a thread, since reading the header of weights for the first time takes a while."""
        return await asyncio.to_thread(self._describe, model)

    def _describe(self, model: str) -> ModelDescription:
        name = names.parse(model)
        entry = self._resolver.find(model, missing=f"model '{name}' not found", remote="remote model details are unavailable")
        headers = self.store.header(entry), self.store.projector_header(entry)
        return ModelDescription(self.store.describe(entry), entry, headers[0], entry.weights_path, headers[1])

    async def copy(self, source: str, destination: str) -> None:
        """Give a model another name. Runs in a thread, since another process may hold the store's lock."""
        old_name = names.parse(source, error=f'source "{source}" is invalid')
        new_name = names.parse(destination, error=f'destination "{destination}" is invalid')
        require_local(new_name)
        replaced = self._loadable(new_name)
        await run_in_thread(self.store.copy, old_name, new_name, not_found=f'model "{source}" not found')
        self._unload_if_deleted(replaced)

    async def delete(self, model: str) -> None:
        """Remove a name, and unload the model if that was its last one. A damaged model can be removed too.

        Removing cannot be undone, so the name must be exact: blanks around it are not cut off, and a scheme is not accepted.
        """
        name = names.parse(model, error=f'name "{model}" is invalid', allow_scheme=False)
        previous = self._loadable(name)
        await run_in_thread(self.store.delete, name, not_found=f"model '{model}' not found")
        if previous:
            self._unload_if_deleted(previous)
        else:
            self._pool.unload_by_name(str(name))

    async def pull(self, model: str, insecure: bool, report: Report) -> None:
        """Download a model into the store, in the fetcher process; `insecure` allows a registry without TLS.

        Before the last step, warnings name what the model needs and this version lacks. Raises Offline, NotFound, SourceFailed,
        StoreFailed, Failed.
        """
        name = names.parse(model)
        await self._fetcher.pull(name, insecure, without_success(report))
        for warning in await asyncio.to_thread(self._warnings, name):
            report(Progress(f"warning: {warning}", warning=True))
        report(SUCCESS)

    async def push(self, model: str, insecure: bool, report: Report) -> None:
        """Upload a model to the registry in its name, in the fetcher process. Raises NotFound, Offline, SourceFailed, Failed."""
        name = self.store.find(names.parse(model), not_found=f"model '{model}' not found").name
        await self._fetcher.push(name, insecure, report)

    def has_blob(self, digest: str) -> bool:
        """Whether the store has this blob and does not know it to be damaged. Raises BadRequest for an invalid digest."""
        return self.store.blobs.is_intact(digest)

    async def receive(self, digest: str, size: int, chunks: AsyncIterator[bytes]) -> bool:
        """Store a blob that a client uploads; False if the store had it before. Raises BadRequest, StoreFailed."""
        return await receive(self.store, digest, size, chunks)

    async def prepare_handover(self) -> str:
        """A path in the store to which the store's own user may hard-link a file. Raises StoreFailed, Unsupported."""
        return await run_in_thread(create_slot, self.store.layout)

    async def accept_handover(self, place: str, report: Report) -> None:
        """Make a blob of the file that was linked there; the last step has its digest. Raises BadRequest, NotFound, StoreFailed."""
        await run_in_thread_reporting(lambda report: accept_file(self.store, place, report), report)

    async def create(self, model: str, base: str, recipe: Recipe, report: Report) -> None:
        """Make a model from another one (`base`, pulled if it is not here) or from blobs; convert, join and quantise as needed.

        Raises BadRequest, StoreFailed, …
        """
        name = names.parse(model)
        require_local(name)
        await asyncio.to_thread(_check_recipe, recipe)
        if base:
            try:
                entry = self._resolver.find_exactly(base, missing="")
            except NotFound:
                await self._fetcher.pull(names.parse(base), False, without_success(report))
                entry = self._resolver.find_exactly(base, missing=f"model '{base}' not found")
            recipe = replace(recipe, base=entry)
        previous = self._loadable(name)
        async with prepared_weights(self.store, self._supervisor, recipe, report) as prepared:
            await run_in_thread_reporting(lambda report: create(self.store, name, prepared, report), report)
        self._unload_if_deleted(previous)

    def _warnings(self, name: names.Name) -> list[str]:
        with contextlib.suppress(NotFound, StoreFailed):  # deleted meanwhile, or damaged: a request for it gets the error
            return self.store.find(name).config.warnings
        return []

    def _loadable(self, name: names.Name) -> StoredModel | None:
        """The model of a name, if it exists and has weights that a runner may have loaded."""
        with contextlib.suppress(NotFound, StoreFailed):
            entry = self.store.find(name)
            return entry if entry.weights else None
        return None

    def _unload_if_deleted(self, previous: StoredModel | None) -> None:
        """Unload a model whose files are no longer in the store: no request can use it again."""
        if previous and not all(path.exists() for path in previous.loaded_paths):
            self._pool.unload(runner_key(previous))


def _check_recipe(recipe: Recipe) -> None:
    """Check the parts of a recipe that the store does not know: options, quantisation, template. Raises BadRequest."""
    parse_options(check_parameters(recipe.parameters)[0])
    if recipe.quantize:
        parse_kind(recipe.quantize)
    if error := read_template(recipe.template).error:
        raise BadRequest(f"template error: {error}")
