"""Looking after a store: every blob hashed again (`verify`), what nobody needs removed (`prune`).

Both report as they go, and a report that raises ends them, so that whoever asked can leave. Reading takes no lock: what is
found wrong is held against the names once more before it is said, for a model may be removed while its files are read.
Bringing a bad blob again is `sources`' business.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ndani.errors import StoreFailed
from ndani.store.blobs import CHUNK_SIZE
from ndani.store.damage_notes import file_state, forget_damage, note_damage
from ndani.store.disk import format_bytes
from ndani.store.library import Store
from ndani.store.stored_model import StoredModel
from ndani.types import Progress

_EVERY = 0.1  # seconds between two words of progress
_BATCH = 64  # files that are removed under one hold of the store's lock


@dataclass(frozen=True, slots=True)
class Damage:
    """A blob that is not what its digest says, and the models that need it; without a digest, a manifest that cannot be read.

    With neither digest nor models it is a folder of manifests.
    """

    problem: str
    models: tuple[str, ...]
    digest: str = ""


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """The end of `verify`: how many blobs were read, their bytes, and what is wrong."""

    blobs: int
    size: int
    damaged: tuple[Damage, ...]


@dataclass(frozen=True, slots=True)
class UnusedFile:
    """A file that nobody needs, and the bytes it takes."""

    file: str
    size: int


@dataclass(frozen=True, slots=True)
class PruneResult:
    """The end of `prune`: what went (or would go), and the bytes it took on the disk."""

    blobs: int
    unfinished: int
    freed: int


def verify(
    store: Store,
    entries: Iterable[StoredModel],
    damaged: dict[str, str],
    report: Callable[[Progress | Damage], None],
    only: frozenset[str] = frozenset(),
) -> VerifyResult:
    """Hash every blob of these models (`only` these digests, if any are said); each damage is reported as it is found.

    `damaged` are names whose manifests cannot be read, with a sentence for each, as `Store.survey` has them. What is bad is
    noted, so that whoever is asked to bring it does. Raises StoreFailed.
    """
    needed: dict[str, int] = {}
    for entry in entries:
        for layer in (entry.manifest.config, *entry.layers):
            if not only or layer.digest in only:
                needed[layer.digest] = layer.size
    found = _unread(damaged)
    for damage in found:
        report(damage)
    total, done, reported = sum(needed.values()), 0, 0.0
    status = f"verifying {len(needed)} {'file' if len(needed) == 1 else 'files'}, {format_bytes(total)}"
    report(Progress(status, total=total, completed=0))
    for digest, size in needed.items():
        problem, begin, seen = "", done, file_state(store.layout, digest)
        for step in _read(store, digest, size):
            if isinstance(step, str):
                problem = step
            else:
                done = begin + min(step, size)
                if time.monotonic() - reported >= _EVERY:
                    reported = time.monotonic()
                    report(Progress(status, total=total, completed=done))
        done = begin + size
        if problem and (models := _users(store, digest)):
            note_damage(store.layout, digest, seen)
            found.append(Damage(problem, models, digest))
            report(found[-1])
        elif not problem:
            forget_damage(store.layout, digest)
    report(Progress(status, total=total, completed=total))
    return VerifyResult(len(needed), total, tuple(found))


def _unread(damaged: dict[str, str]) -> list[Damage]:
    return [Damage(sentence, () if name.endswith("/") else (name,)) for name, sentence in sorted(damaged.items())]


def _read(store: Store, digest: str, size: int) -> Iterator[int | str]:
    """How many bytes of a blob were read, again and again; in the end what is wrong with it, if anything is."""
    path, seen, length = store.layout.blob(digest), hashlib.sha256(), 0
    piece = memoryview(bytearray(CHUNK_SIZE))  # one for all: a new one for each read would cost as much as hashing it
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(piece):
                seen.update(piece[:count])
                length += count
                yield length
    except FileNotFoundError:
        yield "it is missing"
        return
    except OSError as error:
        yield f"it cannot be read ({error.strerror})"
        return
    if length != size:
        yield f"it has {length} bytes, and should have {size}"
    elif seen.hexdigest() != digest.removeprefix("sha256:"):
        yield "its bytes are not those of its digest"


def _users(store: Store, digest: str) -> tuple[str, ...]:
    """The models that need a blob at this moment."""
    return tuple(sorted(str(entry.name) for entry in store.survey()[0] if digest in entry.digests))


def prune(store: Store, report: Callable[[Progress | Damage | UnusedFile], None], *, dry_run: bool = False) -> PruneResult:
    """Remove blobs that nothing refers to and unfinished transfers of long ago; `rehearse` only says which they are.

    While a manifest cannot be read, that is said, and no blob goes: what it needs cannot be known. Raises StoreFailed.
    """
    report(Progress("looking for unused files"))
    for damage in _unread(store.survey()[1]):
        report(damage)
    blobs, unfinished = store.removable()
    files = {digest.replace(":", "-"): _taken(status) for digest, status in blobs.items()}
    files |= {path.name: _taken(status) for path, status in unfinished.items()}
    for name, size in sorted(files.items()):
        report(UnusedFile(name, size))
    total = sum(files.values())
    if dry_run:
        return PruneResult(len(blobs), len(unfinished), total)
    gone, freed = 0, 0
    waiting = sorted(blobs)
    while waiting:
        batch, waiting = waiting[:_BATCH], waiting[_BATCH:]
        went = store.remove(set(batch), set())
        gone += len(went)
        freed += sum(_taken(blobs[digest]) for digest in went)
        report(Progress("removing unused files", total=total or None, completed=freed if total else None))
    left = 0
    if unfinished:
        store.remove(set(), set(unfinished))
        left = sum(path.exists() for path in unfinished)
        freed += sum(_taken(status) for path, status in unfinished.items() if not path.exists())
    return PruneResult(gone, len(unfinished) - left, freed)


def _taken(status: object) -> int:
    """Bytes that a file takes on the disk: a sparse one takes less than it is long."""
    blocks = getattr(status, "st_blocks", None)
    length = int(getattr(status, "st_size", 0))
    return length if blocks is None else min(length, int(blocks) * 512)


def repair_sources(store: Store, digest: str) -> tuple[str, ...]:
    """The models that a blob may be pulled for again: those that were not made from another one here first.

    Behind those that need it come those that it was taken from, which need not be here any more. Raises StoreFailed when
    nobody needs it any more.
    """
    users = [entry for entry in store.survey()[0] if digest in entry.digests]
    if not users:
        raise StoreFailed("no model needs this file any more")
    users.sort(key=lambda entry: (bool(entry.parent), str(entry.name)))
    sources = [layer.source for entry in users for layer in entry.layers if layer.digest == digest and layer.source]
    return tuple(dict.fromkeys([*(str(entry.name) for entry in users), *sources]))
