"""Reads the header of a GGUF file, its metadata and tensor descriptions, within limits. Never reads the weights.

A file is not trusted: every count, length and offset is checked against the file's size and against limits far above any
real model, so that a bad file is refused with a sentence instead of exhausting the memory. All that is kept of a header counts
against one memory limit. Strings in long arrays are skipped without being decoded, so that a tokenizer of 260,000 words
takes a few milliseconds.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ndani.errors import BadRequest, StoreFailed

MAX_KEPT_ITEMS = 1024  # arrays longer than this are None unless asked for
_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 17
_MAX_ARRAY_ITEMS = 1 << 24
_MAX_ARRAY_STRINGS = 1 << 22  # in all arrays together; skipping that many takes half a second
_MAX_KEY_LENGTH = 1 << 16
_MAX_STRING_LENGTH = 1 << 26

#: Bytes of memory for what is kept of one header, without its long arrays and with them; and what one key, one tensor and one
#: string take in addition to their characters, and one number. A tokenizer of 260,000 words takes about 80 MB with its arrays.
MAX_HEADER_MEMORY, _MAX_VERBOSE_MEMORY = 1 << 26, 1 << 28
_KEY_OVERHEAD, _TENSOR_OVERHEAD, _STRING_OVERHEAD, _NUMBER_MEMORY = 256, 512, 64, 40
_TRUNCATED = "it ends too early"

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")

TENSOR_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: its name, the type of its numbers, its shape (the fastest dimension first).

    `offset` is the position of its bytes, counted from the start of the tensor data.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Everything before the tensor data. `spans` has the start and end offsets of each key with its value.

    `memory` is about how many bytes of memory the metadata and the tensors take.
    """

    metadata: dict[str, Any]
    tensors: tuple[Tensor, ...]
    spans: dict[str, tuple[int, int]]
    end: int
    memory: int


class _Reader:
    """A position in the file's header. Struct errors and slices past the end mean that the file is truncated."""

    def __init__(self, data: mmap.mmap, verbose: bool = False) -> None:
        self.data, self.size, self.offset, self.verbose = data, len(data), 0, verbose
        self.memory_limit = self.memory_left = _MAX_VERBOSE_MEMORY if verbose else MAX_HEADER_MEMORY
        self.strings_left = _MAX_ARRAY_STRINGS

    def try_reserve(self, cost: int) -> bool:
        """Reserve memory for a list, unless it would use more than half of the limit; the other half is for everything else."""
        if cost > self.memory_left - self.memory_limit // 2:
            return False
        self.memory_left -= cost
        return True

    def reserve(self, cost: int) -> None:
        """Reserve memory for something required. Raises ValueError above the limit."""
        if cost > self.memory_left:
            raise ValueError(f"its head holds more than {self.memory_limit >> 20} MB")
        self.memory_left -= cost

    def u32(self) -> int:
        self.offset += 4
        return int(_U32.unpack_from(self.data, self.offset - 4)[0])

    def u64(self) -> int:
        self.offset += 8
        return int(_U64.unpack_from(self.data, self.offset - 8)[0])

    def count(self, limit: int, what: str, item_size: int = 0) -> int:
        """The number of items that follow, of at least `item_size` bytes each."""
        count = self.u64()
        if count > limit:
            raise ValueError(f"it claims {count} {what}")
        if count * item_size > self.size - self.offset:
            raise ValueError(_TRUNCATED)
        return count

    def string(self, limit: int = _MAX_STRING_LENGTH) -> str:
        """A string; the caller reserves its memory."""
        length = self.count(limit, "bytes in one string", item_size=1)
        self.offset += length
        return self.data[self.offset - length : self.offset].decode("utf-8", "replace")

    def reserved_string(self, limit: int, overhead: int) -> str:
        start = self.offset
        string = self.string(limit)
        self.reserve(self.offset - start + overhead)
        return string

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.reserved_string(_MAX_STRING_LENGTH, _STRING_OVERHEAD)
        if kind == _ARRAY:
            return self.array()
        layout = _scalar_format(kind)
        self.offset += struct.calcsize(layout)
        value = struct.unpack_from(layout, self.data, self.offset - struct.calcsize(layout))[0]
        return _shortest_decimal(value) if layout == "<f" else value

    def array(self) -> list[Any] | None:
        """The items, or None if there are many and `verbose` is off, or if they need more memory than is left."""
        kind = self.u32()
        length = self.count(_MAX_ARRAY_ITEMS, "items in one array", item_size=1)
        is_kept = self.verbose or length <= MAX_KEPT_ITEMS
        if kind == _STRING:
            start = self.offset
            self._skip_strings(length)
            if not is_kept or not self.try_reserve(self.offset - start + length * _STRING_OVERHEAD):
                return None
            self.offset = start
            return [self.string() for _ in range(length)]
        if kind == _ARRAY:
            raise ValueError("it has an array of arrays")
        layout = f"<{length}{_scalar_format(kind)[1:]}"
        self.offset += struct.calcsize(layout)
        if self.offset > self.size:
            raise ValueError(_TRUNCATED)
        if not is_kept or not self.try_reserve(length * _NUMBER_MEMORY):
            return None
        return list(struct.unpack_from(layout, self.data, self.offset - struct.calcsize(layout)))

    def _skip_strings(self, length: int) -> None:
        # The hot loop of this file: no method call, no slice, one unpack per string.
        offset, data, size, unpack = self.offset, self.data, self.size, _U64.unpack_from
        self.strings_left -= length
        if self.strings_left < 0:
            raise ValueError(f"it has more than {_MAX_ARRAY_STRINGS} texts in its arrays")
        for _ in range(length):
            offset += 8 + unpack(data, offset)[0]
            if offset > size:
                raise ValueError(_TRUNCATED)
        self.offset = offset


def read_header(path: Path, *, verbose: bool = False) -> GgufHeader:
    """The header of a GGUF file. Arrays of more than 1024 items, and arrays beyond the memory limit, are None.

    With `verbose`, arrays of any length are kept within the memory limit. Raises ValueError with a short reason if this is
    not GGUF version 2 or 3 (`translate_gguf_errors` makes a sentence of it), OSError.
    """
    with path.open("rb") as file:
        return _read(file.fileno(), verbose)[0]


def read_open_header(descriptor: int) -> tuple[GgufHeader, bytes]:
    """The header of an open GGUF file, parsed and as raw bytes. Raises ValueError with a short reason."""
    return _read(descriptor, raw=True)


@contextmanager
def translate_gguf_errors(path: Path) -> Iterator[None]:
    """Turn any error about a file of the store inside the block into StoreFailed, one sentence that says what to do."""
    try:
        yield
    except FileNotFoundError:
        raise StoreFailed(f"the weights {path} are missing from the store; pull the model again") from None
    except OSError as error:
        raise StoreFailed(f"the weights {path} cannot be read ({error.strerror}); change their owner or mode") from None
    except ValueError as error:
        # Not "pull": a pull does not check files that are already in the store.
        advice = "run `ndani verify --repair`, or create the model again"
        raise StoreFailed(f"the file {path} is not a usable GGUF file: {error}; {advice}") from None


def invalid_gguf(path: str, reason: str, cut: bool = False) -> BadRequest:
    """The error about an invalid GGUF file of a client; `path` is the client's name for it."""
    advice = "send the whole file again" if cut or reason == _TRUNCATED else "get it again, or convert it again with a tool of today"
    return BadRequest(f"{path} is not a usable GGUF file: {reason}; {advice}")


def _read(descriptor: int, verbose: bool = False, raw: bool = False) -> tuple[GgufHeader, bytes]:
    try:
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as data:
            header = _parse(_Reader(data, verbose))
            return header, data[: header.end] if raw else b""
    except struct.error:
        raise ValueError(_TRUNCATED) from None
    except OverflowError as error:
        raise ValueError(str(error)) from None


def _parse(reader: _Reader) -> GgufHeader:
    if reader.data[:4] != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    reader.offset = 4
    version = reader.u32()
    if version not in (2, 3):
        raise ValueError(f"its version is {version}, and 2 or 3 can be read")
    tensor_count = reader.count(_MAX_TENSORS, "tensors")
    key_count = reader.count(_MAX_KEYS, "keys")
    metadata: dict[str, Any] = {}
    spans: dict[str, tuple[int, int]] = {}
    for _ in range(key_count):
        start = reader.offset
        key = reader.reserved_string(_MAX_KEY_LENGTH, _KEY_OVERHEAD)
        metadata[key] = reader.value(reader.u32())
        spans[key] = start, reader.offset
    tensors = []
    for _ in range(tensor_count):
        name = reader.reserved_string(_MAX_KEY_LENGTH, _TENSOR_OVERHEAD)
        dimensions = reader.u32()
        if not 1 <= dimensions <= 4:
            raise ValueError(f"a tensor claims {dimensions} dimensions")
        shape = tuple(reader.u64() for _ in range(dimensions))
        kind = reader.u32()
        tensors.append(Tensor(name, TENSOR_TYPES.get(kind, f"type {kind}"), shape, reader.u64()))
    if reader.offset > reader.size:
        raise ValueError(_TRUNCATED)
    return GgufHeader(metadata, tuple(tensors), spans, reader.offset, reader.memory_limit - reader.memory_left)


def _scalar_format(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"it has a value of the unknown kind {kind}")
    return _SCALARS[kind]


def _shortest_decimal(number: float) -> float:
    """The float with the fewest digits that is equal as 32 bits: 1e-05 rather than 9.999999747378752e-06."""
    for digits in (6, 7, 8):
        short = float(f"{number:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", number):
            return short
    return number
