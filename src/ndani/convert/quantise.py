"""GGUF in, GGUF out: numbers of fewer bits, or the same ones brought together out of several files.

`plan` is pure and says all that can be refused; `write` does the work, in pieces of rows on several threads, with
memory for a few pieces however large a tensor is. The same input makes the same bytes, whatever the number of threads,
and they are the bytes that llama.cpp's own tool makes.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from ndani.convert import quant_types, shards
from ndani.convert.gguf_layout import GgufLayout, lay_out_file, number_key
from ndani.convert.kernels import Kernels
from ndani.errors import BadRequest
from ndani.store.extents import BLOCKS, find_extents, read_alignment
from ndani.store.gguf import GgufHeader, Tensor, invalid_gguf, read_open_header
from ndani.store.parameters import excerpt
from ndani.store.weights_info import file_type_of

#: Numbers that one thread works on at a time: 4 MB as floats.
PIECE = 1 << 20
_TYPE_KEY, _VERSION_KEY, _VERSION = "general.file_type", "general.quantization_version", 2


@dataclass(frozen=True, slots=True)
class OpenGguf:
    """An open GGUF file: the name that its owner knows it by, its head, the head's bytes, the file's size."""

    name: str
    head: GgufHeader
    raw: bytes
    size: int


@dataclass(frozen=True, slots=True)
class RowRange:
    """One tensor on its way: from a place in a source to a place in the file that is made."""

    name: str
    source: int
    begin: int
    kind: str
    becomes: str
    columns: int
    rows: int
    place: int


@dataclass(frozen=True, slots=True)
class QuantisationPlan:
    """Everything about a file that is to be made. `total` is how many bytes of the sources will be read."""

    outline: GgufLayout
    pieces: tuple[RowRange, ...]
    total: int
    same: bool  # the one source is what is asked for: there is nothing to do


def open_source(name: str, descriptor: int) -> OpenGguf:
    """Read the head of an open file. Raises BadRequest when it cannot be read as GGUF."""
    size = os.fstat(descriptor).st_size
    try:
        head, raw = read_open_header(descriptor)
    except ValueError as error:
        raise invalid_gguf(name, str(error)) from None
    return OpenGguf(name, head, raw, size)


def plan(sources: Sequence[OpenGguf], kind: str = "") -> QuantisationPlan:
    """How one file of `kind` is made of these, the parts of a model in their order. Without a kind, types stay.

    Raises BadRequest when the sources are damaged, are not whole, or hold weights that are quantised already.
    """
    first = sources[0]
    owners: dict[str, tuple[int, Tensor]] = {}
    lying: dict[str, tuple[int, int]] = {}
    for number, source in enumerate(sources):
        lying |= find_extents(source.name, source.head.metadata, source.head.tensors, source.head.end, source.size)
        for tensor in source.head.tensors:
            if tensor.name in owners:
                raise BadRequest(f"{source.name} has the tensor {excerpt(tensor.name)}, which is there already; get the file again")
            owners[tensor.name] = number, tensor
    shards.check_whole([(source.name, source.head.metadata) for source in sources], len(owners))
    tensors = [tensor for _, tensor in owners.values()]
    types = {tensor.name: tensor.type for tensor in tensors}
    keys = {key: first.raw[begin:end] for key, (begin, end) in first.head.spans.items() if key not in shards.KEYS}
    same = len(sources) == 1
    if kind:
        _require_plain(first, tensors)
        types = quant_types.choose(kind, quant_types.facts(first.head.metadata), tensors)
        same = same and first.head.metadata.get(_TYPE_KEY) == quant_types.file_type(kind) and all(t.type == types[t.name] for t in tensors)
        tensors = quant_types.in_order(tensors)
        for key, value in ((_VERSION_KEY, _VERSION), (_TYPE_KEY, quant_types.file_type(kind))):
            keys.pop(key, None)  # they go to the end, where llama.cpp writes them
            keys[key] = number_key(key, value)
    places = [lying[tensor.name] for tensor in tensors]
    made = lay_out_file(list(keys.values()), tensors, types, read_alignment(first.name, first.head.metadata))
    pieces = tuple(
        RowRange(t.name, owners[t.name][0], begin, t.type, types[t.name], t.shape[0], _rows(t), place)
        for t, (begin, _), place in zip(tensors, places, made.places, strict=True)
    )
    return QuantisationPlan(made, pieces, sum(size for _, size in places), same)


def write(work: QuantisationPlan, sources: Sequence[int], output: int, kernels: Kernels | None, threads: int) -> Generator[int]:
    """Make the file of a plan; yields how many bytes of the sources are done, again and again, until all are.

    `sources` and `output` are descriptors; `kernels` are needed where a type changes. Raises BadRequest for weights that
    are no numbers, OSError for the disk. Closing it stops the threads after the pieces that they have in hand.
    """
    _write_all(output, memoryview(work.outline.head), 0)
    os.ftruncate(output, work.outline.size)  # the last tensor's padding, and what lies between tensors, are zeros
    bench = _Bench(sources, output, kernels)
    done, pending = 0, deque[Future[int]]()
    pool = ThreadPoolExecutor(threads, "weights")
    try:
        for piece, row, rows in _portions(work.pieces):
            pending.append(pool.submit(bench.do, piece, row, rows))
            if len(pending) > 2 * threads:
                done += pending.popleft().result()
                yield done
        while pending:
            done += pending.popleft().result()
            yield done
    finally:
        pool.shutdown(cancel_futures=True)


class _Bench:
    """What the threads share, and the two buffers that each has of its own."""

    def __init__(self, sources: Sequence[int], output: int, kernels: Kernels | None) -> None:
        self._sources, self._output, self._kernels = sources, output, kernels
        self._own = threading.local()

    def do(self, piece: RowRange, row: int, rows: int) -> int:
        """Bring some rows of a tensor over; the bytes of the source that were read."""
        count = rows * piece.columns
        length = _size(piece.kind, count)
        read = self._buffer("read", length)
        _read_all(self._sources[piece.source], read[:length], piece.begin + _size(piece.kind, row * piece.columns))
        try:
            made = self._made(piece, rows, read[:length])
        except ValueError as error:
            raise BadRequest(f"the tensor {excerpt(piece.name)} cannot be quantized: {error}; get the file again") from None
        _write_all(self._output, made, piece.place + _size(piece.becomes, row * piece.columns))
        return length

    def _made(self, piece: RowRange, rows: int, read: memoryview) -> memoryview:
        """The bytes that some rows become. Raises ValueError for what are no numbers."""
        source, count = _address(read), rows * piece.columns
        if self._kernels and piece.kind in quant_types.PLAIN:
            self._kernels.require_finite(piece.kind, source, len(read))
        if piece.kind == piece.becomes:
            return read
        assert self._kernels
        if piece.kind != "F32":
            floats = self._buffer("floats", 4 * count)
            self._kernels.widen(piece.kind, source, _address(floats), count)
            source = _address(floats)
        made = self._buffer("made", 4 * count)
        return made[: self._kernels.quantise(piece.becomes, source, _address(made), rows, piece.columns)]

    def _buffer(self, name: str, size: int) -> memoryview:
        """This thread's buffer of that name, with room for `size` bytes."""
        held: memoryview | None = getattr(self._own, name, None)
        if held is None or len(held) < size:
            held = memoryview((ctypes.c_char * size)()).cast("B")
            setattr(self._own, name, held)
        return held


def _portions(pieces: Sequence[RowRange]) -> Iterator[tuple[RowRange, int, int]]:
    """Every tensor in portions of whole rows: the tensor, its first row, how many."""
    for piece in pieces:
        rows = max(1, PIECE // piece.columns)
        for row in range(0, piece.rows, rows):
            yield piece, row, min(rows, piece.rows - row)


def _require_plain(first: OpenGguf, tensors: Sequence[Tensor]) -> None:
    # A type without blocks is no quantisation: tables of whole numbers pass.
    quantised = next((tensor.type for tensor in tensors if BLOCKS.get(tensor.type, (2, 0))[0] > 1), None)
    if quantised:
        called = file_type_of(first.head.metadata)
        raise BadRequest(
            f"quantization is only supported for F16, BF16 and F32 models, and {first.name} is "
            f"{quantised if called in ('', *quant_types.PLAIN) else called}; give the file that it was made from"
        )


def _rows(tensor: Tensor) -> int:
    rows = 1
    for size in tensor.shape[1:]:
        rows *= size
    return rows


def _size(kind: str, count: int) -> int:
    numbers, size = BLOCKS[kind]
    return count // numbers * size


def _address(buffer: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def _read_all(descriptor: int, target: memoryview, at: int) -> None:
    while target:
        got = os.preadv(descriptor, [target], at)
        if not got:
            raise BadRequest("the weights ended too early while they were read; send the whole file again")
        target, at = target[got:], at + got


def _write_all(descriptor: int, content: memoryview, at: int) -> None:
    while content:
        done = os.pwrite(descriptor, content, at)
        content, at = content[done:], at + done
