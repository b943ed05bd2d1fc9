"""Prepares the weights of a recipe: safetensors are converted, parts of a split model joined, tensors quantised.

This module decides what is needed; `convert` plans it, and `convert/supervisor.py` has a worker process do it. GGUF files are
checked here, before the worker starts. A safetensors checkpoint is read in the worker only.
"""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import msgspec

from ndani.background import run_in_thread
from ndani.convert import SourceFile, Task, shards
from ndani.convert.file_selection import MIXED_MODELS, choose_files
from ndani.convert.quant_types import parse_kind
from ndani.convert.quantise import OpenGguf, QuantisationPlan, open_source, plan
from ndani.convert.supervisor import Supervisor
from ndani.errors import BadRequest
from ndani.runtime.hardware import detect
from ndani.store import Store
from ndani.store.create import Recipe, check_recipe, is_projector, open_blob, read_weights, validate
from ndani.store.disk import translate_disk_errors
from ndani.store.file_formats import GGUF, detect_format, wrong_format
from ndani.store.temporary import TemporaryBlob
from ndani.store.weights_info import file_type_of
from ndani.types import Progress, Report

#: Bytes of the file names, as JSON, in the one line that a worker reads. Enough for some 800 files: the largest published
#: models have 200.
_MAX_NAMES_BYTES = 60_000
#: Stands for a descriptor when the names are measured; real ones have at most as many digits.
_LONGEST_DESCRIPTOR = 99_999


@dataclass(frozen=True, slots=True)
class _Job:
    """A job for a conversion worker. `parts` are digests by the client's file names; all files are open.

    The conversion of a checkpoint has no `plan`: the worker makes it.
    """

    status: str
    parts: Mapping[str, str]
    plan: QuantisationPlan | None
    task: Task
    file: TemporaryBlob


@asynccontextmanager
async def prepared_weights(store: Store, supervisor: Supervisor, recipe: Recipe, report: Report) -> AsyncIterator[Recipe]:
    """The recipe with its weights prepared, so that `create` can use it. Raises BadRequest, StoreFailed, Failed, …

    After the block, files that were made here and that no model uses are removed.
    """
    try:
        recipe, checkpoint = await run_in_thread(_select_files, store, recipe)
        for prepare in (_prepare_conversion, _prepare_gguf) if checkpoint else (_prepare_gguf,):
            with ExitStack() as resources:
                job = await run_in_thread(prepare, store, recipe, resources)
                if job:
                    await _run_job(supervisor, job, report)
                    recipe = _with_result(recipe, job)
        yield recipe
    finally:
        if recipe.converted:
            await run_in_thread(store.remove_unused, set(recipe.converted))


async def _run_job(supervisor: Supervisor, job: _Job, report: Report) -> None:
    """Run the job, and give the resulting file its name."""
    for _ in job.parts if job.plan else ():
        report(Progress("parsing GGUF"))
    digest = next(iter(job.parts.values())) if job.plan else None
    await supervisor.fill(job.task, job.file, job.status, digest, report)
    await run_in_thread(job.file.publish)  # last, so that an interrupted job leaves no file behind


def _select_files(store: Store, recipe: Recipe) -> tuple[Recipe, bool]:
    """The recipe with only the model's files, and whether they are a checkpoint. A client may send every file of a folder.

    Files are recognised by content, not by name. Call it in a thread. Raises BadRequest, StoreFailed.
    """
    check_recipe(recipe)
    formats = {}
    for path, digest in recipe.files.items():
        with open_blob(store, path, digest) as file:
            formats[path] = detect_format(file.fileno())
    checkpoint = choose_files(formats)
    if checkpoint:
        if recipe.base is not None:
            raise BadRequest(MIXED_MODELS)
        return replace(recipe, files={name: recipe.files[path] for name, path in checkpoint.items()}), True
    models = {path: recipe.files[path] for path, file_format in formats.items() if file_format == GGUF}
    other = next((path for path, file_format in formats.items() if file_format not in ("", GGUF)), "")
    if other and not models:
        raise wrong_format(other, formats[other])
    return replace(recipe, files=models) if other else recipe, False


def _prepare_conversion(store: Store, recipe: Recipe, resources: ExitStack) -> _Job:
    """The job that converts safetensors to GGUF. Call it in a thread; `resources` closes all files."""
    inputs = _open_blobs(store, recipe.files, resources)
    file = TemporaryBlob(store.layout)
    resources.callback(file.discard)
    return _Job("converting model", recipe.files, None, Task(inputs, file.descriptor, checkpoint=True), file)


def _open_blobs(store: Store, parts: Mapping[str, str], resources: ExitStack) -> tuple[SourceFile, ...]:
    """The blobs, opened, with the client's file names. Raises BadRequest for a missing one, and for too many."""
    if len(msgspec.json.encode([SourceFile(name, _LONGEST_DESCRIPTOR) for name in parts])) > _MAX_NAMES_BYTES:
        raise BadRequest(f"these are {len(parts)} files, which is more than one model has; send those of one model alone")
    inputs = []
    for name, digest in parts.items():
        with translate_disk_errors(store.layout.root):
            try:
                descriptor = os.open(store.layout.blob(digest), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise BadRequest(f"the file {name} ({digest}) is not here; send it to /api/blobs/{digest} first") from None
        resources.callback(os.close, descriptor)
        inputs.append(SourceFile(name, descriptor))
    return tuple(inputs)


def _prepare_gguf(store: Store, recipe: Recipe, resources: ExitStack) -> _Job | None:
    """The job that joins or quantises GGUF files, or None if neither is needed. Call it in a thread; `resources` closes all files."""
    parts = _source_files(store, recipe)
    if not parts:
        return None
    inputs = _open_blobs(store, parts, resources)
    kind = parse_kind(recipe.quantize) if recipe.quantize else ""
    sources = [open_source(part.name, part.descriptor) for part in inputs]
    job = plan(sources, kind)
    if job.unchanged:
        return None
    file = TemporaryBlob(store.layout)
    resources.callback(file.discard)
    status = f"quantizing {_type_name(sources[0])} model to {kind}" if kind else f"joining {len(inputs)} parts"
    return _Job(status, parts, job, Task(inputs, file.descriptor, kind, detect().cores), file)


def _source_files(store: Store, recipe: Recipe) -> dict[str, str]:
    """The digests, by name, of the files that a new file is made of: a model's parts in order, or what is to be quantised. Else empty."""
    check_recipe(recipe)
    headers = {path: read_weights(store, path, digest)[1] for path, digest in sorted(recipe.files.items())}
    split = {path: header.metadata for path, header in headers.items() if shards.is_shard(header.metadata)}
    if not split and not recipe.quantize:
        return {}
    order = shards.in_order(split) if split else []
    validate(store, replace(recipe, files={path: digest for path, digest in recipe.files.items() if path not in order[1:]}))
    model = order or [path for path, header in headers.items() if not is_projector(header)]
    if model:
        return {path: recipe.files[path] for path in model}
    assert recipe.base  # without a base `check` raises, since there is no model
    return {str(recipe.base.name): recipe.base.weights.digest}


def _type_name(source: OpenGguf) -> str:
    """The quantisation type in a file's metadata, or that of its largest tensor."""
    largest = max(source.head.tensors, key=lambda tensor: math.prod(tensor.shape), default=None)
    return file_type_of(source.head.metadata) or (largest.type if largest else "F16")


def _with_result(recipe: Recipe, job: _Job) -> Recipe:
    """The recipe with the job's file in place of the parts that it was made of."""
    created = recipe.converted | ({job.file.digest} if job.file.is_new else set())
    if job.plan is None:
        return replace(recipe, files={"model.gguf": job.file.digest}, converted=created)
    replaced = [path for path in job.parts if path in recipe.files]
    if not replaced:
        return replace(recipe, converted_weights=job.file.digest, converted=created)
    others = {path: digest for path, digest in recipe.files.items() if path not in replaced}
    return replace(recipe, files=others | {replaced[0]: job.file.digest}, converted=created)
