"""What a GGUF file says of itself, and that a bad file costs a sentence and not the memory."""

from __future__ import annotations

import itertools
import json
import math
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from ndani.errors import StoreFailed
from ndani.store.gguf import MAX_KEPT_ITEMS, translate_gguf_errors
from ndani.store.weights_info import WeightsInfo, format_count, inspect

KINDS = {bool: (7, "<?"), int: (4, "<I"), float: (6, "<f")}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(content: Any) -> bytes:
    if isinstance(content, str):
        return struct.pack("<I", 8) + text(content)
    if isinstance(content, list):
        items = b"".join(value(item)[4:] for item in content)
        return struct.pack("<II", 9, struct.unpack("<I", value(content[0])[:4])[0]) + struct.pack("<Q", len(content)) + items
    kind, form = KINDS[type(content)]
    return struct.pack("<I", kind) + struct.pack(form, content)


def gguf(keys: dict[str, Any], tensors: list[tuple[str, tuple[int, ...], int]] = [], version: int = 3) -> bytes:  # noqa: B006
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    body = b"".join(text(key) + value(content) for key, content in keys.items())
    for name, shape, kind in tensors:
        body += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, 0)
    return head + body


def look(path: Path) -> WeightsInfo:
    """A file of the store, whatever is wrong with it said in a sentence."""
    with translate_gguf_errors(path):
        return inspect(path)


LLAMA: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "hidden",
    "general.file_type": 15,
    "general.languages": ["en"],
    "llama.block_count": 4,
    "llama.context_length": 2048,
    "llama.embedding_length": 64,
    "llama.attention.head_count": 8,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.causal": True,
    "tokenizer.chat_template": "{% for m in messages %}{{ m }}{% endfor %}",
    "tokenizer.ggml.tokens": [f"word{n}" for n in range(3000)],
    "tokenizer.ggml.scores": [float(n) for n in range(3000)],
}
TENSORS = [("token_embd.weight", (64, 3000), 12), ("output_norm.weight", (64,), 0)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(LLAMA, TENSORS))
    return path


def test_a_header_is_read_for_what_it_says(file: Path) -> None:
    head = inspect(file)
    assert (head.architecture, head.file_type, head.context_length, head.embedding_length) == ("llama", "Q4_K_M", 2048, 64)
    assert head.parameter_count == 64 * 3000 + 64
    assert head.parameter_size == "192K"
    assert [(t.name, t.type, t.shape) for t in head.tensors] == [
        ("token_embd.weight", "Q4_K", (64, 3000)),
        ("output_norm.weight", "F32", (64,)),
    ]
    assert head.chat_template
    assert head.capabilities(None) == ("completion",)


def test_model_info_hides_the_name_the_template_and_without_verbose_the_arrays(file: Path) -> None:
    info = inspect(file).model_info()
    assert "general.name" not in info
    assert "tokenizer.chat_template" not in info
    assert info["general.parameter_count"] == 64 * 3000 + 64
    assert info["tokenizer.ggml.tokens"] is None
    assert info["general.languages"] is None
    assert info["llama.attention.layer_norm_rms_epsilon"] == 1e-05
    assert info["llama.causal"] is True
    assert list(info) == sorted(info)
    full = inspect(file).model_info(verbose=True)
    assert full["tokenizer.ggml.tokens"][2999] == "word2999"
    assert full["tokenizer.ggml.scores"][5] == 5.0
    assert full["general.languages"] == ["en"]


def test_numbers_that_json_cannot_hold_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf({"general.architecture": "x", "x.rope": math.inf, "x.scale": math.nan}))
    json.dumps(inspect(path).model_info(), allow_nan=False)


def test_the_cache_of_a_token_is_counted_from_heads_and_lengths(tmp_path: Path, file: Path) -> None:
    head = inspect(file)
    assert (head.key_length, head.value_length, head.head_count_kv) == (8, 8, 2)
    assert head.kv_bytes_per_token() == 4 * 2 * 16 * 2
    assert head.kv_bytes_per_token("f32") == 2 * head.kv_bytes_per_token("f16")
    assert head.kv_bytes_per_token("q8_0") == math.ceil(4 * 2 * 16 * 34 / 32)
    uneven = {**LLAMA, "llama.attention.head_count_kv": [2, 0, 2, 4], "llama.attention.key_length": 16}
    path = tmp_path / "uneven.gguf"
    path.write_bytes(gguf(uneven))
    assert inspect(path).kv_bytes_per_token() == (2 + 0 + 2 + 4) * (16 + 8) * 2


@pytest.mark.parametrize(
    ("extra", "added", "able"),
    [
        ({}, None, ("completion",)),
        ({"llama.pooling_type": 1}, None, ("embedding",)),
        ({"tokenizer.chat_template": "{% if tools %}"}, None, ("completion", "tools")),
        ({"tokenizer.chat_template": "<think>"}, None, ("completion", "thinking")),
        ({"tokenizer.chat_template": "{% if tools %}"}, (), ("completion",)),
        ({}, {"insert", "tools"}, ("completion", "tools", "insert")),
        ({"llama.vision.block_count": 2}, None, ("completion", "vision")),
    ],
)
def test_capabilities_follow_the_keys_and_the_template(tmp_path: Path, extra: Any, added: Any, able: Any) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf({**LLAMA, **extra}))
    assert inspect(path).capabilities(added) == able


@pytest.mark.parametrize(
    ("number", "said"),
    [(134515008, "134.52M"), (22565376, "22.57M"), (1235814432, "1.2B"), (7_000_000_000, "7B"), (999, "999"), (192064, "192K")],
)
def test_a_count_is_printed_as_ollama_prints_it(number: int, said: str) -> None:
    assert format_count(number) == said


@pytest.mark.slow
def test_every_truncation_is_one_sentence(tmp_path: Path) -> None:
    small = gguf({**LLAMA, "tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.scores": [1.0]}, TENSORS)
    path = tmp_path / "m.gguf"
    for length in range(len(small)):
        path.write_bytes(small[:length])
        with pytest.raises(StoreFailed, match="GGUF"):
            look(path)
    path.write_bytes(small)
    inspect(path)


@pytest.mark.parametrize(
    "content",
    [
        b"not a model at all",
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**63) + b"x" * 99,
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<I", 77) + b"x" * 99,
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 2**40) + b"x" * 99,
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 9, 2) + b"x" * 99,
        b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("t") + struct.pack("<I", 2**31) + b"x" * 99,
        gguf({"general.file_type": 1}),
    ],
)
def test_a_hostile_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(StoreFailed, match=r"; run `ndani verify --repair`, or create the model again$"):
        look(path)


def test_what_is_kept_of_a_head_has_a_bound_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ndani.store.gguf.MAX_HEADER_MEMORY", 1 << 20)
    many = (
        {f"k{number}": [1.0] * MAX_KEPT_ITEMS for number in range(50)}
        | {f"n{number}": number for number in range(100)}
        | {"last": ["a"] * MAX_KEPT_ITEMS}
    )
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf({"general.architecture": "x"} | many, TENSORS))
    head = inspect(path)
    kept = [key for key, value in head.metadata.items() if isinstance(value, list)]
    assert kept[0] == "k0"
    assert 10 < len(kept) < 20
    assert head.memory <= 1 << 20
    assert head.metadata["last"] is None
    assert head.metadata["n99"] == 99
    assert [tensor.name for tensor in head.tensors] == ["token_embd.weight", "output_norm.weight"]
    for content in (gguf({f"{number}": 1 for number in range(5000)}), gguf({}, [(f"{number}", (1,), 0) for number in range(3000)])):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^its head holds more than 1 MB$"):
            inspect(path)


@pytest.mark.slow
def test_a_long_list_is_withheld_where_it_would_take_too_much(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    words = b"".join((text("words"), struct.pack("<IIQ", 9, 8, 1 << 21), bytes(8 << 21)))
    whole = gguf({"general.architecture": "x", "general.languages": ["en"]})
    path.write_bytes(whole[:16] + struct.pack("<Q", 3) + whole[24:] + words)
    info = inspect(path).model_info(verbose=True)
    assert info["words"] is None
    assert info["general.languages"] == ["en"]
    path.write_bytes(whole[:16] + struct.pack("<Q", 5) + whole[24:] + words + words.replace(b"words", b"verbs") + words)
    with pytest.raises(ValueError, match=r"^it has more than 4194304 texts in its arrays$"):
        inspect(path)


def test_a_file_with_flipped_bytes_never_raises_anything_else(tmp_path: Path) -> None:
    good = gguf({**LLAMA, "tokenizer.ggml.tokens": ["a", "b"]}, TENSORS)
    path, chance = tmp_path / "m.gguf", random.Random(4)
    outcomes = set()
    for _ in itertools.repeat(None, 400):
        bad = bytearray(good)
        for _ in range(3):
            bad[chance.randrange(len(bad))] = chance.randrange(256)
        path.write_bytes(bad)
        try:
            head = look(path)
            head.model_info()
            head.kv_bytes_per_token()
            head.capabilities(None)
            outcomes.add("read")
        except StoreFailed:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreFailed, match="missing from the store"):
        look(tmp_path / "none")
