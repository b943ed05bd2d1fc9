"""Files that came from elsewhere become weights: shards are joined, safetensors converted, a name written.

Runs in the fetcher, at the end of a pull, when every file is in the store and its digest is right. What a kill leaves
half-made has a name of its own in the store, and the next pull of the same model writes over it.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing

from ndani.convert import Given, Task, make, prepare
from ndani.errors import BadRequest, SourceFailed
from ndani.names import Name
from ndani.sources import Assembly, PlannedLayer
from ndani.store import Store
from ndani.store.create import Recipe, create
from ndani.store.disk import on_disk
from ndani.store.layout import digest_of
from ndani.store.nameless import Nameless
from ndani.types import Progress


def assemble(store: Store, name: Name, assembly: Assembly) -> Generator[Progress]:
    """Make `name` stand for these files, which the store holds and which are claimed. The last step is the manifest's.

    Raises BadRequest, Unsupported, StoreFailed, SourceFailed.
    """
    gguf = [digest for file, digest in assembly.files.items() if _is_gguf(file)]
    if len(gguf) == 1:
        yield from _name(store, name, gguf[0], assembly)
        return
    # One name for one model, so that a half-made file is written over and not left lying beside the next.
    mark = digest_of("\n".join(sorted(assembly.files.values())).encode())
    while not (lock := store.lock(mark)):
        yield Progress("waiting for another pull that makes the same model")
        time.sleep(0.2)
    file = None
    try:
        file = Nameless(store.layout, mark[7:])
        try:
            yield from _fill(store, file, assembly.files, mark)
        except BadRequest as error:
            raise SourceFailed(f"the files of {name} do not make a model: {error}; look at them where they come from") from None
        with store.claim({file.digest}):
            file.name()
            yield from _name(store, name, file.digest, assembly)
    finally:
        if file:
            file.discard()
        lock.release()


def convert(store: Store, layer: PlannedLayer) -> Generator[Progress]:
    """Make a layer that the catalogue pins of the checkpoint that it names, whose blobs must be here; its lock must be held.

    The same files give the same bytes, so it is held against its digest as if it had travelled, before it has a name.
    Raises SourceFailed when they are others, StoreFailed.
    """
    file = Nameless(store.layout, layer.digest[7:])
    try:
        yield from _fill(store, file, {name: one.digest for name, one in layer.made}, layer.digest)
        if file.digest != layer.digest:
            raise BadRequest(f"want {layer.digest}, got {file.digest}")
        file.name()
    except BadRequest as error:
        raise SourceFailed(
            f"the weights were converted to another file than the catalogue names ({error}); pull again, and report it if it stays"
        ) from None
    finally:
        file.discard()


def _fill(store: Store, file: Nameless, files: Mapping[str, str], mark: str) -> Generator[Progress]:
    """One GGUF file of these blobs (digests by name), hashed and not yet named: shards joined, or a checkpoint converted."""
    checkpoint = not any(map(_is_gguf, files))
    verb = "converting model" if checkpoint else "joining parts"
    with ExitStack() as opened:
        given = []
        with on_disk(store.layout.root):
            for name, digest in files.items():
                given.append(Given(name, opened.enter_context(store.layout.blob(digest).open("rb")).fileno()))
            task = Task(tuple(given), file.descriptor, checkpoint=checkpoint)
            work = make(task, prepare(task))
        file.set_aside(work.size)
        with on_disk(store.layout.root, work.size), closing(work.steps) as steps:
            for done in steps:
                yield Progress(verb, mark, work.total, done)
    for done in file.reckon():
        yield Progress("hashing the model", None, file.size, done)


def _is_gguf(file: str) -> bool:
    return file.lower().endswith(".gguf")


def _name(store: Store, name: Name, digest: str, assembly: Assembly) -> Iterator[Progress]:
    recipe = Recipe(
        files={f"{name.model}.gguf": digest},
        template=assembly.template,
        system=assembly.system,
        parameters=assembly.parameters,
        licenses=assembly.licenses,
    )
    for step in create(store, name, recipe):
        if step.status == "writing manifest" or step.status.startswith("warning"):
            yield step
