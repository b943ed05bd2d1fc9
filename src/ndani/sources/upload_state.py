"""The state of an upload, saved in the store so that it can resume; and what we have learnt about how a registry takes blobs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path

import msgspec

from ndani.store import Store
from ndani.untrusted_json import InvalidJson, decode

#: Bytes of a part. It is small enough to be finished when a push is stopped. A blob has at most `MAX_PARTS` of them, unless
#: the registry demands smaller ones. Where even this share of a part is too large, the blob is sent in one request.
PART = 16 << 20
MAX_PARTS = 5000
_MIN_PART_SHARE = 1 / 64
#: How many parts in a row must succeed before larger ones are tried again.
_PARTS_UNTIL_LARGER = 32
_STALE_AFTER_S = 7 * 86400.0


class UploadState(msgspec.Struct):
    """How far an upload is: the URL for the next part, the bytes sent, and the MD5 of each part (Ollama's registry checks
    them). `min_part` is the registry's minimum for the size of a part.
    """

    location: str = ""
    sent: int = 0
    parts: list[str] = []
    min_part: int = msgspec.field(default=0, name="least")  # the name in files of earlier versions


class UploadTuning:
    """What we have learnt about how a registry takes blobs."""

    def __init__(self, part: int = PART) -> None:
        self._part, self._min_size = part, part * _MIN_PART_SHARE
        #: The largest size to try again after smaller parts have succeeded.
        self._max_size = part
        self._accepted_in_a_row = 0
        self._interrupted_sizes: set[int] = set()
        #: Whether a part was too large. Until then parts are large enough for `MAX_PARTS` of them to hold the blob.
        self._is_limited = False
        #: Whether the registry takes no parts: then a blob is sent in one request.
        self.in_one_request = False

    def part_size(self, size: int, min_part: int) -> int:
        """Bytes of a part of a blob of this size, at least `min_part`."""
        return max(self._part, min_part, 0 if self._is_limited else -(-size // MAX_PARTS))

    def part_too_large(self, part: int) -> None:
        """The registry refused a part of this size as too large."""
        self._is_limited, self._part = True, min(self._part, part // 2)
        self._max_size = min(self._max_size, self._part)
        self.in_one_request = self.in_one_request or self._part < self._min_size

    def part_interrupted(self, part: int) -> None:
        """Parts of this size are interrupted repeatedly: they are too large, or the connection is bad for a while."""
        if part in self._interrupted_sizes:
            self._max_size = min(self._max_size, part // 2)
        self._interrupted_sizes.add(part)
        self._is_limited, self._accepted_in_a_row = True, 0
        self._part = min(self._part, max(part // 4, int(self._min_size), 1))

    def part_accepted(self) -> None:
        """A part succeeded. After some of them larger parts are tried again, up to the largest size that may work."""
        self._accepted_in_a_row += 1
        if self._part < self._max_size and self._accepted_in_a_row >= _PARTS_UNTIL_LARGER:
            self._part, self._accepted_in_a_row = min(self._part * 2, self._max_size), 0


def read(path: Path) -> UploadState:
    """The state in a file, or an empty one."""
    with contextlib.suppress(OSError, InvalidJson):
        return decode(path.read_bytes(), UploadState)
    return UploadState()


def write(path: Path, state: UploadState) -> None:
    """Save it. Where the store is not writable, an interrupted push starts this blob again; that is no reason not to push."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True, mode=0o700)
        temporary = path.with_suffix(".new")
        temporary.write_bytes(msgspec.json.encode(state))
        temporary.replace(path)


def remove(path: Path) -> None:
    """Remove a saved state."""
    with contextlib.suppress(OSError):  # a store that is not writable has none
        path.unlink(missing_ok=True)


def remove_stale(store: Store) -> None:
    """Remove the states of uploads that nobody has continued for a week."""
    with contextlib.suppress(OSError):
        for path in store.layout.uploads.iterdir():
            if path.stat().st_mtime < time.time() - _STALE_AFTER_S:
                path.unlink()


def md5_of(file: int, start: int, end: int) -> str:
    """The MD5 (hex) of the bytes from `first` up to `end` of an open file."""
    hasher, offset = hashlib.md5(usedforsecurity=False), start
    while offset < end and (chunk := os.pread(file, min(1 << 20, end - offset), offset)):
        hasher.update(chunk)
        offset += len(chunk)
    return hasher.hexdigest()
