"""The layout of a GGUF file to write: its header as bytes, and the offset of each tensor's data. Pure.

Key/values are copied as raw bytes, so that keys that this version does not know are kept unchanged.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ndani.convert.kernels import TYPE_NUMBERS
from ndani.store.extents import ALIGNMENT, align_up, tensor_size
from ndani.store.gguf import Tensor

_VERSION, _UINT32 = 3, 4


@dataclass(frozen=True, slots=True)
class GgufLayout:
    """The header of a file, the offset of each tensor's data from the start of the file, and the file's size."""

    head: bytes
    offsets: tuple[int, ...]
    size: int


def number_key(key: str, value: int) -> bytes:
    """A key with a 32-bit number, encoded for a GGUF header."""
    return _encode_string(key) + struct.pack("<II", _UINT32, value)


def lay_out_file(keys: Sequence[bytes], tensors: Sequence[Tensor], types: Mapping[str, str], alignment: int = ALIGNMENT) -> GgufLayout:
    """Lay out a file of these encoded key/values and these tensors; `types` has each tensor's type by its name."""
    head = b"".join((b"GGUF", struct.pack("<IQQ", _VERSION, len(tensors), len(keys)), *keys))
    offset, offsets, infos = 0, [], []
    for tensor in tensors:
        shape = _without_trailing_ones(tensor.shape)
        tensor_type = types[tensor.name]
        info = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, TYPE_NUMBERS[tensor_type], offset)
        infos.append(_encode_string(tensor.name) + info)
        offsets.append(offset)
        offset += align_up(tensor_size(tensor_type, shape), alignment)
    head += b"".join(infos)
    head += bytes(align_up(len(head), alignment) - len(head))
    return GgufLayout(head, tuple(len(head) + start for start in offsets), len(head) + offset)


def _without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without its trailing dimensions of 1, as llama.cpp writes it."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _encode_string(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(encoded)) + encoded
