"""The bounded reader of a GGUF file's head: key/values and tensor descriptions, never the weights.

A file is not trusted: every count, length and offset is checked against the file's size and against limits that no
real model comes near, so that a bad file costs a sentence and not the memory; and all that is kept of it, taken
together, is paid for from one purse. Strings in long arrays are stepped over without being made; that is what keeps a
tokenizer of 260,000 words at a few milliseconds.
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
_MOST_KEYS = 1 << 16
_MOST_TENSORS = 1 << 17
_MOST_ITEMS = 1 << 24
_MOST_TEXTS = 1 << 22  # in all arrays together: half a second to step over
_LONGEST_KEY = 1 << 16
_LONGEST_STRING = 1 << 26

#: Bytes of memory that what is kept of one head may take, without its long arrays and with them; and what one key, one
#: tensor, one text and one number take beside their letters. A tokenizer of 260,000 words takes some 80 MB in full.
MAX_HEADER_MEMORY, _PURSE_IN_FULL = 1 << 26, 1 << 28
_KEY, _TENSOR, _TEXT, _NUMBER = 256, 512, 64, 40
_EARLY = "it ends too early"

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

    `offset` is where its bytes begin, counted from the first byte of all numbers.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """All that stands before the numbers. `spans` says from which byte to which each key stands, with its value.

    `held` is about how many bytes of memory keys and tensors take.
    """

    metadata: dict[str, Any]
    tensors: tuple[Tensor, ...]
    spans: dict[str, tuple[int, int]]
    end: int
    memory: int


class _Reader:
    """A place in the file's head. Struct errors and slices past the end mean: too short."""

    def __init__(self, data: mmap.mmap, verbose: bool = False) -> None:
        self.data, self.size, self.at, self.verbose = data, len(data), 0, verbose
        self.purse = self.left = _PURSE_IN_FULL if verbose else MAX_HEADER_MEMORY
        self.strings = _MOST_TEXTS

    def afford(self, cost: int) -> bool:
        """Pay for a list, where there is enough for it: half of the memory is for all else."""
        if cost > self.left - self.purse // 2:
            return False
        self.left -= cost
        return True

    def pay(self, cost: int) -> None:
        """Pay for what there is no doing without."""
        if cost > self.left:
            raise ValueError(f"its head holds more than {self.purse >> 20} MB")
        self.left -= cost

    def u32(self) -> int:
        self.at += 4
        return int(_U32.unpack_from(self.data, self.at - 4)[0])

    def u64(self) -> int:
        self.at += 8
        return int(_U64.unpack_from(self.data, self.at - 8)[0])

    def count(self, limit: int, what: str, each: int = 0) -> int:
        """How many things follow, of at least `each` bytes."""
        found = self.u64()
        if found > limit:
            raise ValueError(f"it claims {found} {what}")
        if found * each > self.size - self.at:
            raise ValueError(_EARLY)
        return found

    def text(self, limit: int = _LONGEST_STRING) -> str:
        """A text; who calls pays for it."""
        length = self.count(limit, "bytes in one string", each=1)
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8", "replace")

    def paid(self, limit: int, beside: int) -> str:
        begin = self.at
        found = self.text(limit)
        self.pay(self.at - begin + beside)
        return found

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.paid(_LONGEST_STRING, _TEXT)
        if kind == _ARRAY:
            return self.array()
        form = _form(kind)
        self.at += struct.calcsize(form)
        found = struct.unpack_from(form, self.data, self.at - struct.calcsize(form))[0]
        return _shortest(found) if form == "<f" else found

    def array(self) -> list[Any] | None:
        """The items, or None where they are many and were not asked for, or would take more memory than is left."""
        kind = self.u32()
        length = self.count(_MOST_ITEMS, "items in one array", each=1)
        kept = self.verbose or length <= MAX_KEPT_ITEMS
        if kind == _STRING:
            begin = self.at
            self._step_over(length)
            if not kept or not self.afford(self.at - begin + length * _TEXT):
                return None
            self.at = begin
            return [self.text() for _ in range(length)]
        if kind == _ARRAY:
            raise ValueError("it has an array of arrays")
        form = f"<{length}{_form(kind)[1:]}"
        self.at += struct.calcsize(form)
        if self.at > self.size:
            raise ValueError(_EARLY)
        if not kept or not self.afford(length * _NUMBER):
            return None
        return list(struct.unpack_from(form, self.data, self.at - struct.calcsize(form)))

    def _step_over(self, length: int) -> None:
        # The hot loop of this file: no method call, no slice, one unpack per string.
        at, data, size, unpack = self.at, self.data, self.size, _U64.unpack_from
        self.strings -= length
        if self.strings < 0:
            raise ValueError(f"it has more than {_MOST_TEXTS} texts in its arrays")
        for _ in range(length):
            at += 8 + unpack(data, at)[0]
            if at > size:
                raise ValueError(_EARLY)
        self.at = at


def read_header(path: Path, *, verbose: bool = False) -> GgufHeader:
    """The head of a GGUF file; arrays of more than 1024 items, and what is too much in all, are None.

    With `verbose` arrays of any length are kept, as far as memory for them goes. Raises ValueError with a few words on
    what is wrong when it is not GGUF version 2 or 3 (`in_sentences` makes a sentence of them), OSError.
    """
    with path.open("rb") as file:
        return _read(file.fileno(), verbose)[0]


def read_open_header(descriptor: int) -> tuple[GgufHeader, bytes]:
    """The head of an open GGUF file, parsed and as it stands there. Raises ValueError with a few words on what is wrong."""
    return _read(descriptor, raw=True)


@contextmanager
def translate_gguf_errors(path: Path) -> Iterator[None]:
    """Whatever is wrong with a file of the store while inside is StoreFailed: one sentence that says what to do."""
    try:
        yield
    except FileNotFoundError:
        raise StoreFailed(f"the weights {path} are missing from the store; pull the model again") from None
    except OSError as error:
        raise StoreFailed(f"the weights {path} cannot be read ({error.strerror}); change their owner or mode") from None
    except ValueError as error:
        # Not a pull: what is here already, it does not look into.
        advice = "run `ndani verify --repair`, or create the model again"
        raise StoreFailed(f"the file {path} is not a usable GGUF file: {error}; {advice}") from None


def invalid_gguf(path: str, reason: str, cut: bool = False) -> BadRequest:
    """The sentence about a GGUF file that a client has sent; `path` is what the client calls it."""
    cure = "send the whole file again" if cut or reason == _EARLY else "get it again, or convert it again with a tool of today"
    return BadRequest(f"{path} is not a usable GGUF file: {reason}; {cure}")


def _read(descriptor: int, verbose: bool = False, raw: bool = False) -> tuple[GgufHeader, bytes]:
    try:
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as data:
            head = _parse(_Reader(data, verbose))
            return head, data[: head.end] if raw else b""
    except struct.error:
        raise ValueError(_EARLY) from None
    except OverflowError as error:
        raise ValueError(str(error)) from None


def _parse(head: _Reader) -> GgufHeader:
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
        key = head.paid(_LONGEST_KEY, _KEY)
        keys[key] = head.value(head.u32())
        spans[key] = begin, head.at
    tensors = []
    for _ in range(tensor_count):
        name = head.paid(_LONGEST_KEY, _TENSOR)
        dimensions = head.u32()
        if not 1 <= dimensions <= 4:
            raise ValueError(f"a tensor claims {dimensions} dimensions")
        shape = tuple(head.u64() for _ in range(dimensions))
        kind = head.u32()
        tensors.append(Tensor(name, TENSOR_TYPES.get(kind, f"type {kind}"), shape, head.u64()))
    if head.at > head.size:
        raise ValueError(_EARLY)
    return GgufHeader(keys, tuple(tensors), spans, head.at, head.purse - head.left)


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
