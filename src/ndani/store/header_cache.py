"""Caches the headers of weights files in memory and in notes on the disk, one small file each, so that a listing reads no
weights.

A blob never changes, so a cached header stays valid; a missing or damaged note is written again. Nothing depends on the
notes: a read-only store is only slower to list.
"""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from typing import Any

import msgspec

from ndani.store.gguf import MAX_HEADER_MEMORY, translate_gguf_errors
from ndani.store.layout import Layout
from ndani.store.weights_info import WeightsInfo, inspect
from ndani.untrusted_json import InvalidJson, decode

_MAX_NOTE_SIZE = 1 << 24
#: Bytes of memory for all cached headers: enough for one of the maximum size, and for hundreds of usual ones.
_MAX_MEMORY = 4 * MAX_HEADER_MEMORY
_MEMORY_PER_NOTE_BYTE = 8  # a decoded note takes about this many times its size
_BASE_MEMORY = 1 << 12  # bytes of a header in addition to its metadata and tensors


class _DiskNote(msgspec.Struct, frozen=True):
    """The metadata of a file without long arrays, and the number of parameters in its tensors."""

    keys: dict[str, Any]
    count: int


class _MemoryCache:
    """An LRU cache of headers by digest, limited to `_MAX_MEMORY` bytes. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._headers: dict[str, WeightsInfo] = {}
        self._memory = 0

    def get(self, digest: str) -> WeightsInfo | None:
        with self._lock:
            header = self._headers.pop(digest, None)
            if header:
                self._headers[digest] = header  # to the end, where the newest are
            return header

    def put(self, digest: str, header: WeightsInfo) -> None:
        with self._lock:
            self._pop(digest)
            self._headers[digest] = header
            self._memory += header.memory + _BASE_MEMORY
            while self._memory > _MAX_MEMORY and len(self._headers) > 1:
                self._pop(next(iter(self._headers)))

    def pop(self, digest: str) -> None:
        with self._lock:
            self._pop(digest)

    def clear(self) -> None:
        with self._lock:
            self._headers, self._memory = {}, 0

    def _pop(self, digest: str) -> None:
        if header := self._headers.pop(digest, None):
            self._memory -= header.memory + _BASE_MEMORY


class HeaderCache:
    """The headers of one store's weights."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._full, self._summaries = _MemoryCache(), _MemoryCache()

    def inspect(self, digest: str) -> WeightsInfo:
        """The full header of the weights of this digest. Raises as `weights_info.inspect`."""
        header = self._full.get(digest)
        if not header:
            header = inspect(self._layout.blob(digest))
            self._full.put(digest, header)
        return header

    def header(self, digest: str) -> WeightsInfo:
        """As `inspect`, but raises StoreFailed when the weights are missing or invalid."""
        with translate_gguf_errors(self._layout.blob(digest)):
            return self.inspect(digest)

    def summary(self, digest: str) -> WeightsInfo:
        """The header without the tensors, from a note if there is one. Raises StoreFailed."""
        header = self._summaries.get(digest)
        if not header:
            header = self._full.get(digest) or self._read(digest)
            self._summaries.put(digest, header)
        return header

    def remove(self, digest: str) -> None:
        """Remove everything that is cached of weights that were removed."""
        self._full.pop(digest)
        self._summaries.pop(digest)
        with contextlib.suppress(OSError):
            self._layout.header_note(digest).unlink()

    def clear(self) -> None:
        """Clear the memory caches, because a damaged file may have been replaced."""
        self._full.clear()
        self._summaries.clear()

    def _read(self, digest: str) -> WeightsInfo:
        with contextlib.suppress(OSError, InvalidJson):
            with open(self._layout.header_note(digest), "rb") as file:  # noqa: PTH123 - three hundred of these are a listing
                text = file.read(_MAX_NOTE_SIZE)
            note = decode(text, _DiskNote)
            # Fails if the weights are missing, so that a listing does not describe weights that are gone.
            os.stat(self._layout.blob(digest))  # noqa: PTH116
            return WeightsInfo(self._layout.blob(digest), note.keys, (), note.count, memory=_MEMORY_PER_NOTE_BYTE * len(text))
        with translate_gguf_errors(self._layout.blob(digest)):
            header = inspect(self._layout.blob(digest))
        self._write(digest, header)
        return WeightsInfo(header.path, header.metadata, (), header.parameter_count, memory=header.memory)

    def _write(self, digest: str, header: WeightsInfo) -> None:
        temporary = self._layout.header_notes / f".{uuid.uuid4().hex}"
        try:
            self._layout.header_notes.mkdir(exist_ok=True, mode=0o755)
            temporary.write_bytes(msgspec.json.encode(_DiskNote(header.metadata, header.parameter_count)))
            temporary.replace(self._layout.header_note(digest))
        except (OSError, msgspec.EncodeError, ValueError):
            with contextlib.suppress(OSError):
                temporary.unlink()
