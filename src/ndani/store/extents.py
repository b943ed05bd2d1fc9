"""Computes where the data of a GGUF file's tensors lies, and checks that it is all there. Pure: uses the header and the file size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ndani.errors import BadRequest
from ndani.store.gguf import Tensor, invalid_gguf
from ndani.store.parameters import excerpt

#: For each type, the numbers in a block and the bytes of a block.
BLOCKS = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "F64": (1, 8), "I8": (1, 1), "I16": (1, 2), "I32": (1, 4), "I64": (1, 8),
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34), "Q8_1": (32, 36),
    "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210), "Q8_K": (256, 292),
    "IQ1_S": (256, 50), "IQ1_M": (256, 56), "IQ2_XXS": (256, 66), "IQ2_XS": (256, 74), "IQ2_S": (256, 82),
    "IQ3_XXS": (256, 98), "IQ3_S": (256, 110), "IQ4_NL": (32, 18), "IQ4_XS": (256, 136), "TQ1_0": (256, 54), "TQ2_0": (256, 66),
    "MXFP4": (32, 17), "NVFP4": (64, 36), "Q1_0": (128, 18),
}  # fmt: skip

ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 20


def find_extents(path: str, metadata: Mapping[str, Any], tensors: Sequence[Tensor], end: int, size: int) -> dict[str, tuple[int, int]]:
    """For each tensor, the offset of its data in the file, and its length in bytes.

    `path` is the client's name for the file, `end` the size of its header, `size` that of the file. Raises BadRequest if data is
    missing or tensors overlap; otherwise such a file would fail only when it is loaded.
    """
    start = align_up(end, read_alignment(path, metadata))
    extents: dict[str, tuple[int, int]] = {}
    for tensor in tensors:
        if tensor.name in extents:
            raise invalid_gguf(path, f"it has the tensor {excerpt(tensor.name)} twice")
        length = _length(path, tensor)
        if start + tensor.offset + length > size:
            raise invalid_gguf(path, f"the tensor {excerpt(tensor.name)} is cut off", cut=True)
        extents[tensor.name] = start + tensor.offset, length
    previous_end = 0
    for name, (start_of_tensor, length) in sorted(extents.items(), key=lambda item: item[1]):
        if start_of_tensor < previous_end:
            raise invalid_gguf(path, f"the tensor {excerpt(name)} lies over another one")
        previous_end = start_of_tensor + length
    return extents


def read_alignment(path: str, metadata: Mapping[str, Any]) -> int:
    """The alignment of the tensor data. Raises BadRequest if it is invalid."""
    value = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(value, int) or not 8 <= value <= _MAX_ALIGNMENT or value & (value - 1):
        raise invalid_gguf(path, f"its alignment is {excerpt(str(value))}")
    return value


def tensor_size(kind: str, shape: Sequence[int]) -> int:
    """The bytes of a tensor's data. Raises ValueError if its rows do not fill the blocks of its type."""
    block_length, block_size = BLOCKS[kind]
    blocks, remainder = divmod(shape[0], block_length)
    if remainder:
        raise ValueError(f"rows of {shape[0]} numbers do not fill blocks of {kind}")
    for dimension in shape[1:]:
        blocks *= dimension
    return blocks * block_size


def align_up(size: int, alignment: int) -> int:
    """`size` rounded up to a multiple of `alignment`."""
    return -(-size // alignment) * alignment


def _length(path: str, tensor: Tensor) -> int:
    if tensor.type not in BLOCKS:
        raise BadRequest(f"{path} holds weights of the {tensor.type}, which this version does not know; update ndani")
    try:
        length = tensor_size(tensor.type, tensor.shape)
    except ValueError as error:
        raise invalid_gguf(path, str(error)) from None
    if not length:
        raise invalid_gguf(path, f"the tensor {excerpt(tensor.name)} is empty")
    return length
