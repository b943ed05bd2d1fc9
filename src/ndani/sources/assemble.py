"""Files that came from elsewhere become weights: shards are joined, safetensors converted, a name written.

Asked for in the fetcher, at the end of a pull, when every file is in the store and its digest is right; done in a child of
its own, which can reach nothing (`convert/supervisor.py`). What a kill leaves half-made has a name of its own in the store, and
the next pull of the same model replaces it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from contextlib import ExitStack, suppress

from ndani.convert import SourceFile, Task
from ndani.convert.supervisor import Supervisor
from ndani.errors import BadRequest, NotFound, SourceFailed, StoreFailed
from ndani.names import Name
from ndani.sources import Assembly, PlannedLayer
from ndani.store import Store
from ndani.store.blobs import PIECE
from ndani.store.create import Recipe, create, texts
from ndani.store.disk import on_disk
from ndani.store.layout import digest_of
from ndani.store.temporary import TemporaryBlob
from ndani.store.threads import in_thread, in_thread_reporting
from ndani.types import Progress, Report

_POLL_S = 0.2


async def assemble(store: Store, supervisor: Supervisor, name: Name, assembly: Assembly, report: Report) -> None:
    """Make `name` stand for these files, which the store holds and which are claimed. The last step is the manifest's.

    Raises SourceFailed when they make none, StoreFailed, Failed.
    """
    try:
        await _assemble(store, supervisor, name, assembly, report)
    except BadRequest as error:
        raise SourceFailed(f"the files of {name} do not make a model: {error}; look at them where they come from") from None


async def _assemble(store: Store, supervisor: Supervisor, name: Name, assembly: Assembly, report: Report) -> None:
    gguf = [digest for file, digest in assembly.files.items() if _is_gguf(file)]
    if len(gguf) == 1:
        await _name(store, name, gguf[0], assembly, report)
        return
    # One name for one model, so that a half-made file is replaced and not left lying beside the next.
    key = digest_of("\n".join(sorted(assembly.files.values())).encode())
    while not (lock := store.lock(key)):
        report(Progress("waiting for another pull that makes the same model"))
        await asyncio.sleep(_POLL_S)
    file = None
    try:
        file = TemporaryBlob(store.layout, key[7:])
        await _fill(store, supervisor, file, assembly.files, key, report)
        with store.claim({file.digest}):
            await in_thread(file.name)
            await _name(store, name, file.digest, assembly, report)
    finally:
        if file:
            file.discard()
        lock.release()


async def restore(store: Store, supervisor: Supervisor, name: Name, assembly: Assembly, repair: frozenset[str], report: Report) -> None:
    """Make those blobs of such a model again that have gone bad, in place of those that are here; no name changes.

    The files that its weights are made of must be here where those are among them. Raises SourceFailed when other
    ones come of it, StoreFailed, Failed.
    """
    left = set(repair)
    gguf = [digest for file, digest in assembly.files.items() if _is_gguf(file)]
    weights = gguf[0] if len(gguf) == 1 else ""
    with suppress(NotFound, StoreFailed):
        weights = store.find(name).weights.digest
    try:
        if len(gguf) != 1 and (weights in repair or not weights):
            file = TemporaryBlob(store.layout)
            try:
                await _fill(store, supervisor, file, assembly.files, weights or min(repair), report)
                if file.digest in left:
                    await in_thread(file.name)
                    left.discard(file.digest)
                    weights = file.digest
            finally:
                file.discard()
        if left and weights and weights not in left:
            contents = await in_thread(texts, store, _recipe(name, weights, assembly))
            for digest in left & contents.keys():
                await in_thread(store.blobs.put, contents[digest])
                left.discard(digest)
    except BadRequest:
        pass  # these files make no model any more
    if left:
        raise changed(name)


def changed(name: Name) -> SourceFailed:
    """The sentence about a source that cannot give back what it once gave."""
    return SourceFailed(f"where {name} comes from has other files by now; `ndani pull {name}` fetches those")


async def convert(store: Store, supervisor: Supervisor, layer: PlannedLayer, report: Report) -> None:
    """Make a layer that the catalogue pins of the checkpoint that it names, whose blobs must be here; its lock must be held.

    The same files give the same bytes, so it is held against its digest as if it had travelled, before it has a name.
    Raises SourceFailed when they are others, StoreFailed, Failed.
    """
    file = TemporaryBlob(store.layout, layer.digest[7:])
    try:
        await _fill(store, supervisor, file, {name: one.digest for name, one in layer.made}, layer.digest, report)
        if file.digest != layer.digest:
            raise BadRequest(f"want {layer.digest}, got {file.digest}")
        await in_thread(file.name)
    except BadRequest as error:
        await in_thread(_drop_bad, store, [one.digest for one in layer.ingredients])
        raise SourceFailed(
            f"the weights were converted to another file than the catalogue names ({error}); pull again, and report it if it stays"
        ) from None
    finally:
        file.discard()


def _drop_bad(store: Store, digests: list[str]) -> None:
    """Remove those of these files that have gone bad since they came, so that the next pull brings them again."""
    for digest in digests:
        with on_disk(store.layout.root):
            seen = hashlib.sha256()
            with store.layout.blob(digest).open("rb") as file:
                while piece := file.read(PIECE):
                    seen.update(piece)
            if f"sha256:{seen.hexdigest()}" != digest:
                store.blobs.remove(digest)


async def _fill(store: Store, supervisor: Supervisor, file: TemporaryBlob, files: Mapping[str, str], key: str, report: Report) -> None:
    """One GGUF file of these blobs (digests by name), hashed and not yet named: shards joined, or a checkpoint converted."""
    checkpoint = not any(map(_is_gguf, files))
    with ExitStack() as opened:
        given = []
        with on_disk(store.layout.root):
            for name, digest in files.items():
                given.append(SourceFile(name, opened.enter_context(store.layout.blob(digest).open("rb")).fileno()))
        task = Task(tuple(given), file.descriptor, checkpoint=checkpoint)
        status = "converting model" if checkpoint else f"joining {len(given)} parts"
        await supervisor.fill(task, file, status, key, report)


def _is_gguf(file: str) -> bool:
    return file.lower().endswith(".gguf")


def _recipe(name: Name, digest: str, assembly: Assembly) -> Recipe:
    return Recipe(
        files={f"{name.model}.gguf": digest},
        template=assembly.template,
        system=assembly.system,
        parameters=assembly.parameters,
        licenses=assembly.licenses,
    )


async def _name(store: Store, name: Name, digest: str, assembly: Assembly, report: Report) -> None:
    def some(step: Progress) -> None:
        if step.status == "writing manifest" or step.status.startswith("warning"):
            report(step)

    await in_thread_reporting(lambda report: create(store, name, _recipe(name, digest, assembly), report), some)
