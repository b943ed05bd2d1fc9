"""Writes packed bytes to a blob as they arrive, and resumes an interrupted transfer where it stopped.

A deflate stream cannot be resumed in the middle: a byte's meaning depends on all bytes before it, and zlib's state cannot
be saved. So the packed bytes of the current part are also written to a journal beside the partial blob. After a `kill -9`
the journal is unpacked again (a fraction of a second), and only the missing bytes are fetched. A part that is complete and
verified needs no journal: its unpacked bytes are at the front of the partial blob, and the number in the next journal's name
is the number of such parts. A layer without any compressed part needs no journal at all: the partial blob has its bytes.
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
from ndani.store.blobs import CHUNK_SIZE, PartialBlob
from ndani.store.disk import make_folder, require_free_space, translate_disk_errors, write_all
from ndani.store.layout import hex_of


class Download:
    """The download of one layer into the store. The caller must hold the layer's lock, and call `resume` first.

    Errors: StoreFailed, SourceFailed.
    """

    def __init__(self, store: Store, layer: PlannedLayer) -> None:
        self._store, self._layer, self._layout = store, layer, store.layout
        self._remove_ollama_partial()
        self.part_index, packed_offset = _resume_point(store, layer)
        finished_parts = layer.parts[: self.part_index]
        self._finished_unpacked_size = sum(part.size for part in finished_parts)
        #: Bytes of the current part that the partial blob has; 0 with a journal, for `resume` unpacks the part again.
        self._stored_unpacked_size = 0 if layer.deflated else packed_offset
        #: How many bytes `resume` reads: unpacked ones of the finished parts from the partial blob, and packed ones of the
        #: current part from its journal (if nothing is compressed they are in the partial blob, and the same unpacked).
        self.resume_read_size = self._finished_unpacked_size + packed_offset
        #: Whether parts are hashed here. A single uncompressed part has the layer's digest, which the partial blob computes.
        self._hashes_parts = layer.deflated or len(layer.parts) > 1
        require_free_space(_existing_ancestor(self._layout.root), _space_needed(store, layer))
        self._partial: PartialBlob = store.open_partial(layer.digest, layer.size, None)
        self._journal: BinaryIO | None = None
        self.received_packed_size = sum(part.packed_size for part in finished_parts)
        self.packed_offset = 0

    def resume(self, report: Callable[[int], None]) -> None:
        """Read what an earlier transfer has left, once; reports after each chunk how many bytes it has read.

        It takes as long as reading them, so callers run it in a thread. Raises SourceFailed when the bytes are wrong.
        """
        part_hash, checked = hashlib.sha256(), 0
        for chunk in self._partial.rehash(self._finished_unpacked_size + self._stored_unpacked_size):
            if self._hashes_parts:
                part_hash.update(chunk[max(self._finished_unpacked_size - checked, 0) :])
            checked += len(chunk)
            report(checked)
        self._start_part(lambda count: report(checked + count))
        if (part := self.part) and not self._layer.deflated:
            # The partial blob has the first bytes of this uncompressed part: they are not fetched again.
            self._part_hash = part_hash
            self._part_unpacked_size = self.packed_offset = self._stored_unpacked_size
            self.received_packed_size += self._stored_unpacked_size
            if self.packed_offset == part.packed_size:
                self._finish_part(part)

    @property
    def part(self) -> Part | None:
        """The part that is needed next, or None when all are complete."""
        parts = self._layer.parts
        return parts[self.part_index] if self.part_index < len(parts) else None

    def feed(self, chunk: bytes) -> None:
        """Add the next packed bytes of the current part. Raises SourceFailed when they are invalid."""
        if self._journal:
            with translate_disk_errors(self._layout.root, self._layer.packed_size - self.received_packed_size):
                write_all(self._journal.fileno(), chunk)
        self._unpack(chunk)

    def finish(self) -> None:
        """Verify the complete blob and give it its name. Raises DigestMismatch after removing wrong bytes."""
        self._partial.finish()
        _remove_journals(self._store, self._layer)

    def discard(self) -> None:
        """Remove all bytes, because they are wrong."""
        self.close()
        self._layout.partial(self._layer.digest).unlink(missing_ok=True)
        _remove_journals(self._store, self._layer)

    def close(self) -> None:
        """Close the files; their bytes stay for the next pull."""
        self._partial.close()
        if self._journal:
            self._journal.close()

    def _remove_ollama_partial(self) -> None:
        """Remove Ollama's own partial blob: it has full length, with holes that files beside it list, so it cannot resume here."""
        partial = self._layout.partial(self._layer.digest)
        hole_lists = list(self._layout.blobs.glob(f"{partial.name}-*"))
        with translate_disk_errors(self._layout.root):
            for path in [*hole_lists, partial] if hole_lists else []:
                path.unlink(missing_ok=True)

    def _start_part(self, report: Callable[[int], None]) -> None:
        """Start the current part from its journal; reports how many bytes of the journal it has read."""
        part = self.part
        self.packed_offset = 0
        if part is None:
            return
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS) if part.deflated else None
        self._part_hash = hashlib.sha256()
        self._part_unpacked_size = 0
        if not self._layer.deflated:
            return
        path = self._layout.journal(self._layer.digest, self.part_index)
        with translate_disk_errors(self._layout.root):
            make_folder(path.parent)
            journal = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b", buffering=0)
            if path.stat().st_size > part.packed_size:
                journal.truncate(0)
        self._journal = journal
        # A complete journal finishes its part; the next part has another journal.
        while self._journal is journal and (chunk := journal.read(CHUNK_SIZE)):
            self._unpack(chunk)
            report(self.packed_offset)

    def _unpack(self, chunk: bytes) -> None:
        part = self.part
        if part is None or self.packed_offset + len(chunk) > part.packed_size:
            raise self._corrupt("is longer than it should be")
        self.packed_offset += len(chunk)
        self.received_packed_size += len(chunk)
        try:
            content = self._inflater.decompress(chunk, part.size - self._part_unpacked_size + 1) if self._inflater else chunk
        except zlib.error:
            raise self._corrupt("cannot be unpacked") from None
        self._part_unpacked_size += len(content)
        if self._part_unpacked_size > part.size:
            raise self._corrupt("unpacks to more than it should")
        if self._hashes_parts:
            self._part_hash.update(content)
        self._partial.write(content)
        if self.packed_offset == part.packed_size:
            self._finish_part(part)

    def _finish_part(self, part: Part) -> None:
        if self._part_unpacked_size != part.size:
            raise self._corrupt("unpacks to less than it should")
        got = self._part_hash.hexdigest() if self._hashes_parts else hex_of(self._partial.current_digest)
        if got != part.sha256:
            raise self._corrupt(f"has the wrong bytes (want sha256:{part.sha256}, got sha256:{got})")
        self.part_index += 1
        if self._journal:
            # The order matters: write the bytes to disk, create the next journal (which marks them as complete), remove the old.
            self._partial.sync()
            self._journal.close()
            self._journal = None
        finished_parts = self.part_index - 1
        self._start_part(_ignore)
        if self.part is not None:
            self._layout.journal(self._layer.digest, finished_parts).unlink(missing_ok=True)

    def _corrupt(self, problem: str) -> SourceFailed:
        """Remove the wrong bytes at once, so that no later pull resumes from them; return the error."""
        self.discard()
        name = self.part.file.name if self.part else "the file"
        return SourceFailed(f"digest mismatch, file must be downloaded again: {name} {problem}; pull once more, or use another source")


def _ignore(count: int) -> None:
    """The journal of a part that has just started is empty: there is nothing to report."""


def received_packed_size(store: Store, layer: PlannedLayer) -> int:
    """How many packed bytes of a layer are here so far, also when another process downloads it."""
    if store.blobs.is_intact(layer.digest, layer.size):
        return layer.packed_size
    part_index, packed_offset = _resume_point(store, layer)
    return sum(part.packed_size for part in layer.parts[:part_index]) + packed_offset


def _resume_point(store: Store, layer: PlannedLayer) -> tuple[int, int]:
    """How far an earlier transfer came: the number of complete parts, and the packed bytes of the next one."""
    partial = _file_size(store.layout.partial(layer.digest))
    if layer.deflated:
        for part_index in reversed(range(len(layer.parts))):
            journal = store.layout.journal(layer.digest, part_index)
            if journal.exists() and partial >= sum(part.size for part in layer.parts[:part_index]):
                return part_index, _file_size(journal)
        return 0, 0
    for part_index, part in enumerate(layer.parts):
        if partial < part.size:
            return part_index, partial
        partial -= part.size
    return (len(layer.parts), 0) if not partial else (0, 0)


def _space_needed(store: Store, layer: PlannedLayer) -> int:
    """Bytes of disk that the transfer still needs at its peak: the blob and the largest journal, less what is here."""
    peak = layer.size + (max(part.packed_size for part in layer.parts) if layer.deflated else 0)
    journals = sum(_file_size(store.layout.journal(layer.digest, part_index)) for part_index in range(len(layer.parts)))
    return max(peak - journals - _file_size(store.layout.partial(layer.digest)), 0)


def _remove_journals(store: Store, layer: PlannedLayer) -> None:
    for part_index in range(len(layer.parts)):
        store.layout.journal(layer.digest, part_index).unlink(missing_ok=True)


def _existing_ancestor(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _file_size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0
