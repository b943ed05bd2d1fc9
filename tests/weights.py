"""Weights for the tests of `convert`: a real model unpacked to F16, and small made-up ones, whole or in parts."""

from __future__ import annotations

import ctypes
import functools
import os
import random
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ndani.convert import gguf_layout, kernels, quant_types
from ndani.convert.quantise import CHUNK_VALUES, OpenGguf, open_source
from ndani.store import extents
from ndani.store.gguf import Tensor, read_header

Made = tuple[list[tuple[str, Any]], list[tuple[Tensor, bytes]]]

#: The tensors of SmolLM2-135M, which the recorded choices are about.
SMOLLM2 = [
    Tensor("token_embd.weight", "F16", (576, 49152)),
    Tensor("output_norm.weight", "F32", (576,)),
    *(
        Tensor(f"blk.{block}.{name}.weight", "F32" if len(shape) == 1 else "F16", shape)
        for block in range(30)
        for name, shape in {
            "attn_norm": (576,), "attn_q": (576, 576), "attn_k": (576, 192), "attn_v": (576, 192), "attn_output": (576, 576),
            "ffn_norm": (576,), "ffn_gate": (576, 1536), "ffn_up": (576, 1536), "ffn_down": (1536, 576),
        }.items()
    ),
]  # fmt: skip


def recorded_types(kind: dict[str, Any], tensors: Iterable[Tensor]) -> dict[str, str]:
    """The type of every tensor, out of the short way in which the recording says it."""
    names = [tensor.name for tensor in tensors]
    types = dict.fromkeys(names, "")
    for found, which in kind["tensors"].items():
        if isinstance(which, list):
            types |= dict.fromkeys(which, found)
        elif which == "all one-dimensional":
            types |= {tensor.name: found for tensor in tensors if len(tensor.shape) == 1}
        else:
            assert which.startswith("the other ")
            rest, count = found, int(which.split()[-1])
    left = [name for name in names if not types[name]]
    assert len(left) == count
    return types | dict.fromkeys(left, rest)


class _Traits(ctypes.Structure):
    """`struct ggml_type_traits`, as far as it is needed."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("numbers", ctypes.c_int64),
        ("interleaved", ctypes.c_int64),
        ("bytes", ctypes.c_size_t),
        ("quantised", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


@functools.cache
def library() -> ctypes.CDLL:
    return ctypes.CDLL(str(kernels._shared_object()))


def traits(kind: str) -> _Traits:
    """What the engine says of a type."""
    library().ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    found: _Traits = library().ggml_get_type_traits(kernels.TYPE_NUMBERS[kind]).contents
    return found


def unpack(source: Path, target: Path) -> None:
    """A quantised model's F16 form, as a hand-me-down of the recordings' `gguf-f16`: the same tensors, byte for byte."""
    with source.open("rb") as file, target.open("wb+") as out:
        opened = open_source(source.name, file.fileno())
        tensors = quant_types.in_order(opened.head.tensors)
        types = {tensor.name: "F32" if len(tensor.shape) == 1 else "F16" for tensor in tensors}
        made = gguf_layout.lay_out_file(_keys(opened, 1), tensors, types)
        out.write(made.head)
        begin = extents.align_up(opened.head.end, extents.ALIGNMENT)
        for tensor, place in zip(tensors, made.offsets, strict=True):
            count = extents.tensor_size("F32", tensor.shape) // 4
            held = os.pread(file.fileno(), extents.tensor_size(tensor.type, tensor.shape), begin + tensor.offset)
            out.seek(place)
            out.write(held if tensor.type == types[tensor.name] else _halves(tensor.type, held, count))
        out.truncate(made.size)


def _keys(opened: OpenGguf, file_type: int) -> list[bytes]:
    keys = {key: opened.raw[begin:end] for key, (begin, end) in opened.head.spans.items()}
    return [*(value for key, value in keys.items() if key != "general.file_type"), gguf_layout.number_key("general.file_type", file_type)]


def _halves(kind: str, held: bytes, count: int) -> bytes:
    widen: Callable[..., None] = traits(kind).to_float
    numbers, size = extents.BLOCKS[kind]
    half, made = library().ggml_fp32_to_fp16_row, bytearray()
    half.argtypes, half.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64), None
    for at in range(0, count, CHUNK_VALUES):
        many = min(CHUNK_VALUES, count - at)
        floats, halves = (ctypes.c_float * many)(), (ctypes.c_uint16 * many)()
        widen(held[at // numbers * size :][: many // numbers * size], floats, many)
        half(floats, halves, many)
        made += bytes(halves)
    return bytes(made)


def numbers(count: int, seed: int = 1) -> bytes:
    """So many F16 numbers between -1 and 1, the same for the same seed; they repeat after 65,536."""
    chosen = random.Random(seed)
    some = b"".join(struct.pack("<e", chosen.uniform(-1, 1)) for _ in range(min(count, 1 << 16)))
    return (some * (2 * count // len(some) + 1))[: 2 * count]


def small(rows: int = 64, seed: int = 1, **more: Any) -> Made:
    """The key/values and the tensors of a made-up model: two blocks, rows of 256."""
    keys = {
        "general.architecture": "llama", "general.name": f"small {seed}", "general.file_type": 1, "llama.context_length": 512,
        "llama.embedding_length": 256, "llama.block_count": 2, "llama.attention.head_count": 4, "tokenizer.ggml.model": "gpt2",
    } | more  # fmt: skip
    tensors = [(Tensor("token_embd.weight", "F16", (256, rows)), numbers(256 * rows, seed))]
    for block in range(2):
        tensors.append((Tensor(f"blk.{block}.attn_norm.weight", "F32", (256,)), struct.pack("<256f", *range(256))))
        tensors.append((Tensor(f"blk.{block}.attn_v.weight", "F16", (256, 32)), numbers(256 * 32, seed + block)))
        tensors.append((Tensor(f"blk.{block}.ffn_down.weight", "F16", (256, rows)), numbers(256 * rows, seed + 7 + block)))
    return list(keys.items()), tensors


def file(keys: Iterable[tuple[str, Any]], tensors: Sequence[tuple[Tensor, bytes]]) -> bytes:
    """A whole GGUF file."""
    laid = gguf_layout.lay_out_file([_pair(*pair) for pair in keys], [t for t, _ in tensors], {t.name: t.type for t, _ in tensors})
    made = bytearray(laid.size)
    made[: len(laid.head)] = laid.head
    for (_, content), place in zip(tensors, laid.offsets, strict=True):
        made[place : place + len(content)] = content
    return bytes(made)


def split(keys: Sequence[tuple[str, Any]], tensors: Sequence[tuple[Tensor, bytes]], count: int) -> dict[str, bytes]:
    """The same model in so many files, as `gguf-split` makes them: all keys in the first alone, tensors in their order."""
    parts = {}
    for number in range(count):
        own = tensors[number * len(tensors) // count : (number + 1) * len(tensors) // count]
        said = {"split.no": number, "split.count": count, "split.tensors.count": len(tensors)}
        parts[f"small-{number + 1:05}-of-{count:05}.gguf"] = file([*(keys if number == 0 else ()), *said.items()], own)
    return parts


def _pair(key: str, value: Any) -> bytes:
    if isinstance(value, int):
        return gguf_layout.number_key(key, value)
    raw = value.encode()
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<IQ", 8, len(raw)) + raw


def types_of(path: Path) -> dict[str, str]:
    """The type of each tensor in a file."""
    return {tensor.name: tensor.type for tensor in read_header(path).tensors}
