"""How far an upload is, noted in the store; and how a registry takes blobs, as far as it has let us know."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path

import msgspec

from ndani.store import Store
from ndani.untrusted_json import InvalidJson, decode

#: A part: small enough to be finished by whoever has to leave, and at most 5,000 of them make a blob, unless the registry
#: wants smaller ones. Where even this share of it is too large, a blob is sent in one request.
PART = 16 << 20
MOST_PARTS = 5000
_SMALLEST = 1 / 64
#: How many parts in a row come through before larger ones are tried again.
_UNTIL_LARGER = 32
_STALE = 7 * 86400.0


class UploadState(msgspec.Struct):
    """How far an upload is: where the next part goes, bytes sent, and the MD5 of each part (Ollama's registry adds them up).

    `least` is how large the registry wants a part at least.
    """

    location: str = ""
    sent: int = 0
    parts: list[str] = []
    least: int = 0


class UploadTuning:
    """How a registry takes blobs, as far as it has let us know."""

    def __init__(self, part: int = PART) -> None:
        self._part, self._smallest = part, part * _SMALLEST
        #: The largest part to be tried again, after parts of a smaller one have come through.
        self._most = part
        self._taken = 0
        self._broken: set[int] = set()
        #: Whether a part was too large. Until then parts are not smaller than a blob of not too many wants them.
        self._capped = False
        #: It takes no parts: a blob comes in one request.
        self.whole = False

    def part_of(self, size: int, least: int) -> int:
        """Bytes of a part of a blob of this size, where the registry wants `least`."""
        return max(self._part, least, 0 if self._capped else -(-size // MOST_PARTS))

    def shrink(self, part: int) -> None:
        """A part of so many bytes is too large."""
        self._capped, self._part = True, min(self._part, part // 2)
        self._most = min(self._most, self._part)
        self.whole = self.whole or self._part < self._smallest

    def broke(self, part: int) -> None:
        """A part of so many bytes breaks off again and again: it is too large, or the line is bad and will be better."""
        if part in self._broken:
            self._most = min(self._most, part // 2)
        self._broken.add(part)
        self._capped, self._taken = True, 0
        self._part = min(self._part, max(part // 4, int(self._smallest), 1))

    def took(self) -> None:
        """A part came through. After some of them larger ones are tried, where smaller ones are not all that is taken."""
        self._taken += 1
        if self._part < self._most and self._taken >= _UNTIL_LARGER:
            self._part, self._taken = min(self._part * 2, self._most), 0


def read(note: Path) -> UploadState:
    """What is noted in a file, or that nothing is."""
    with contextlib.suppress(OSError, InvalidJson):
        return decode(note.read_bytes(), UploadState)
    return UploadState()


def write(note: Path, standing: UploadState) -> None:
    """Note it. Where that cannot be, a push that breaks off begins this blob again: no reason not to push."""
    with contextlib.suppress(OSError):
        note.parent.mkdir(exist_ok=True, mode=0o700)
        fresh = note.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(standing))
        fresh.replace(note)


def forget(note: Path) -> None:
    """Remove a note."""
    with contextlib.suppress(OSError):  # a store that may not be written to has none
        note.unlink(missing_ok=True)


def remove_stale(store: Store) -> None:
    """Notes of uploads that nobody goes on with any more go."""
    with contextlib.suppress(OSError):
        for note in store.layout.uploads.iterdir():
            if note.stat().st_mtime < time.time() - _STALE:
                note.unlink()


def md5_of(file: int, first: int, end: int) -> str:
    """The MD5 (hex) of the bytes from `first` up to `end` of an open file."""
    total, at = hashlib.md5(usedforsecurity=False), first
    while at < end and (piece := os.pread(file, min(1 << 20, end - at), at)):
        total.update(piece)
        at += len(piece)
    return total.hexdigest()
