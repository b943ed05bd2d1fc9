"""Makes a model of downloaded files: joins shards, converts safetensors, writes the manifest.

The fetcher starts this at the end of a pull, when every file is in the store and its digest is verified. The work is done
in a jailed child process (`convert/supervisor.py`). If it is killed, the unfinished file has a temporary name in the store,
and the next pull of the same model replaces it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack, suppress

from ndani.background import run_in_thread, run_in_thread_reporting
from ndani.convert import SourceFile, Task
from ndani.convert.supervisor import Supervisor
from ndani.errors import BadRequest, NotFound, SourceFailed, StoreFailed
from ndani.names import Name
from ndani.sources import Assembly, PlannedLayer
from ndani.store import Store
from ndani.store.create import Recipe, create, small_blobs
from ndani.store.disk import translate_disk_errors
from ndani.store.layout import digest_of
from ndani.store.temporary import TemporaryBlob
from ndani.types import WRITING_MANIFEST, Progress, Report

_POLL_S = 0.2


async def assemble(store: Store, supervisor: Supervisor, name: Name, assembly: Assembly, report: Report) -> None:
    """Make the model `name` of these files, which must be in the store and claimed. The manifest is written last.

    Raises SourceFailed when the files do not make a model, StoreFailed, Failed.
    """
    try:
        await _assemble_files(store, supervisor, name, assembly, report)
    except BadRequest as error:
        raise SourceFailed(f"the files of {name} do not make a model: {error}; look at them where they come from") from None


async def _assemble_files(store: Store, supervisor: Supervisor, name: Name, assembly: Assembly, report: Report) -> None:
    gguf_digests = [digest for file, digest in assembly.files.items() if _is_gguf(file)]
    if len(gguf_digests) == 1:
        await _create_model(store, name, gguf_digests[0], assembly, report)
        return
    # The same model always has the same temporary name, so that the next try replaces an unfinished file.
    lock_key = digest_of("\n".join(sorted(assembly.files.values())).encode())
    while not (lock := store.lock_blob(lock_key)):
        report(Progress("waiting for another pull that makes the same model"))
        await asyncio.sleep(_POLL_S)
    file = None
    try:
        file = TemporaryBlob(store.layout, lock_key[7:])
        await _convert_files(store, supervisor, file, assembly.files, lock_key, report)
        with store.claim({file.digest}):
            await run_in_thread(file.publish)
            await _create_model(store, name, file.digest, assembly, report)
    finally:
        if file:
            file.discard()
        lock.release()


async def restore(store: Store, supervisor: Supervisor, name: Name, assembly: Assembly, damaged: frozenset[str], report: Report) -> None:
    """Make these blobs of the model `name` again, as `assemble` made them, in place of those that are here; no name changes.

    When the weights are among them, the files of `assembly` must be in the store. Raises SourceFailed when the result has
    other digests, StoreFailed, Failed.
    """
    unrepaired = set(damaged)
    gguf_digests = [digest for file, digest in assembly.files.items() if _is_gguf(file)]
    weights = gguf_digests[0] if len(gguf_digests) == 1 else ""
    with suppress(NotFound, StoreFailed):
        weights = store.find(name).weights.digest
    try:
        if len(gguf_digests) != 1 and (weights in damaged or not weights):
            file = TemporaryBlob(store.layout)
            try:
                await _convert_files(store, supervisor, file, assembly.files, weights or min(damaged), report)
                if file.digest in unrepaired:
                    await run_in_thread(file.publish)
                    unrepaired.discard(file.digest)
                    weights = file.digest
            finally:
                file.discard()
        if unrepaired and weights and weights not in unrepaired:
            contents = await run_in_thread(small_blobs, store, _recipe_of(name, weights, assembly))
            for digest in unrepaired & contents.keys():
                await run_in_thread(store.blobs.put, contents[digest])
                unrepaired.discard(digest)
    except BadRequest:
        pass  # these files do not make a model any more
    if unrepaired:
        raise source_changed(name)


def source_changed(name: Name) -> SourceFailed:
    """The error for a source that does not have the original files any more."""
    return SourceFailed(f"where {name} comes from has other files by now; `ndani pull {name}` fetches those")


async def convert(store: Store, supervisor: Supervisor, layer: PlannedLayer, report: Report) -> None:
    """Convert a layer of the catalogue from its checkpoint, whose blobs must be here. The caller must hold the layer's lock.

    The same files always give the same bytes, so the result is checked against the pinned digest, as a download is.
    Raises SourceFailed when it differs, StoreFailed, Failed.
    """
    file = TemporaryBlob(store.layout, layer.digest[7:])
    try:
        await _convert_files(
            store, supervisor, file, {name: source_layer.digest for name, source_layer in layer.converted_from}, layer.digest, report
        )
        if file.digest != layer.digest:
            raise BadRequest(f"want {layer.digest}, got {file.digest}")
        await run_in_thread(file.publish)
    except BadRequest as error:
        await run_in_thread(store.remove_damaged, [source_layer.digest for source_layer in layer.inputs])
        raise SourceFailed(
            f"the weights were converted to another file than the catalogue names ({error}); pull again, and report it if it stays"
        ) from None
    finally:
        file.discard()


async def _convert_files(
    store: Store, supervisor: Supervisor, file: TemporaryBlob, files: Mapping[str, str], progress_digest: str, report: Report
) -> None:
    """Make one GGUF file of these blobs (digests by name): join shards, or convert a checkpoint. It is hashed, not yet named."""
    checkpoint = not any(map(_is_gguf, files))
    with ExitStack() as opened:
        inputs = []
        with translate_disk_errors(store.layout.root):
            for name, digest in files.items():
                inputs.append(SourceFile(name, opened.enter_context(store.layout.blob(digest).open("rb")).fileno()))
        task = Task(tuple(inputs), file.descriptor, checkpoint=checkpoint)
        status = "converting model" if checkpoint else f"joining {len(inputs)} parts"
        await supervisor.fill(task, file, status, progress_digest, report)


def _is_gguf(file: str) -> bool:
    return file.lower().endswith(".gguf")


def _recipe_of(name: Name, digest: str, assembly: Assembly) -> Recipe:
    return Recipe(
        files={f"{name.model}.gguf": digest},
        template=assembly.template,
        system=assembly.system,
        parameters=assembly.parameters,
        licenses=assembly.licenses,
    )


async def _create_model(store: Store, name: Name, digest: str, assembly: Assembly, report: Report) -> None:
    def report_some(step: Progress) -> None:
        if step.warning or step == WRITING_MANIFEST:
            report(step)

    await run_in_thread_reporting(lambda report: create(store, name, _recipe_of(name, digest, assembly), report), report_some)
