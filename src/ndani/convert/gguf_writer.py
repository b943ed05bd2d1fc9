"""Writing GGUF, the file form of the engine: version 3, little-endian, everything of it known before its first byte is written.

So it can go into a pipe, its size is known at the start, and the same input gives the same bytes each time. `store/gguf.py`
reads the head of such a file.
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

#: A key's value; its type in the file follows from it: int is UINT32, float FLOAT32, a list of ints INT32.
GgufValue = str | bool | int | float | Sequence[str] | Sequence[int] | Sequence[float]

ALIGNMENT = 32
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_KINDS = {"F32": (0, 4), "F16": (1, 2)}


class ByteSink(Protocol):
    """Where a file goes: it is only ever written to, from front to back."""

    def write(self, content: bytes, /) -> object:
        """Append all of it."""
        ...


@dataclass(frozen=True, slots=True)
class TargetTensor:
    """A tensor to be: its name and kind (F32 or F16), the tensor or the numbers it is made of.

    `order` says how the rows of each run of `len(order)` rows are to be exchanged: row i of the new ones is `order[i]`.
    """

    name: str
    kind: str
    source: StoredTensor | NDArray[np.float32]
    order: tuple[int, ...] = field(default=(), repr=False)

    @property
    def size(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.source.shape) * _KINDS[self.kind][1]

    def content(self) -> Iterator[bytes]:
        """Its numbers, some at a time. Raises Unsupported for numbers that the kind cannot hold."""
        unit = len(self.order) or 1
        runs = self.source.row_chunks(unit) if isinstance(self.source, StoredTensor) else iter([self.source])
        for run in runs:
            if self.order:
                run = run.reshape(-1, unit, *run.shape[1:])[:, list(self.order)].reshape(run.shape)
            with np.errstate(over="ignore", invalid="ignore"):
                made = run.astype("<f2" if self.kind == "F16" else "<f4")
            if not np.isfinite(made).all():
                raise _wrong(self, run)
            yield made.tobytes()


def _wrong(target: TargetTensor, run: NDArray[np.float32]) -> Unsupported:
    """The error for numbers that became none, or were none before."""
    if np.isfinite(run).all():
        instead = "use a GGUF file of this model in BF16, which holds them"
        return Unsupported(f"the tensor {target.name} has numbers above 65504, which F16 cannot hold; {instead}")
    return Unsupported(f"the tensor {target.name} has numbers that are infinite or none; the weights are damaged, get them again")


def head(keys: Mapping[str, GgufValue], targets: Sequence[TargetTensor]) -> bytes:
    """All that stands before the numbers: keys, names and places of the tensors, and the padding behind them."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(targets), len(keys))]
    for key, value in keys.items():
        parts += [_text(key), _value(value)]
    at = 0
    for target in targets:
        shape = target.source.shape[::-1]  # the fastest dimension first
        parts += [_text(target.name), struct.pack(f"<I{len(shape)}Q", len(shape), *shape), struct.pack("<IQ", _KINDS[target.kind][0], at)]
        at += padded(target.size)
    content = b"".join(parts)
    return content + bytes(padded(len(content)) - len(content))


def write(out: ByteSink, before: bytes, targets: Sequence[TargetTensor]) -> Iterator[int]:
    """Write head and numbers; yields how many bytes are written so far."""
    out.write(before)
    written = len(before)
    yield written
    for target in targets:
        for piece in target.content():
            out.write(piece)
            written += len(piece)
            yield written
        out.write(bytes(padded(target.size) - target.size))
        written += padded(target.size) - target.size
    yield written


def padded(size: int) -> int:
    """The next multiple of the alignment."""
    return -size % ALIGNMENT + size


def as_bytes(text: str) -> bytes:
    """A text as it stands in the file; halves of a letter that JSON let through become `?`."""
    return text.encode("utf-8", "replace")


def _text(text: str) -> bytes:
    raw = as_bytes(text)
    return struct.pack("<Q", len(raw)) + raw


def _value(value: GgufValue) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<IB", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _U32, value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    start = struct.pack("<I", _ARRAY)
    if value and isinstance(value[0], str):
        return start + struct.pack("<IQ", _STRING, len(value)) + b"".join(_text(str(item)) for item in value)
    kind, form = (_F32, "f") if value and isinstance(value[0], float) else (_I32, "i")
    return start + struct.pack(f"<IQ{len(value)}{form}", kind, len(value), *value)
