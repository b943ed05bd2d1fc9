"""Files that came from a place without manifests become a model: shards are joined, other formats converted, a name written.

Runs in the fetcher, at the end of a pull, when every file is in the store and its digest is right. What a kill leaves
half-made has a name of its own in the store, and the next pull of the same model begins it anew.
"""

from __future__ import annotations

import hashlib
import importlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from ndani.convert import Given, Task, make
from ndani.errors import BadRequest, NdaniError, SourceFailed, Unsupported
from ndani.names import Name
from ndani.sources import Assembly
from ndani.store import Store
from ndani.store.blobs import PIECE
from ndani.store.create import Recipe, create
from ndani.store.disk import on_disk, require_room, settle
from ndani.store.layout import digest_of
from ndani.types import Progress

#: What is made of files of another format: from their paths by name, into a file; bytes written so far, step by step.
Convert = Callable[[Mapping[str, Path], Path], Iterator[int]]


def assemble(store: Store, name: Name, assembly: Assembly) -> Generator[Progress]:
    """Make `name` stand for these files, which the store holds and which are claimed. The last step is the manifest's.

    Raises BadRequest, Unsupported, StoreFailed, SourceFailed.
    """
    files = {file: store.layout.blob(digest) for file, digest in assembly.files.items()}
    gguf = [digest for file, digest in assembly.files.items() if file.lower().endswith(".gguf")]
    if len(gguf) == 1:
        yield from _name(store, name, gguf[0], assembly)
        return
    making: Convert = converter() if not gguf else _join
    total = sum(path.stat().st_size for path in files.values())
    require_room(store.layout.root, total)
    # One name for one model, so that a made-half file is written over and not left lying beside the next.
    mark = digest_of("\n".join(sorted(assembly.files.values())).encode())
    out = store.layout.blobs / f".making-{mark[7:39]}"
    while not (lock := store.lock(mark)):
        yield Progress("waiting for another pull that makes the same model")
        time.sleep(0.2)
    try:
        verb = "joining parts" if gguf else "converting model"
        with on_disk(store.layout.root, total):
            for done in _renamed(making(files, out), name):
                yield Progress(verb, mark, total, min(done, total))
            size = out.stat().st_size
            digest = yield from _hashed(out, size)
        with store.claim({digest}), on_disk(store.layout.root):
            out.replace(store.layout.blob(digest))
            settle(store.layout.blobs)
            yield from _name(store, name, digest, assembly)
    finally:
        out.unlink(missing_ok=True)
        lock.release()


def _join(files: Mapping[str, Path], out: Path) -> Iterator[int]:
    """The parts of one model as one file; which comes first, the parts themselves say."""
    with ExitStack() as open_files, out.open("wb") as output:
        given = [Given(name, open_files.enter_context(path.open("rb")).fileno()) for name, path in files.items()]
        yield from make(Task(tuple(given), output.fileno()), None)


def converter() -> Convert:
    """What makes a GGUF file of safetensors. Raises Unsupported where this version has none."""
    found = getattr(importlib.import_module("ndani.convert"), "convert", None)
    if found is None:
        raise Unsupported("this repository has safetensors and no GGUF file, and this version cannot convert them; pull a GGUF form of it")
    making: Convert = found
    return making


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


def _renamed(steps: Iterator[int], name: Name) -> Iterator[int]:
    """What is wrong with the files, said of the model that they were to be."""
    try:
        yield from steps
    except (ValueError, BadRequest) as error:
        raise SourceFailed(f"the files of {name} do not make a model: {error}; look at them where they come from") from None
    except NdaniError as error:
        raise type(error)(f"the files of {name} do not make a model: {error}") from None


def _hashed(path: Path, size: int) -> Generator[Progress, None, str]:
    found, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(16 * PIECE):
            found.update(piece)
            done += len(piece)
            yield Progress("hashing the model", None, size, done)
    return f"sha256:{found.hexdigest()}"
