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

_LARGEST = 1 << 24
#: Bytes of memory that all heads that are kept may take: one that is as large as can be, and hundreds as models have them.
_MOST_HELD = 4 * MAX_HEADER_MEMORY
_INFLATED = 8  # times the size of a note, which is text, in memory
_LEAST = 1 << 12  # what a head takes beside its keys and tensors


class _DiskNote(msgspec.Struct, frozen=True):
    """The key/values of a file, long arrays left out, and how many numbers its tensors hold."""

    keys: dict[str, Any]
    count: int


class _MemoryCache:
    """HeaderCache by digest, those that were asked for last: as many as `_MOST_HELD` bytes of memory hold. Safe in threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heads: dict[str, WeightsInfo] = {}
        self._held = 0

    def get(self, digest: str) -> WeightsInfo | None:
        with self._lock:
            found = self._heads.pop(digest, None)
            if found:
                self._heads[digest] = found  # to the end, where the newest are
            return found

    def put(self, digest: str, header: WeightsInfo) -> None:
        with self._lock:
            self._pop(digest)
            self._heads[digest] = header
            self._held += header.memory + _LEAST
            while self._held > _MOST_HELD and len(self._heads) > 1:
                self._pop(next(iter(self._heads)))

    def pop(self, digest: str) -> None:
        with self._lock:
            self._pop(digest)

    def clear(self) -> None:
        with self._lock:
            self._heads, self._held = {}, 0

    def _pop(self, digest: str) -> None:
        if found := self._heads.pop(digest, None):
            self._held -= found.memory + _LEAST


class HeaderCache:
    """The heads of one store's weights."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._whole, self._noted = _MemoryCache(), _MemoryCache()

    def inspect(self, digest: str) -> WeightsInfo:
        """All that the weights of this digest say of themselves. Raises as `inspect.inspect` does."""
        found = self._whole.get(digest)
        if not found:
            found = inspect(self._layout.blob(digest))
            self._whole.put(digest, found)
        return found

    def header(self, digest: str) -> WeightsInfo:
        """The same. Raises StoreFailed when they are missing or not usable."""
        with translate_gguf_errors(self._layout.blob(digest)):
            return self.inspect(digest)

    def summary(self, digest: str) -> WeightsInfo:
        """The same without the tensors, from a note where there is one. Raises StoreFailed."""
        found = self._noted.get(digest)
        if not found:
            found = self._whole.get(digest) or self._read(digest)
            self._noted.put(digest, found)
        return found

    def remove(self, digest: str) -> None:
        """Of weights that are gone keep nothing; that there is no note is fine."""
        self._whole.pop(digest)
        self._noted.pop(digest)
        with contextlib.suppress(OSError):
            self._layout.header_note(digest).unlink()

    def clear(self) -> None:
        """Keep nothing in memory: a file may have taken the place of a damaged one."""
        self._whole.clear()
        self._noted.clear()

    def _read(self, digest: str) -> WeightsInfo:
        with contextlib.suppress(OSError, InvalidJson):
            with open(self._layout.header_note(digest), "rb") as file:  # noqa: PTH123 - three hundred of these are a listing
                text = file.read(_LARGEST)
            note = decode(text, _DiskNote)
            # The weights must be there all the same: a listing that knows of weights that are gone would lie.
            os.stat(self._layout.blob(digest))  # noqa: PTH116
            return WeightsInfo(self._layout.blob(digest), note.keys, (), note.count, memory=_INFLATED * len(text))
        with translate_gguf_errors(self._layout.blob(digest)):
            header = inspect(self._layout.blob(digest))
        self._write(digest, header)
        return WeightsInfo(header.path, header.metadata, (), header.parameter_count, memory=header.memory)

    def _write(self, digest: str, header: WeightsInfo) -> None:
        fresh = self._layout.header_notes / f".{uuid.uuid4().hex}"
        try:
            self._layout.header_notes.mkdir(exist_ok=True, mode=0o755)
            fresh.write_bytes(msgspec.json.encode(_DiskNote(header.metadata, header.parameter_count)))
            fresh.replace(self._layout.header_note(digest))
        except (OSError, msgspec.EncodeError, ValueError):
            with contextlib.suppress(OSError):
                fresh.unlink()
