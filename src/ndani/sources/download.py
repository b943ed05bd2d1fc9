"""Packed bytes become a blob as they arrive, and an interrupted transfer goes on where it stopped.

Deflate has no place to go in again: what a byte means depends on all before it, and zlib's state cannot be written
down. So the packed bytes of the part that is travelling are also kept, in a journal beside the partial blob; after a
`kill -9` the journal is unpacked once more (a fraction of a second) and only what it lacks is fetched. A part that is
complete and verified needs no journal: its unpacked bytes lie at the front of the partial, and the number in the next
journal's name says how many such parts there are. Stored parts need none at all, the partial is its own journal.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ndani.errors import SourceFailed
from ndani.sources import Part, PlannedLayer
from ndani.store import Store
from ndani.store.blobs import PIECE, Partial, write_all
from ndani.store.disk import make_folder, on_disk, require_room
from ndani.store.layout import hex_of


class Download:
    """One layer on its way into the store; the layer's lock must be held. First of all `begin`.

    Errors: StoreFailed, SourceFailed.
    """

    def __init__(self, store: Store, layer: PlannedLayer) -> None:
        self._store, self._layer, self._layout = store, layer, store.layout
        self._drop_ollamas()
        self.number, within = _standing(store, layer)
        done = layer.parts[: self.number]
        self._base = sum(part.size for part in done)
        self._kept = 0 if layer.deflated else within
        #: How many bytes `begin` goes through.
        self.here = self._base + within
        #: The digest of a layer's only part, where it lies as it came, is the layer's own: the partial reckons it.
        self._reckons = layer.deflated or len(layer.parts) > 1
        require_room(_existing(self._layout.root), _room(store, layer))
        self._partial: Partial = store.partial(layer.digest, layer.size, None)
        self._journal: BinaryIO | None = None
        self.received = sum(part.packed_size for part in done)
        self.within = 0

    def begin(self, report: Callable[[int], None]) -> None:
        """Go through what an earlier transfer has left, once; reports after each piece how many bytes of it so far.

        It takes as long as reading them does, so it wants a thread. Raises SourceFailed when they are wrong.
        """
        tail, seen = hashlib.sha256(), 0
        for piece in self._partial.resume(self._base + self._kept):
            if self._reckons:
                tail.update(piece[max(self._base - seen, 0) :])
            seen += len(piece)
            report(seen)
        self._begin(lambda count: report(seen + count))
        if (part := self.part) and not self._layer.deflated:
            # The partial itself holds the first bytes of this stored part: they are not fetched again.
            self._hash = tail
            self._unpacked = self.within = self._kept
            self.received += self._kept
            if self.within == part.packed_size:
                self._end(part)

    @property
    def part(self) -> Part | None:
        """The part that is needed next, or None when all have come."""
        parts = self._layer.parts
        return parts[self.number] if self.number < len(parts) else None

    def feed(self, chunk: bytes) -> None:
        """Take the next packed bytes of the current part. Raises SourceFailed on bytes that cannot be right."""
        if self._journal:
            with on_disk(self._layout.root, self._layer.packed_size - self.received):
                write_all(self._journal, chunk)
        self._unpack(chunk)

    def finish(self) -> None:
        """All parts are here: verify the whole and give it its name. Raises Mismatch after removing wrong bytes."""
        self._partial.finish()
        _forget(self._store, self._layer)

    def discard(self) -> None:
        """What came is wrong: remove all of it."""
        self.close()
        self._layout.partial(self._layer.digest).unlink(missing_ok=True)
        _forget(self._store, self._layer)

    def close(self) -> None:
        """Leave what there is for the next pull."""
        self._partial.close()
        if self._journal:
            self._journal.close()

    def _drop_ollamas(self) -> None:
        """A partial of Ollama's has the length of the whole and holes, listed in files beside it: it is no beginning."""
        partial = self._layout.partial(self._layer.digest)
        lists = list(self._layout.blobs.glob(f"{partial.name}-*"))
        with on_disk(self._layout.root):
            for path in [*lists, partial] if lists else []:
                path.unlink(missing_ok=True)

    def _begin(self, report: Callable[[int], None]) -> None:
        """Start on the current part, from what a journal has of it; reports how many bytes of that so far."""
        part = self.part
        self.within = 0
        if part is None:
            return
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS) if part.deflated else None
        self._hash = hashlib.sha256()
        self._unpacked = 0
        if not self._layer.deflated:
            return
        path = self._layout.journal(self._layer.digest, self.number)
        with on_disk(self._layout.root):
            make_folder(path.parent)
            journal = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b", buffering=0)
            if path.stat().st_size > part.packed_size:
                journal.truncate(0)
        self._journal = journal
        # A journal that is complete ends its part, and the next part has a journal of its own.
        while self._journal is journal and (piece := journal.read(PIECE)):
            self._unpack(piece)
            report(self.within)

    def _unpack(self, chunk: bytes) -> None:
        part = self.part
        if part is None or self.within + len(chunk) > part.packed_size:
            raise self._wrong("is longer than it should be")
        self.within += len(chunk)
        self.received += len(chunk)
        try:
            content = self._inflate.decompress(chunk, part.size - self._unpacked + 1) if self._inflate else chunk
        except zlib.error:
            raise self._wrong("cannot be unpacked") from None
        self._unpacked += len(content)
        if self._unpacked > part.size:
            raise self._wrong("unpacks to more than it should")
        if self._reckons:
            self._hash.update(content)
        self._partial.write(content)
        if self.within == part.packed_size:
            self._end(part)

    def _end(self, part: Part) -> None:
        if self._unpacked != part.size:
            raise self._wrong("unpacks to less than it should")
        got = self._hash.hexdigest() if self._reckons else hex_of(self._partial.reckoned)
        if got != part.sha256:
            raise self._wrong(f"has the wrong bytes (want sha256:{part.sha256}, got sha256:{got})")
        self.number += 1
        if self._journal:
            # First the bytes, then the next journal that vouches for them, then the old journal goes.
            self._partial.settle()
            self._journal.close()
            self._journal = None
        done = self.number - 1
        self._begin(_unreported)
        if self.part is not None:
            self._layout.journal(self._layer.digest, done).unlink(missing_ok=True)

    def _wrong(self, what: str) -> SourceFailed:
        """Wrong bytes are removed at once: nothing of them may be taken for a beginning."""
        self.discard()
        name = self.part.file.name if self.part else "the file"
        return SourceFailed(f"digest mismatch, file must be downloaded again: {name} {what}; pull once more, or use another source")


def _unreported(count: int) -> None:
    """Nobody waits for so little."""


def received(store: Store, layer: PlannedLayer) -> int:
    """How many packed bytes of a layer are here so far, whoever is bringing it."""
    if store.blobs.sound(layer.digest, layer.size):
        return layer.packed_size
    number, within = _standing(store, layer)
    return sum(part.packed_size for part in layer.parts[:number]) + within


def _standing(store: Store, layer: PlannedLayer) -> tuple[int, int]:
    """How far an earlier transfer came: complete parts, and packed bytes of the one after."""
    partial = _size(store.layout.partial(layer.digest))
    if layer.deflated:
        for number in reversed(range(len(layer.parts))):
            journal = store.layout.journal(layer.digest, number)
            if journal.exists() and partial >= sum(part.size for part in layer.parts[:number]):
                return number, _size(journal)
        return 0, 0
    for number, part in enumerate(layer.parts):
        if partial < part.size:
            return number, partial
        partial -= part.size
    return (len(layer.parts), 0) if not partial else (0, 0)


def _room(store: Store, layer: PlannedLayer) -> int:
    """Bytes of disk that the transfer will still take, at its widest: the blob and the largest journal, less what lies here."""
    widest = layer.size + (max(part.packed_size for part in layer.parts) if layer.deflated else 0)
    journals = sum(_size(store.layout.journal(layer.digest, number)) for number in range(len(layer.parts)))
    return max(widest - journals - _size(store.layout.partial(layer.digest)), 0)


def _forget(store: Store, layer: PlannedLayer) -> None:
    for number in range(len(layer.parts)):
        store.layout.journal(layer.digest, number).unlink(missing_ok=True)


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0
