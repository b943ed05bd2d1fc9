"""Store maintenance: `verify` hashes every blob again, `prune` removes files that nothing refers to.

Both report progress; a report that raises ends them, so that the caller can cancel. Reading takes no lock: before damage is
reported, the names are read again, because a model may be removed while its files are read. `sources` fetches damaged blobs
again.
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
from ndani.store.store import Store
from ndani.store.stored_model import StoredModel
from ndani.types import Progress

_REPORT_INTERVAL = 0.1  # seconds between two progress reports
_BATCH_SIZE = 64  # files removed each time the store lock is held


@dataclass(frozen=True, slots=True)
class Damage:
    """A damaged blob and the models that need it; without a digest, a manifest that cannot be read.

    With neither a digest nor models, a folder of manifests that cannot be read.
    """

    problem: str
    models: tuple[str, ...]
    digest: str = ""


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """The result of `verify`: the number of blobs read, their bytes, and the damage found."""

    blobs: int
    size: int
    damaged: tuple[Damage, ...]


@dataclass(frozen=True, slots=True)
class UnusedFile:
    """A file that nothing refers to, and its bytes on the disk."""

    file: str
    size: int


@dataclass(frozen=True, slots=True)
class PruneResult:
    """The result of `prune`: the numbers of files removed (or to be removed), and the bytes freed on the disk."""

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
    """Hash every blob of these models, or `only` these digests if there are any; damage is reported when it is found.

    `damaged` has a sentence for each name whose manifest cannot be read, as returned by `Store.survey`. A damaged blob gets a
    note, so that the next pull fetches it again. Raises StoreFailed.
    """
    needed: dict[str, int] = {}
    for entry in entries:
        for layer in (entry.manifest.config, *entry.layers):
            if not only or layer.digest in only:
                needed[layer.digest] = layer.size
    damages = _damaged_manifests(damaged)
    for damage in damages:
        report(damage)
    total, completed, reported = sum(needed.values()), 0, 0.0
    status = f"verifying {len(needed)} {'file' if len(needed) == 1 else 'files'}, {format_bytes(total)}"
    report(Progress(status, total=total, completed=0))
    for digest, size in needed.items():
        problem, start, state = "", completed, file_state(store.layout, digest)
        for step in _read(store, digest, size):
            if isinstance(step, str):
                problem = step
            else:
                completed = start + min(step, size)
                if time.monotonic() - reported >= _REPORT_INTERVAL:
                    reported = time.monotonic()
                    report(Progress(status, total=total, completed=completed))
        completed = start + size
        if problem and (models := _users(store, digest)):
            note_damage(store.layout, digest, state)
            damages.append(Damage(problem, models, digest))
            report(damages[-1])
        elif not problem:
            forget_damage(store.layout, digest)
    report(Progress(status, total=total, completed=total))
    return VerifyResult(len(needed), total, tuple(damages))


def _damaged_manifests(damaged: dict[str, str]) -> list[Damage]:
    return [Damage(sentence, () if name.endswith("/") else (name,)) for name, sentence in sorted(damaged.items())]


def _read(store: Store, digest: str, size: int) -> Iterator[int | str]:
    """Read a blob and yield the number of bytes read so far; at the end, a sentence about what is wrong, if anything is."""
    path, hasher, length = store.layout.blob(digest), hashlib.sha256(), 0
    buffer = memoryview(bytearray(CHUNK_SIZE))  # reused: allocating one for each read would cost as much as hashing
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                hasher.update(buffer[:count])
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
    elif hasher.hexdigest() != digest.removeprefix("sha256:"):
        yield "its bytes are not those of its digest"


def _users(store: Store, digest: str) -> tuple[str, ...]:
    """The models that need a blob at present."""
    return tuple(sorted(str(entry.name) for entry in store.survey()[0] if digest in entry.digests))


def prune(store: Store, report: Callable[[Progress | Damage | UnusedFile], None], *, dry_run: bool = False) -> PruneResult:
    """Remove blobs that nothing refers to and old unfinished transfers; `dry_run` only reports them.

    While a manifest cannot be read, it is reported and no blob is removed, because its references are unknown. Raises
    StoreFailed.
    """
    report(Progress("looking for unused files"))
    for damage in _damaged_manifests(store.survey()[1]):
        report(damage)
    blobs, unfinished = store.removable()
    files = {digest.replace(":", "-"): _disk_usage(status) for digest, status in blobs.items()}
    files |= {path.name: _disk_usage(status) for path, status in unfinished.items()}
    for name, size in sorted(files.items()):
        report(UnusedFile(name, size))
    total = sum(files.values())
    if dry_run:
        return PruneResult(len(blobs), len(unfinished), total)
    removed_blobs, freed = 0, 0
    pending = sorted(blobs)
    while pending:
        batch, pending = pending[:_BATCH_SIZE], pending[_BATCH_SIZE:]
        removed = store.remove(set(batch), set())
        removed_blobs += len(removed)
        freed += sum(_disk_usage(blobs[digest]) for digest in removed)
        report(Progress("removing unused files", total=total or None, completed=freed if total else None))
    remaining = 0
    if unfinished:
        store.remove(set(), set(unfinished))
        remaining = sum(path.exists() for path in unfinished)
        freed += sum(_disk_usage(status) for path, status in unfinished.items() if not path.exists())
    return PruneResult(removed_blobs, len(unfinished) - remaining, freed)


def _disk_usage(status: object) -> int:
    """Bytes that a file takes on the disk; a sparse file takes less than its length."""
    blocks = getattr(status, "st_blocks", None)
    length = int(getattr(status, "st_size", 0))
    return length if blocks is None else min(length, int(blocks) * 512)


def repair_sources(store: Store, digest: str) -> tuple[str, ...]:
    """The models that can be pulled to restore a blob, with those that were not created from another model first.

    After the models that need it come those it was taken from, which need not be in the store any more. Raises StoreFailed
    when no model needs it any more.
    """
    users = [entry for entry in store.survey()[0] if digest in entry.digests]
    if not users:
        raise StoreFailed("no model needs this file any more")
    users.sort(key=lambda entry: (bool(entry.parent), str(entry.name)))
    sources = [layer.source for entry in users for layer in entry.layers if layer.digest == digest and layer.source]
    return tuple(dict.fromkeys([*(str(entry.name) for entry in users), *sources]))
