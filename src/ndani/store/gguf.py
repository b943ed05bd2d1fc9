"""The bounded reader of a GGUF file's head: key/values and tensor descriptions, never the weights.

A file is not trusted: every count, length and offset is checked against the file's size and against limits that no
real model comes near, so that a bad file costs a sentence and not the memory. Strings in long arrays are stepped
over without being made; that is what keeps a tokenizer of 260,000 words at a few milliseconds.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ndani.errors import StoreFailed

KEPT = 1024  # arrays longer than this are None unless asked for
_MOST_KEYS = 1 << 16
_MOST_TENSORS = 1 << 17
_MOST_ITEMS = 1 << 24
_LONGEST_KEY = 1 << 16
_LONGEST_STRING = 1 << 26

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")

TENSOR_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: its name, the type of its numbers, its shape (the fastest dimension first).

    `offset` is where its bytes begin, counted from the first byte of all numbers.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Head:
    """All that stands before the numbers. `spans` says from which byte to which each key stands, with its value."""

    keys: dict[str, Any]
    tensors: tuple[Tensor, ...]
    spans: dict[str, tuple[int, int]]
    end: int


class _Reader:
    """A place in the file's head. Struct errors and slices past the end mean: too short."""

    def __init__(self, data: mmap.mmap, verbose: bool = False) -> None:
        self.data, self.size, self.at, self.verbose = data, len(data), 0, verbose

    def u32(self) -> int:
        self.at += 4
        return int(_U32.unpack_from(self.data, self.at - 4)[0])

    def u64(self) -> int:
        self.at += 8
        return int(_U64.unpack_from(self.data, self.at - 8)[0])

    def count(self, limit: int, what: str) -> int:
        found = self.u64()
        if found > limit:
            raise ValueError(f"it claims {found} {what}")
        return found

    def text(self, limit: int = _LONGEST_STRING) -> str:
        length = self.count(min(limit, self.size - self.at), "bytes in one string")
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self.array()
        form = _form(kind)
        self.at += struct.calcsize(form)
        found = struct.unpack_from(form, self.data, self.at - struct.calcsize(form))[0]
        return _shortest(found) if form == "<f" else found

    def array(self) -> list[Any] | None:
        kind = self.u32()
        length = self.count(min(_MOST_ITEMS, self.size - self.at), "items in one array")
        kept = self.verbose or length <= KEPT
        if kind == _STRING:
            if kept:
                return [self.text() for _ in range(length)]
            self._step_over(length)
            return None
        form = f"<{length}{_form(kind)[1:]}"  # arrays of arrays do not occur, and are refused
        self.at += struct.calcsize(form)
        if self.at > self.size:
            raise ValueError("it ends in the middle of an array")
        return list(struct.unpack_from(form, self.data, self.at - struct.calcsize(form))) if kept else None

    def _step_over(self, length: int) -> None:
        # The hot loop of this file: no method call, no slice, one unpack per string.
        at, data, size, unpack = self.at, self.data, self.size, _U64.unpack_from
        for _ in range(length):
            at += 8 + unpack(data, at)[0]
            if at > size:
                raise ValueError("it ends in the middle of an array")
        self.at = at


def read_head(path: Path, *, verbose: bool = False) -> tuple[dict[str, Any], tuple[Tensor, ...]]:
    """Key/values and tensors of a GGUF file; arrays of more than 1024 items are None unless `verbose`.

    Raises StoreFailed with one sentence when the file is missing, unreadable or not GGUF version 2 or 3.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            head = _parse(_Reader(data, verbose))
            return head.keys, head.tensors
    except FileNotFoundError:
        raise StoreFailed(f"the weights {path} are missing from the store; pull the model again") from None
    except OSError as error:
        raise StoreFailed(f"the weights {path} cannot be read ({error.strerror}); change their owner or mode") from None
    except (ValueError, struct.error, OverflowError) as error:
        raise StoreFailed(f"the file {path} is not a usable GGUF file: {_reason(error)}; pull or create the model again") from None


def read_open(descriptor: int) -> tuple[Head, bytes]:
    """The head of an open GGUF file, parsed and as it stands there. Raises ValueError with a few words on what is wrong."""
    try:
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as data:
            head = _parse(_Reader(data))
            return head, data[: head.end]
    except (ValueError, struct.error, OverflowError) as error:
        raise ValueError(_reason(error)) from None


def _reason(error: Exception) -> str:
    return "it ends too early" if isinstance(error, struct.error) else str(error)


def _parse(head: _Reader) -> Head:
    if head.data[:4] != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    head.at = 4
    version = head.u32()
    if version not in (2, 3):
        raise ValueError(f"its version is {version}, and 2 or 3 can be read")
    tensor_count = head.count(_MOST_TENSORS, "tensors")
    key_count = head.count(_MOST_KEYS, "keys")
    keys: dict[str, Any] = {}
    spans: dict[str, tuple[int, int]] = {}
    for _ in range(key_count):
        begin = head.at
        key = head.text(_LONGEST_KEY)
        keys[key] = head.value(head.u32())
        spans[key] = begin, head.at
    tensors = []
    for _ in range(tensor_count):
        name = head.text(_LONGEST_KEY)
        dimensions = head.u32()
        if not 1 <= dimensions <= 4:
            raise ValueError(f"a tensor claims {dimensions} dimensions")
        shape = tuple(head.u64() for _ in range(dimensions))
        kind = head.u32()
        tensors.append(Tensor(name, TENSOR_TYPES.get(kind, f"type {kind}"), shape, head.u64()))
    if head.at > head.size:
        raise ValueError("it ends too early")
    return Head(keys, tuple(tensors), spans, head.at)


def _form(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"it has a value of the unknown kind {kind}")
    return _SCALARS[kind]


def _shortest(number: float) -> float:
    """A 32-bit float by its shortest spelling: 1e-05 rather than 9.999999747378752e-06."""
    for digits in (6, 7, 8):
        short = float(f"{number:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", number):
            return short
    return number
