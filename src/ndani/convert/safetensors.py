"""Reading safetensors: a header that is checked before it is believed, and tensors in runs of rows, never a whole file.

The form: eight bytes of length, a JSON object of that length (name → dtype, shape, data_offsets), then the numbers.
Files are open descriptors by the names that their owner knows them by: whoever reads here may be in a jail that lets it
open nothing. Sentences name a file so, too.
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
from ndani.store.file_formats import POINTER, detect_format, refusal
from ndani.store.parameters import short
from ndani.untrusted_json import InvalidJson, loads

#: Bytes of the headers of all files of a model: each tensor takes about 100, and the largest models have 2,000 here.
MAX_HEADER_BYTES = 16 << 20
#: Bytes of a file that says something of the weights. A tokenizer.json of 262,144 tokens has 35 MB, and nothing else has as
#: many; JSON that is written for it takes 30 times its size in memory.
MAX_METADATA_BYTES, MAX_TOKENIZER_BYTES = 16 << 20, 48 << 20
#: Numbers in one run of rows: what is in memory at once.
CHUNK_VALUES = 1 << 22

#: What the form knows; only the first four are weights that can be converted.
_WIDTHS = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1,
    "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
WEIGHTS = ("F64", "F32", "F16", "BF16")
_INDEX = ".safetensors.index.json"
_MODELS = f"model{_INDEX}"
_MARK = b"\xef\xbb\xbf"  # which editors of Windows put before a text


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as it lies: its file (open), the place of its first byte there, its dtype and its shape (slowest dimension first)."""

    file: str
    descriptor: int
    at: int
    dtype: str
    shape: tuple[int, ...]

    def row_chunks(self, unit: int = 1) -> Iterator[NDArray[np.float32]]:
        """Its values as F32 in chunks of about CHUNK_VALUES values, each a multiple of `unit` rows. A vector has one value per row."""
        rows, width = self.shape[0], math.prod(self.shape[1:])
        step = max(CHUNK_VALUES // max(width * unit, 1), 1) * unit
        size = width * _WIDTHS[self.dtype]  # bytes of a row
        for first in range(0, rows, step):
            count = min(step, rows - first)
            raw = _read(self.descriptor, count * size, self.at + first * size)
            if len(raw) < count * size:
                raise BadRequest(f"{self.file} became shorter while it was read; send it again")
            yield _numbers(raw, self.dtype).reshape(count, *self.shape[1:])


def _numbers(raw: bytes, dtype: str) -> NDArray[np.float32]:
    if dtype == "BF16":  # the upper half of an F32
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    # An F64 that is too large becomes infinite, which is refused where it is written, as what is no number is.
    with np.errstate(over="ignore", invalid="ignore"):
        return np.frombuffer(raw, {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32)


def read_tensors(sources: Mapping[str, int]) -> dict[str, StoredTensor]:
    """Every tensor of the safetensors files among `sources` (open descriptors by name). Raises BadRequest, Unsupported.

    An index file, where there is one, says which of them are the model's, and has to agree with what they hold.
    """
    weights = [name for name, descriptor in sorted(sources.items()) if holds_tensors(name, detect_format(descriptor))]
    indexes = _indexes(sources, weights)
    named = {str(file) for places in indexes.values() for file in places.values()}
    found: dict[str, StoredTensor] = {}
    left = MAX_HEADER_BYTES
    for name in [name for name in weights if name in named] or weights:
        length = _length(name, sources[name])
        left -= length
        if left < 0:
            raise BadRequest(f"the headers of these files have more than {MAX_HEADER_BYTES} bytes; send the files of one model alone")
        for tensor, stored in _header(name, sources[name], length).items():
            if tensor in found:
                raise BadRequest(f"{name} and {found[tensor].file} both hold the tensor {short(tensor)}; give one set of weights")
            found[tensor] = stored
    if not found:
        raise BadRequest("no files provided to convert: none of them is a safetensors file with tensors")
    for name, places in indexes.items():
        _compare(name, places, found)
    return found


def _indexes(sources: Mapping[str, int], weights: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What each index of these weights says: the file of each tensor. Raises BadRequest."""
    found = {}
    for name, descriptor in sorted(sources.items()):
        # One that lies beside a whole file was left there by an earlier form of the model: nobody reads it then.
        if name.endswith(_INDEX) and name.removesuffix(".index.json") not in sources:
            places = read_object(name, descriptor).get("weight_map")
            if not isinstance(places, dict):
                raise BadRequest(f"{name} is no index of safetensors files: it has no weight_map; send the model's own")
            if name == _MODELS or any(str(file) in weights for file in places.values()):  # else it is of another form of the weights
                found[name] = places
    return found


def _compare(name: str, places: Mapping[str, Any], found: Mapping[str, StoredTensor]) -> None:
    """Whether the parts hold the tensors that the index says, each the ones that it says of it, and no others beside them."""
    for tensor, file in places.items():
        if tensor not in found or found[tensor].file != file:
            raise BadRequest(f"{name} names the file {short(str(file))} for {short(tensor)}, and it is not there; send all parts")
    for tensor, stored in found.items():
        if tensor not in places:
            raise BadRequest(f"{stored.file} holds the tensor {short(tensor)}, and {name} does not name it; send the files of one model")


def _length(name: str, descriptor: int) -> int:
    """Bytes of a file's header, which are all there."""
    if detect_format(descriptor) == POINTER:
        raise refusal(name, POINTER)
    first = _read(descriptor, 8, 0)
    length = struct.unpack("<Q", first)[0] if len(first) == 8 else -1
    if not 2 <= length <= os.fstat(descriptor).st_size - 8:
        raise BadRequest(f"{name} is not a safetensors file, or not a whole one; send it again")
    return int(length)


def _header(name: str, descriptor: int, length: int) -> dict[str, StoredTensor]:
    size = os.fstat(descriptor).st_size
    try:
        header = loads(_read(descriptor, length, 8))
    except InvalidJson:
        header = None
    if not isinstance(header, dict):
        raise BadRequest(f"the header of {name} is not JSON; it is no safetensors file, or damaged")
    header.pop("__metadata__", None)
    found = {tensor: _stored(name, descriptor, tensor, said, 8 + length, size) for tensor, said in header.items()}
    _require_whole(name, found, 8 + length, size)
    return found


def _stored(name: str, descriptor: int, tensor: str, said: Any, base: int, size: int) -> StoredTensor:
    wrong = BadRequest(f"{name} says something impossible of its tensor {short(tensor)}; the file is damaged, send it again")
    if not isinstance(said, dict):
        raise wrong
    dtype, shape, offsets = said.get("dtype"), _counts(said.get("shape")), _counts(said.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2 or len(shape) > 8:
        raise wrong
    if dtype not in _WIDTHS:
        raise Unsupported(f"{name} holds numbers of the kind {short(dtype)} ({short(tensor)}), which cannot be converted")
    if not offsets[0] <= offsets[1] <= size - base or math.prod(shape) * _WIDTHS[dtype] != offsets[1] - offsets[0]:
        raise wrong
    return StoredTensor(name, descriptor, base + offsets[0], dtype, tuple(shape) or (1,))


def _require_whole(name: str, found: Mapping[str, StoredTensor], at: int, size: int) -> None:
    """The tensors must fill the file, one behind the other: bytes between or behind them are nobody's."""
    for stored in sorted(found.values(), key=lambda one: one.at):
        if stored.at != at:
            raise BadRequest(f"the tensors of {name} overlap, or leave bytes out; the file is damaged, send it again")
        at += math.prod(stored.shape) * _WIDTHS[stored.dtype]
    if at != size:
        raise BadRequest(f"{name} has {size} bytes, and its tensors end at {at}; the file is damaged, send it again")


def _counts(value: Any) -> list[int] | None:
    """A list of possible lengths or places; None when it is anything else."""
    right = isinstance(value, list) and all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 48 for item in value)
    return value if right else None


def read_file(name: str, descriptor: int) -> bytes:
    """A file that says something of the weights. Raises BadRequest for one that is too large for that."""
    size = os.fstat(descriptor).st_size
    most = MAX_TOKENIZER_BYTES if name.endswith("tokenizer.json") else MAX_METADATA_BYTES
    if size > most:
        raise BadRequest(f"{name} is larger than such a file may be ({most} bytes); send the model's own")
    return _read(descriptor, size, 0)


def read_object(name: str, descriptor: int) -> dict[str, Any]:
    """A file that holds one JSON object. Raises BadRequest."""
    value = read_json(name, descriptor, "a JSON object")
    if not isinstance(value, dict):
        raise BadRequest(f"{name} is not a JSON object; it is damaged, or another file")
    return value


def read_json(name: str, descriptor: int, what: str) -> Any:
    """A file of JSON, which is to be `what`. Raises BadRequest.

    Read by `foreign`, which needs no codec that a jail would have to let in, and knows the NaN that some programs write.
    """
    try:
        return loads(read_file(name, descriptor))
    except InvalidJson as error:
        raise BadRequest(f"{name} is not {what}: {error}; it is damaged, or another file") from None


def read_text(name: str, descriptor: int) -> str:
    """A file of text, with the ends of its lines as they are counted here, whatever system wrote them. Raises BadRequest."""
    try:
        content = read_file(name, descriptor).removeprefix(_MARK).decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest(f"{name} is not UTF-8 text; save it as that, and send it again") from None
    return content.replace("\r\n", "\n").replace("\r", "\n")


def _read(descriptor: int, length: int, at: int) -> bytes:
    """So many bytes from a place in an open file; fewer where it ends."""
    pieces = []
    while length and (piece := os.pread(descriptor, length, at)):
        pieces.append(piece)
        length, at = length - len(piece), at + len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
