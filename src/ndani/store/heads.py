"""Notes of what weights files say of themselves, one small file each, so that a listing reads none of the weights.

A blob never changes, so a note of its digest is right for ever; one that is missing or damaged is made again. Nothing
depends on a note being there: a store that may not be written to is only slower to list.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from typing import Any

import msgspec

from ndani.store.inspect import Header, inspect
from ndani.store.layout import Layout

_LARGEST = 1 << 24


class _Note(msgspec.Struct, frozen=True):
    """The key/values of a file, long arrays left out, and how many numbers its tensors hold."""

    keys: dict[str, Any]
    count: int


class Heads:
    """The notes of one store."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._decode = msgspec.json.Decoder(_Note).decode

    def read(self, digest: str) -> Header:
        """What the weights of this digest say of themselves, without the tensors. Raises StoreFailed when they are not usable."""
        with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
            with open(self._layout.head(digest), "rb") as file:  # noqa: PTH123 - three hundred of these are a listing
                note = self._decode(file.read(_LARGEST))
            # The weights must be there all the same: a listing that knows of weights that are gone would lie.
            os.stat(self._layout.blob(digest))  # noqa: PTH116
            return Header(self._layout.blob(digest), note.keys, (), note.count)
        header = inspect(self._layout.blob(digest))
        self._write(digest, header)
        return header

    def forget(self, digest: str) -> None:
        """Remove a note; one that is not there is fine."""
        with contextlib.suppress(OSError):
            self._layout.head(digest).unlink()

    def _write(self, digest: str, header: Header) -> None:
        fresh = self._layout.heads / f".{uuid.uuid4().hex}"
        try:
            self._layout.heads.mkdir(exist_ok=True, mode=0o755)
            fresh.write_bytes(msgspec.json.encode(_Note(header.keys, header.parameter_count)))
            fresh.replace(self._layout.head(digest))
        except (OSError, msgspec.EncodeError, ValueError):
            with contextlib.suppress(OSError):
                fresh.unlink()
