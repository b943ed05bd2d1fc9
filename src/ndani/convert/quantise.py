"""GGUF in, GGUF out: the same weights in fewer bits, or joined from several files.

`plan` is pure and finds everything that can be refused. `write` does the work, in chunks of rows on several threads. Its
memory is a few chunks, however large a tensor is. The same input gives the same bytes for any number of threads, and they
are the bytes that llama.cpp's own tool writes.
"""

from __future__ import annotations

import ctypes
import math
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

#: Values that one thread converts at a time: 4 MB as floats.
CHUNK_VALUES = 1 << 20
_TYPE_KEY, _VERSION_KEY, _VERSION = "general.file_type", "general.quantization_version", 2


@dataclass(frozen=True, slots=True)
class OpenGguf:
    """An open GGUF file: the name that its owner knows it by, its parsed header, the header's bytes, the file's size."""

    name: str
    head: GgufHeader
    raw: bytes
    size: int


@dataclass(frozen=True, slots=True)
class TensorJob:
    """One tensor to convert: where it is (the index of its source and an offset there), and where it goes in the new file."""

    name: str
    source: int
    source_offset: int
    source_type: str
    target_type: str
    columns: int
    rows: int
    target_offset: int


@dataclass(frozen=True, slots=True)
class QuantisationPlan:
    """Everything about a file that is to be written. `total` is how many bytes of the sources will be read."""

    layout: GgufLayout
    jobs: tuple[TensorJob, ...]
    total: int
    unchanged: bool  # the only source already is what is wanted: there is nothing to do


def open_source(name: str, descriptor: int) -> OpenGguf:
    """Read the header of an open file. Raises BadRequest when it is not valid GGUF."""
    size = os.fstat(descriptor).st_size
    try:
        head, raw = read_open_header(descriptor)
    except ValueError as error:
        raise invalid_gguf(name, str(error)) from None
    return OpenGguf(name, head, raw, size)


def plan(sources: Sequence[OpenGguf], kind: str = "") -> QuantisationPlan:
    """Plan one file of `kind` from these sources, which are the parts of one model in order. Without a kind, types stay.

    Raises BadRequest when the sources are damaged or incomplete, or hold weights that are quantised already.
    """
    first = sources[0]
    owners: dict[str, tuple[int, Tensor]] = {}
    all_extents: dict[str, tuple[int, int]] = {}
    for number, source in enumerate(sources):
        all_extents |= find_extents(source.name, source.head.metadata, source.head.tensors, source.head.end, source.size)
        for tensor in source.head.tensors:
            if tensor.name in owners:
                raise BadRequest(f"{source.name} has the tensor {excerpt(tensor.name)}, which is there already; get the file again")
            owners[tensor.name] = number, tensor
    shards.check_whole([(source.name, source.head.metadata) for source in sources], len(owners))
    tensors = [tensor for _, tensor in owners.values()]
    types = {tensor.name: tensor.type for tensor in tensors}
    keys = {key: first.raw[begin:end] for key, (begin, end) in first.head.spans.items() if key not in shards.KEYS}
    unchanged = len(sources) == 1
    if kind:
        _require_unquantised(first, tensors)
        types = quant_types.choose_types(kind, quant_types.read_facts(first.head.metadata), tensors)
        file_type = quant_types.file_type(kind)
        same_types = all(tensor.type == types[tensor.name] for tensor in tensors)
        unchanged = unchanged and first.head.metadata.get(_TYPE_KEY) == file_type and same_types
        tensors = quant_types.in_order(tensors)
        for key, value in ((_VERSION_KEY, _VERSION), (_TYPE_KEY, file_type)):
            keys.pop(key, None)  # llama.cpp writes them at the end
            keys[key] = number_key(key, value)
    extents = [all_extents[tensor.name] for tensor in tensors]
    layout = lay_out_file(list(keys.values()), tensors, types, read_alignment(first.name, first.head.metadata))
    jobs = tuple(
        TensorJob(t.name, owners[t.name][0], begin, t.type, types[t.name], t.shape[0], math.prod(t.shape[1:]), target_offset)
        for t, (begin, _), target_offset in zip(tensors, extents, layout.offsets, strict=True)
    )
    return QuantisationPlan(layout, jobs, sum(size for _, size in extents), unchanged)


def write(work: QuantisationPlan, sources: Sequence[int], output: int, kernels: Kernels | None, threads: int) -> Generator[int]:
    """Write the file of a plan; yields again and again how many bytes of the sources are done.

    `sources` and `output` are descriptors; `kernels` are needed where a type changes. Raises BadRequest for weights that
    are not numbers, OSError for the disk. Closing the generator stops the threads after their current chunks.
    """
    _write_all(output, memoryview(work.layout.head), 0)
    os.ftruncate(output, work.layout.size)  # the padding behind each tensor, also the last, is zeros
    converter = _ChunkConverter(sources, output, kernels)
    done, pending = 0, deque[Future[int]]()
    pool = ThreadPoolExecutor(threads, "weights")
    try:
        for job, row, rows in _chunks(work.jobs):
            pending.append(pool.submit(converter.convert, job, row, rows))
            if len(pending) > 2 * threads:
                done += pending.popleft().result()
                yield done
        while pending:
            done += pending.popleft().result()
            yield done
    finally:
        pool.shutdown(cancel_futures=True)


class _ChunkConverter:
    """What the threads share, and the buffers that each thread has for itself."""

    def __init__(self, sources: Sequence[int], output: int, kernels: Kernels | None) -> None:
        self._sources, self._output, self._kernels = sources, output, kernels
        self._thread_buffers = threading.local()

    def convert(self, job: TensorJob, row: int, rows: int) -> int:
        """Read, convert and write some rows of a tensor; returns how many bytes of the source were read."""
        length = _byte_size(job.source_type, rows * job.columns)
        chunk = self._buffer("input", length)[:length]
        _read_all(self._sources[job.source], chunk, job.source_offset + _byte_size(job.source_type, row * job.columns))
        try:
            converted = self._converted(job, rows, chunk)
        except ValueError as error:
            raise BadRequest(f"the tensor {excerpt(job.name)} cannot be quantized: {error}; get the file again") from None
        _write_all(self._output, converted, job.target_offset + _byte_size(job.target_type, row * job.columns))
        return length

    def _converted(self, job: TensorJob, rows: int, chunk: memoryview) -> memoryview:
        """The bytes of some rows in the target type. Raises ValueError for values that are not finite."""
        source, count = _address(chunk), rows * job.columns
        if self._kernels and job.source_type in quant_types.PLAIN:
            self._kernels.require_finite(job.source_type, source, len(chunk))
        if job.source_type == job.target_type:
            return chunk
        assert self._kernels
        if job.source_type != "F32":
            floats = self._buffer("floats", 4 * count)
            self._kernels.to_float32(job.source_type, source, _address(floats), count)
            source = _address(floats)
        output = self._buffer("output", 4 * count)
        return output[: self._kernels.quantise(job.target_type, source, _address(output), rows, job.columns)]

    def _buffer(self, name: str, size: int) -> memoryview:
        """This thread's buffer of that name, with room for `size` bytes."""
        buffer: memoryview | None = getattr(self._thread_buffers, name, None)
        if buffer is None or len(buffer) < size:
            buffer = memoryview((ctypes.c_char * size)()).cast("B")
            setattr(self._thread_buffers, name, buffer)
        return buffer


def _chunks(jobs: Sequence[TensorJob]) -> Iterator[tuple[TensorJob, int, int]]:
    """Every tensor in chunks of whole rows: the tensor, the first row, the number of rows."""
    for job in jobs:
        rows = max(1, CHUNK_VALUES // job.columns)
        for row in range(0, job.rows, rows):
            yield job, row, min(rows, job.rows - row)


def _require_unquantised(first: OpenGguf, tensors: Sequence[Tensor]) -> None:
    # A type without blocks is not a quantised one: tables of integers pass.
    quantised = next((tensor.type for tensor in tensors if BLOCKS.get(tensor.type, (2, 0))[0] > 1), None)
    if quantised:
        stated = file_type_of(first.head.metadata)
        raise BadRequest(
            f"quantization is only supported for F16, BF16 and F32 models, and {first.name} is "
            f"{quantised if stated in ('', *quant_types.PLAIN) else stated}; give the file that it was made from"
        )


def _byte_size(tensor_type: str, count: int) -> int:
    values, size = BLOCKS[tensor_type]
    return count // values * size


def _address(buffer: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def _read_all(descriptor: int, target: memoryview, offset: int) -> None:
    while target:
        count = os.preadv(descriptor, [target], offset)
        if not count:
            raise BadRequest("the weights ended too early while they were read; send the whole file again")
        target, offset = target[count:], offset + count


def _write_all(descriptor: int, content: memoryview, offset: int) -> None:
    while content:
        count = os.pwrite(descriptor, content, offset)
        content, offset = content[count:], offset + count
