"""Write GGUF, the engine's file format: version 3, little-endian, with everything known before the first byte is written.

So the file can be streamed into a pipe, its size is known at the start, and the same input always gives the same bytes.
`store/gguf.py` reads the header of such a file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ndani.convert.safetensors import StoredTensor
from ndani.errors import Unsupported

#: A key's value. Its type in the file follows from it: int is UINT32, float is FLOAT32, a list of ints is INT32.
GgufValue = str | bool | int | float | Sequence[str] | Sequence[int] | Sequence[float]

ALIGNMENT = 32
_VERSION = 3
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
#: By type: its number in the file, and the bytes of one value.
_TYPES = {"F32": (0, 4), "F16": (1, 2)}


class ByteSink(Protocol):
    """Where a file is written to, from front to back."""

    def write(self, content: bytes, /) -> object:
        """Append all of it."""
        ...


@dataclass(frozen=True, slots=True)
class TargetTensor:
    """A tensor to write: its name, its type (F32 or F16), and the stored tensor or the values that it is made from.

    `order` permutes the rows of each group of `len(order)` rows: the new row i is the old row `order[i]`.
    """

    name: str
    dtype: str
    source: StoredTensor | NDArray[np.float32]
    order: tuple[int, ...] = field(default=(), repr=False)

    @property
    def size(self) -> int:
        """Bytes of its values."""
        return math.prod(self.source.shape) * _TYPES[self.dtype][1]

    def chunks(self) -> Iterator[bytes]:
        """Its values as bytes, chunk by chunk. Raises Unsupported for values that the type cannot hold."""
        unit = len(self.order) or 1
        sources = self.source.row_chunks(unit) if isinstance(self.source, StoredTensor) else iter([self.source])
        for rows in sources:
            if self.order:
                rows = rows.reshape(-1, unit, *rows.shape[1:])[:, list(self.order)].reshape(rows.shape)
            with np.errstate(over="ignore", invalid="ignore"):
                converted = rows.astype("<f2" if self.dtype == "F16" else "<f4")
            if not np.isfinite(converted).all():
                raise _not_finite(self, rows)
            yield converted.tobytes()


def _not_finite(target: TargetTensor, rows: NDArray[np.float32]) -> Unsupported:
    """The error for values that are not finite after the conversion, or were not before it."""
    if np.isfinite(rows).all():
        instead = "use a GGUF file of this model in BF16, which holds them"
        return Unsupported(f"the tensor {target.name} has numbers above 65504, which F16 cannot hold; {instead}")
    return Unsupported(f"the tensor {target.name} has numbers that are infinite or none; the weights are damaged, get them again")


def encode_head(keys: Mapping[str, GgufValue], targets: Sequence[TargetTensor]) -> bytes:
    """The header: the keys, the tensors' names, shapes and offsets, and the padding up to the data."""
    parts = [b"GGUF", struct.pack("<IQQ", _VERSION, len(targets), len(keys))]
    for key, value in keys.items():
        parts += [_encode_string(key), _encode_value(value)]
    offset = 0
    for target in targets:
        shape = target.source.shape[::-1]  # the fastest dimension first
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        parts += [_encode_string(target.name), dimensions, struct.pack("<IQ", _TYPES[target.dtype][0], offset)]
        offset += padded(target.size)
    content = b"".join(parts)
    return content + bytes(padded(len(content)) - len(content))


def write(out: ByteSink, head: bytes, targets: Sequence[TargetTensor]) -> Iterator[int]:
    """Write the header and the values; yields how many bytes are written so far."""
    out.write(head)
    written = len(head)
    yield written
    for target in targets:
        for chunk in target.chunks():
            out.write(chunk)
            written += len(chunk)
            yield written
        padding = padded(target.size) - target.size
        out.write(bytes(padding))
        written += padding
    yield written


def padded(size: int) -> int:
    """The size rounded up to the alignment."""
    return -size % ALIGNMENT + size


def encode_text(text: str) -> bytes:
    """A text as bytes of the file; lone surrogates, which JSON can hold, become `?`."""
    return text.encode("utf-8", "replace")


def _encode_string(text: str) -> bytes:
    encoded = encode_text(text)
    return struct.pack("<Q", len(encoded)) + encoded


def _encode_value(value: GgufValue) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _encode_string(value)
    if isinstance(value, bool):
        return struct.pack("<IB", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _U32, value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    array = struct.pack("<I", _ARRAY)
    if value and isinstance(value[0], str):
        return array + struct.pack("<IQ", _STRING, len(value)) + b"".join(_encode_string(str(item)) for item in value)
    item_type, item_format = (_F32, "f") if value and isinstance(value[0], float) else (_I32, "i")
    return array + struct.pack(f"<IQ{len(value)}{item_format}", item_type, len(value), *value)
