"""What weights files say of themselves, read once: kept in memory, and as notes, one small file each, so that a listing
reads none of the weights.

A blob never changes, so what was read of its digest is right for ever; a note that is missing or damaged is made again.
Nothing depends on a note being there: a store that may not be written to is only slower to list.
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
#: Bytes of memory that all heads that are kept may take: one that is as large as can be, and hundreds as models have them.
_MAX_MEMORY = 4 * MAX_HEADER_MEMORY
_MEMORY_PER_NOTE_BYTE = 8  # times the size of a note, which is text, in memory
_BASE_MEMORY = 1 << 12  # what a head takes beside its keys and tensors


class _DiskNote(msgspec.Struct, frozen=True):
    """The key/values of a file, long arrays left out, and how many numbers its tensors hold."""

    keys: dict[str, Any]
    count: int


class _MemoryCache:
    """HeaderCache by digest, those that were asked for last: as many as `_MOST_HELD` bytes of memory hold. Safe in threads."""

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
    """The heads of one store's weights."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._full, self._summaries = _MemoryCache(), _MemoryCache()

    def inspect(self, digest: str) -> WeightsInfo:
        """All that the weights of this digest say of themselves. Raises as `inspect.inspect` does."""
        header = self._full.get(digest)
        if not header:
            header = inspect(self._layout.blob(digest))
            self._full.put(digest, header)
        return header

    def header(self, digest: str) -> WeightsInfo:
        """The same. Raises StoreFailed when they are missing or not usable."""
        with translate_gguf_errors(self._layout.blob(digest)):
            return self.inspect(digest)

    def summary(self, digest: str) -> WeightsInfo:
        """The same without the tensors, from a note where there is one. Raises StoreFailed."""
        header = self._summaries.get(digest)
        if not header:
            header = self._full.get(digest) or self._read(digest)
            self._summaries.put(digest, header)
        return header

    def remove(self, digest: str) -> None:
        """Of weights that are gone keep nothing; that there is no note is fine."""
        self._full.pop(digest)
        self._summaries.pop(digest)
        with contextlib.suppress(OSError):
            self._layout.header_note(digest).unlink()

    def clear(self) -> None:
        """Keep nothing in memory: a file may have taken the place of a damaged one."""
        self._full.clear()
        self._summaries.clear()

    def _read(self, digest: str) -> WeightsInfo:
        with contextlib.suppress(OSError, InvalidJson):
            with open(self._layout.header_note(digest), "rb") as file:  # noqa: PTH123 - three hundred of these are a listing
                text = file.read(_MAX_NOTE_SIZE)
            note = decode(text, _DiskNote)
            # The weights must be there all the same: a listing that knows of weights that are gone would lie.
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
