"""What a recipe's weights still need before a model can be made of them: safetensors converted, parts joined, numbers quantised.

Decided here, worked out by `convert`, done in a process of its own by `convert/supervisor.py`. Of GGUF everything that can be
refused is refused before that process starts; a checkpoint is read there, and by nobody else.
"""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import msgspec

from ndani.convert import SourceFile, Task, shards
from ndani.convert.file_selection import MIXED_MODELS, choose_files
from ndani.convert.quant_types import parse_kind
from ndani.convert.quantise import OpenGguf, QuantisationPlan, open_source, plan
from ndani.convert.supervisor import Supervisor
from ndani.errors import BadRequest
from ndani.runtime.hardware import detect
from ndani.store import Store
from ndani.store.create import Recipe, check, open_blob, projects, read_weights, refuse
from ndani.store.disk import on_disk
from ndani.store.file_formats import GGUF, detect_format, refusal
from ndani.store.temporary import TemporaryBlob
from ndani.store.threads import in_thread
from ndani.store.weights_info import file_type_of
from ndani.types import Progress, Report

#: Bytes of the names in the one line that a worker reads, as they stand there. Some 800 files: the largest models that
#: anybody gives away have 200.
_MOST_NAMED = 60_000
_ANY = 99_999  # a descriptor as long as they get


@dataclass(frozen=True, slots=True)
class _Work:
    """What is to be done. `parts` are digests by the names that their sender knows; all files are open.

    A checkpoint has no `plan` here.
    """

    status: str
    parts: Mapping[str, str]
    plan: QuantisationPlan | None
    task: Task
    file: TemporaryBlob


@asynccontextmanager
async def made(store: Store, supervisor: Supervisor, recipe: Recipe, report: Report) -> AsyncIterator[Recipe]:
    """Make what the recipe's weights still need: a recipe that `create` can use, with the files that were made.

    Those of them that no name refers to after the block go again. Raises BadRequest, StoreFailed, Failed, …
    """
    try:
        recipe, checkpoint = await in_thread(_chosen, store, recipe)
        for begin in (_checkpoint, _gguf) if checkpoint else (_gguf,):
            with ExitStack() as opened:
                work = await in_thread(begin, store, recipe, opened)
                if work:
                    await _make(supervisor, work, report)
                    recipe = _finished(recipe, work)
        yield recipe
    finally:
        if recipe.made:
            await in_thread(store.drop, set(recipe.made))


async def _make(supervisor: Supervisor, work: _Work, report: Report) -> None:
    """The work itself, until the file has its name."""
    for _ in work.parts if work.plan else ():
        report(Progress("parsing GGUF"))
    digest = next(iter(work.parts.values())) if work.plan else None
    await supervisor.fill(work.task, work.file, work.status, digest, report)
    await in_thread(work.file.name)  # last: what is stopped before this leaves nothing behind


def _chosen(store: Store, recipe: Recipe) -> tuple[Recipe, bool]:
    """The recipe with the files of the model alone, and whether they are a checkpoint: a client may send all of a folder.

    By what the files are, not by what they are called. In a thread. Raises BadRequest, StoreFailed.
    """
    refuse(recipe)
    forms = {}
    for path, digest in recipe.files.items():
        with open_blob(store, path, digest) as file:
            forms[path] = detect_format(file.fileno())
    checkpoint = choose_files(forms)
    if checkpoint:
        if recipe.base is not None:
            raise BadRequest(MIXED_MODELS)
        return replace(recipe, files={name: recipe.files[path] for name, path in checkpoint.items()}), True
    models = {path: recipe.files[path] for path, form in forms.items() if form == GGUF}
    other = next((path for path, form in forms.items() if form not in ("", GGUF)), "")
    if other and not models:
        raise refusal(other, forms[other])
    return replace(recipe, files=models) if other else recipe, False


def _checkpoint(store: Store, recipe: Recipe, opened: ExitStack) -> _Work:
    """What makes GGUF of safetensors. In a thread; `opened` closes it all."""
    given = _opened(store, recipe.files, opened)
    file = TemporaryBlob(store.layout)
    opened.callback(file.discard)
    return _Work("converting model", recipe.files, None, Task(given, file.descriptor, checkpoint=True), file)


def _opened(store: Store, parts: Mapping[str, str], opened: ExitStack) -> tuple[SourceFile, ...]:
    """The blobs, open, by the names that their sender knows. Raises BadRequest for one that is not there, and for too many."""
    if len(msgspec.json.encode([SourceFile(name, _ANY) for name in parts])) > _MOST_NAMED:
        raise BadRequest(f"these are {len(parts)} files, which is more than one model has; send those of one model alone")
    given = []
    for name, digest in parts.items():
        with on_disk(store.layout.root):
            try:
                descriptor = os.open(store.layout.blob(digest), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise BadRequest(f"the file {name} ({digest}) is not here; send it to /api/blobs/{digest} first") from None
        opened.callback(os.close, descriptor)
        given.append(SourceFile(name, descriptor))
    return tuple(given)


def _gguf(store: Store, recipe: Recipe, opened: ExitStack) -> _Work | None:
    """What joins or quantises GGUF, or None where nothing is to be done. In a thread; `opened` closes it all."""
    parts = _parts(store, recipe)
    if not parts:
        return None
    given = _opened(store, parts, opened)
    kind = parse_kind(recipe.quantize) if recipe.quantize else ""
    sources = [open_source(part.name, part.descriptor) for part in given]
    work = plan(sources, kind)
    if work.unchanged:
        return None
    file = TemporaryBlob(store.layout)
    opened.callback(file.discard)
    status = f"quantizing {_called(sources[0])} model to {kind}" if kind else f"joining {len(given)} parts"
    return _Work(status, parts, work, Task(given, file.descriptor, kind, detect().cores), file)


def _parts(store: Store, recipe: Recipe) -> dict[str, str]:
    """What a file is to be made of: the parts of a model in their order, or what is to be quantised; nothing, if neither."""
    refuse(recipe)
    headers = {path: read_weights(store, path, digest)[1] for path, digest in sorted(recipe.files.items())}
    split = {path: header.keys for path, header in headers.items() if shards.is_shard(header.keys)}
    if not split and not recipe.quantize:
        return {}
    order = shards.in_order(split) if split else []
    check(store, replace(recipe, files={path: digest for path, digest in recipe.files.items() if path not in order[1:]}))
    model = order or [path for path, header in headers.items() if not projects(header)]
    if model:
        return {path: recipe.files[path] for path in model}
    assert recipe.base  # else `check` has found that there is no model
    return {str(recipe.base.name): recipe.base.weights.digest}


def _called(source: OpenGguf) -> str:
    """The kind that a file says it is, or that most of it is."""
    largest = max(source.head.tensors, key=lambda tensor: math.prod(tensor.shape), default=None)
    return file_type_of(source.head.keys) or (largest.type if largest else "F16")


def _finished(recipe: Recipe, work: _Work) -> Recipe:
    """The recipe with the file that was made in the place of its parts."""
    fresh = recipe.made | ({work.file.digest} if work.file.fresh else set())
    if work.plan is None:
        return replace(recipe, files={"model.gguf": work.file.digest}, made=fresh)
    named = [path for path in work.parts if path in recipe.files]
    if not named:
        return replace(recipe, weights=work.file.digest, made=fresh)
    others = {path: digest for path, digest in recipe.files.items() if path not in named}
    return replace(recipe, files=others | {named[0]: work.file.digest}, made=fresh)
