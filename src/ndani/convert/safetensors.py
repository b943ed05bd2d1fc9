"""Read safetensors: the header is validated before it is trusted, and tensors are read in chunks of rows, never a whole file.

The format: eight bytes of length, a JSON object of that length (name → dtype, shape, data_offsets), then the data.
Files are open descriptors by the names that their owner knows them by, because the process may be in a jail that can open
no file. Error messages use these names too.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ndani.convert.file_selection import holds_tensors
from ndani.errors import BadRequest, Unsupported
from ndani.store.file_formats import LFS_POINTER, detect_format, wrong_format
from ndani.store.parameters import excerpt
from ndani.untrusted_json import InvalidJson, loads

#: Bytes of all headers of a model: a tensor takes about 100, and the largest models have 2,000 tensors.
MAX_HEADER_BYTES = 16 << 20
#: Bytes of a file that describes the weights. A tokenizer.json of 262,144 tokens has 35 MB; no other file is as large.
#: Hostile JSON can take 30 times its size in memory.
MAX_METADATA_BYTES, MAX_TOKENIZER_BYTES = 16 << 20, 48 << 20
#: Values in one chunk of rows: what is in memory at once.
CHUNK_VALUES = 1 << 22

#: Bytes of one value of each dtype of the format; only the first four can be converted.
_VALUE_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1,
    "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
WEIGHTS = ("F64", "F32", "F16", "BF16")
_INDEX_SUFFIX = ".safetensors.index.json"
_MODEL_INDEX = f"model{_INDEX_SUFFIX}"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # some editors on Windows write it at the start of a text


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor in a file: the open file, the offset of its data there, its dtype and its shape (slowest dimension first)."""

    file: str
    descriptor: int
    offset: int
    dtype: str
    shape: tuple[int, ...]

    def row_chunks(self, unit: int = 1) -> Iterator[NDArray[np.float32]]:
        """Its values as F32 in chunks of about CHUNK_VALUES values, each a multiple of `unit` rows. A vector has one value per row."""
        rows, width = self.shape[0], math.prod(self.shape[1:])
        step = max(CHUNK_VALUES // max(width * unit, 1), 1) * unit
        row_size = width * _VALUE_SIZES[self.dtype]
        for first in range(0, rows, step):
            count = min(step, rows - first)
            raw = _read(self.descriptor, count * row_size, self.offset + first * row_size)
            if len(raw) < count * row_size:
                raise BadRequest(f"{self.file} became shorter while it was read; send it again")
            yield _to_float32(raw, self.dtype).reshape(count, *self.shape[1:])


def _to_float32(raw: bytes, dtype: str) -> NDArray[np.float32]:
    if dtype == "BF16":  # the upper half of an F32
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    # An F64 that is too large becomes infinite. The writer refuses infinities and NaN.
    with np.errstate(over="ignore", invalid="ignore"):
        return np.frombuffer(raw, {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32)


def read_tensors(sources: Mapping[str, int]) -> dict[str, StoredTensor]:
    """Every tensor of the safetensors files among `sources` (open descriptors by name). Raises BadRequest, Unsupported.

    An index file, if there is one, selects the files of the model, and must agree with their content.
    """
    weights = [name for name, descriptor in sorted(sources.items()) if holds_tensors(name, detect_format(descriptor))]
    indexes = _read_indexes(sources, weights)
    indexed = {str(file) for weight_map in indexes.values() for file in weight_map.values()}
    tensors: dict[str, StoredTensor] = {}
    header_budget = MAX_HEADER_BYTES
    for name in [name for name in weights if name in indexed] or weights:
        length = _header_length(name, sources[name])
        header_budget -= length
        if header_budget < 0:
            raise BadRequest(f"the headers of these files have more than {MAX_HEADER_BYTES} bytes; send the files of one model alone")
        for tensor, stored in _read_header(name, sources[name], length).items():
            if tensor in tensors:
                raise BadRequest(f"{name} and {tensors[tensor].file} both hold the tensor {excerpt(tensor)}; give one set of weights")
            tensors[tensor] = stored
    if not tensors:
        raise BadRequest("no files provided to convert: none of them is a safetensors file with tensors")
    for name, weight_map in indexes.items():
        _check_index(name, weight_map, tensors)
    return tensors


def _read_indexes(sources: Mapping[str, int], weights: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The weight_map of each index of these weights: the file of each tensor. Raises BadRequest."""
    indexes = {}
    for name, descriptor in sorted(sources.items()):
        # An index beside a single file was left by an earlier version of the model, and the publishers' library ignores it.
        if name.endswith(_INDEX_SUFFIX) and name.removesuffix(".index.json") not in sources:
            weight_map = read_object(name, descriptor).get("weight_map")
            if not isinstance(weight_map, dict):
                raise BadRequest(f"{name} is no index of safetensors files: it has no weight_map; send the model's own")
            is_of_these_weights = name == _MODEL_INDEX or any(str(file) in weights for file in weight_map.values())
            if is_of_these_weights:
                indexes[name] = weight_map
    return indexes


def _check_index(name: str, weight_map: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> None:
    """Check that each file holds exactly the tensors that the index assigns to it."""
    for tensor, file in weight_map.items():
        if tensor not in tensors or tensors[tensor].file != file:
            raise BadRequest(f"{name} names the file {excerpt(str(file))} for {excerpt(tensor)}, and it is not there; send all parts")
    for tensor, stored in tensors.items():
        if tensor not in weight_map:
            raise BadRequest(f"{stored.file} holds the tensor {excerpt(tensor)}, and {name} does not name it; send the files of one model")


def _header_length(name: str, descriptor: int) -> int:
    """Bytes of a file's header; the file is at least that long."""
    if detect_format(descriptor) == LFS_POINTER:
        raise wrong_format(name, LFS_POINTER)
    prefix = _read(descriptor, 8, 0)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
    if not 2 <= length <= os.fstat(descriptor).st_size - 8:
        raise BadRequest(f"{name} is not a safetensors file, or not a whole one; send it again")
    return int(length)


def _read_header(name: str, descriptor: int, length: int) -> dict[str, StoredTensor]:
    size = os.fstat(descriptor).st_size
    try:
        header = loads(_read(descriptor, length, 8))
    except InvalidJson:
        header = None
    if not isinstance(header, dict):
        raise BadRequest(f"the header of {name} is not JSON; it is no safetensors file, or damaged")
    header.pop("__metadata__", None)
    tensors = {tensor: _parse_entry(name, descriptor, tensor, entry, 8 + length, size) for tensor, entry in header.items()}
    _check_coverage(name, tensors, 8 + length, size)
    return tensors


def _parse_entry(name: str, descriptor: int, tensor: str, entry: Any, base: int, size: int) -> StoredTensor:
    invalid = BadRequest(f"{name} says something impossible of its tensor {excerpt(tensor)}; the file is damaged, send it again")
    if not isinstance(entry, dict):
        raise invalid
    dtype, shape, offsets = entry.get("dtype"), _as_sizes(entry.get("shape")), _as_sizes(entry.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2 or len(shape) > 8:
        raise invalid
    if dtype not in _VALUE_SIZES:
        raise Unsupported(f"{name} holds numbers of the kind {excerpt(dtype)} ({excerpt(tensor)}), which cannot be converted")
    begin, end = offsets
    if not begin <= end <= size - base or math.prod(shape) * _VALUE_SIZES[dtype] != end - begin:
        raise invalid
    return StoredTensor(name, descriptor, base + begin, dtype, tuple(shape) or (1,))


def _check_coverage(name: str, tensors: Mapping[str, StoredTensor], offset: int, size: int) -> None:
    """The tensors must cover the data from `offset` to the end of the file, without gaps or overlaps."""
    for stored in sorted(tensors.values(), key=lambda tensor: tensor.offset):
        if stored.offset != offset:
            raise BadRequest(f"the tensors of {name} overlap, or leave bytes out; the file is damaged, send it again")
        offset += math.prod(stored.shape) * _VALUE_SIZES[stored.dtype]
    if offset != size:
        raise BadRequest(f"{name} has {size} bytes, and its tensors end at {offset}; the file is damaged, send it again")


def _as_sizes(value: Any) -> list[int] | None:
    """A list of possible sizes or offsets; None for any other value."""
    if not isinstance(value, list):
        return None
    return value if all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 48 for item in value) else None


def read_file(name: str, descriptor: int) -> bytes:
    """A whole file that describes the weights. Raises BadRequest when it is too large for such a file."""
    size = os.fstat(descriptor).st_size
    limit = MAX_TOKENIZER_BYTES if name.endswith("tokenizer.json") else MAX_METADATA_BYTES
    if size > limit:
        raise BadRequest(f"{name} is larger than such a file may be ({limit} bytes); send the model's own")
    return _read(descriptor, size, 0)


def read_object(name: str, descriptor: int) -> dict[str, Any]:
    """The JSON object in a file. Raises BadRequest."""
    value = read_json(name, descriptor, "a JSON object")
    if not isinstance(value, dict):
        raise BadRequest(f"{name} is not a JSON object; it is damaged, or another file")
    return value


def read_json(name: str, descriptor: int, what: str) -> Any:
    """The JSON value in a file; `what` names the expected value in the error. Raises BadRequest.

    `untrusted_json` needs no codec module, which a jailed process could not import, and accepts the NaN that some programs write.
    """
    try:
        return loads(read_file(name, descriptor))
    except InvalidJson as error:
        raise BadRequest(f"{name} is not {what}: {error}; it is damaged, or another file") from None


def read_text(name: str, descriptor: int) -> str:
    """The text of a file, with every line ending as a newline. Raises BadRequest."""
    try:
        content = read_file(name, descriptor).removeprefix(_BYTE_ORDER_MARK).decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest(f"{name} is not UTF-8 text; save it as that, and send it again") from None
    return content.replace("\r\n", "\n").replace("\r", "\n")


def _read(descriptor: int, length: int, offset: int) -> bytes:
    """`length` bytes at an offset of an open file; fewer when it ends before."""
    chunks = []
    while length and (chunk := os.pread(descriptor, length, offset)):
        chunks.append(chunk)
        length, offset = length - len(chunk), offset + len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
