"""What a GGUF file that is being made looks like: its head as bytes, and where each tensor's numbers go. Pure.

Key/values are taken over as the bytes they were, so that nothing that this version does not know of is lost or changed.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ndani.convert.kernels import TYPE_NUMBERS
from ndani.store.extents import ALIGNMENT, aligned, bytes_of
from ndani.store.gguf import Tensor

_VERSION, _UINT32 = 3, 4


@dataclass(frozen=True, slots=True)
class GgufLayout:
    """The head of a file, where each tensor's numbers begin (counted from the file's first byte), and the file's size."""

    head: bytes
    offsets: tuple[int, ...]
    size: int


def number_key(key: str, value: int) -> bytes:
    """A key with a 32-bit number, as a GGUF file holds it."""
    return _text(key) + struct.pack("<II", _UINT32, value)


def lay_out_file(keys: Sequence[bytes], tensors: Sequence[Tensor], types: Mapping[str, str], alignment: int = ALIGNMENT) -> GgufLayout:
    """Lay out a file of these key/values and of these tensors, each of the type that `types` has for its name."""
    head = b"".join((b"GGUF", struct.pack("<IQQ", _VERSION, len(tensors), len(keys)), *keys))
    offset, offsets, infos = 0, [], []
    for tensor in tensors:
        shape = _trimmed(tensor.shape)
        kind = types[tensor.name]
        infos.append(_text(tensor.name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, TYPE_NUMBERS[kind], offset))
        offsets.append(offset)
        offset += aligned(bytes_of(kind, shape), alignment)
    head += b"".join(infos)
    head += bytes(aligned(len(head), alignment) - len(head))
    return GgufLayout(head, tuple(len(head) + offset for offset in offsets), len(head) + offset)


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without its last ones, as llama.cpp writes it."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw
