"""Converting checkpoints: what is read is checked first, what is written is what another reader sees, and what is wrong is said."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from checkpoints import LLAMA3, byte_level, convert, made_of, read_safetensors, sentence_pieces, split, tiny_bert, tiny_llama
from ndani.convert import safetensors
from ndani.store.weights_info import inspect
from spoils import Spoil, both, edit, letters, reweigh, rewrite, stretched, text, wordpiece


def converted(folder: Path, target: Path) -> gguf.GGUFReader:
    """The result, as the gguf library reads it."""
    with target.open("wb") as out:
        steps = list(convert(folder, out))
    assert steps == sorted(steps)
    assert steps[-1] == target.stat().st_size
    return gguf.GGUFReader(target)


def value(reader: gguf.GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    assert field is not None, key
    return field.contents()


def tensor(reader: gguf.GGUFReader, name: str) -> Any:
    (found,) = [one for one in reader.tensors if one.name == name]
    return np.array(found.data)


def test_a_bert_is_what_was_stored(bert: Path, tmp_path: Path) -> None:
    reader = converted(bert, tmp_path / "b.gguf")
    weights = floats(bert)
    embedding = tensor(reader, "token_embd.weight")
    assert embedding.dtype == np.float16
    assert (embedding == weights["embeddings.word_embeddings.weight"].astype(np.float16)).all()
    assert (tensor(reader, "token_types.weight") == weights["embeddings.token_type_embeddings.weight"]).all()
    assert (tensor(reader, "blk.1.layer_output_norm.bias") == weights["encoder.layer.1.output.LayerNorm.bias"]).all()
    assert len(reader.tensors) == 5 + 2 * 16
    assert not [one.name for one in reader.tensors if "pool" in one.name]
    assert value(reader, "tokenizer.ggml.tokens") == [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "▁hello", "▁world", "s", "▁a", "▁b", "c"
    ]  # fmt: skip
    assert value(reader, "bert.pooling_type") == 1
    assert value(reader, "bert.attention.causal") is False
    assert value(reader, "tokenizer.ggml.seperator_token_id") == 3
    assert value(reader, "tokenizer.ggml.cls_token_id") == 2
    header = inspect(tmp_path / "b.gguf")
    assert header.capabilities(None) == ("embedding",)
    assert header.file_type == "F16"
    assert header.context_length == 64


def floats(folder: Path) -> dict[str, Any]:
    return read_safetensors(folder / "model.safetensors")


def test_the_same_files_give_the_same_bytes(bert: Path) -> None:
    assert made_of(bert) == made_of(bert)


def test_a_llama_in_shards_and_bf16(tmp_path: Path) -> None:
    whole = converted(tiny_llama(tmp_path / "one", byte_level()), tmp_path / "one.gguf")
    parts = converted(tiny_llama(tmp_path / "many", byte_level(), shards=3, bf16=True), tmp_path / "many.gguf")
    assert [one.name for one in whole.tensors] == [one.name for one in parts.tensors]
    for one in whole.tensors:
        # A BF16 was cut off at 8 bits of its fraction, and those fit an F16.
        np.testing.assert_allclose(
            tensor(parts, one.name).astype(np.float32), tensor(whole, one.name).astype(np.float32), rtol=2**-7, atol=1e-4
        )
    assert value(whole, "llama.attention.head_count_kv") == 2
    assert value(whole, "llama.rope.dimension_count") == 16
    assert value(whole, "tokenizer.ggml.model") == "gpt2"
    assert value(whole, "tokenizer.ggml.pre") == "gpt-2"
    tokens = value(whole, "tokenizer.ggml.tokens")
    assert tokens[-1] == f"[PAD{len(tokens) - 1}]"
    assert value(whole, "tokenizer.ggml.token_type")[-1] == 5


def test_heads_are_turned_as_the_engine_wants_them(llama: Path, tmp_path: Path) -> None:
    reader, weights = converted(llama, tmp_path / "l.gguf"), floats(llama)
    for ours, theirs, heads in (("attn_q", "q_proj", 4), ("attn_k", "k_proj", 2)):
        stored = weights[f"model.layers.0.self_attn.{theirs}.weight"]
        turned = stored.reshape(heads, 2, -1, stored.shape[1]).swapaxes(1, 2).reshape(stored.shape)
        assert (tensor(reader, f"blk.0.{ours}.weight") == turned.astype(np.float16)).all()
    assert (tensor(reader, "blk.0.attn_v.weight") == weights["model.layers.0.self_attn.v_proj.weight"].astype(np.float16)).all()


def test_qwen2_is_not_turned_and_has_a_name_of_its_own(tmp_path: Path) -> None:
    tokenizer = byte_level(split(LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")))
    folder = tiny_llama(tmp_path / "q", tokenizer, architectures=["Qwen2ForCausalLM"], tie_word_embeddings=True)
    sizes = {"q_proj": 64, "k_proj": 32, "v_proj": 32}
    biases = {f"model.layers.{block}.self_attn.{part}.bias": np.ones(size, np.float32) for block in (0, 1) for part, size in sizes.items()}
    reweigh(lambda weights: weights.update(biases))(folder)
    reader = converted(folder, tmp_path / "q.gguf")
    stored = floats(folder)["model.layers.0.self_attn.q_proj.weight"]
    assert (tensor(reader, "blk.0.attn_q.weight") == stored.astype(np.float16)).all()
    assert value(reader, "general.architecture") == "qwen2"
    assert value(reader, "tokenizer.ggml.pre") == "qwen2"
    assert "output.weight" not in {one.name for one in reader.tensors}


def test_stretched_places(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    reader = converted(tiny_llama(tmp_path / "l", byte_level(), rope_scaling=scaling), tmp_path / "l.gguf")
    factors = tensor(reader, "rope_freqs.weight")
    assert factors[0] == 1
    assert factors[-1] == 8
    assert (np.diff(factors) >= 0).all()
    assert len(factors) == 8
    wave = 2 * math.pi * 10000 ** (2 / 16)  # the second pair lies between: 64/4 < 19.9 < 64
    smooth = (64 / wave - 1) / 3
    assert factors[1] == pytest.approx(1 / ((1 - smooth) / 8 + smooth))
    linear = tiny_llama(tmp_path / "m", byte_level(), rope_scaling={"type": "linear", "factor": 2.0})
    assert value(converted(linear, tmp_path / "m.gguf"), "llama.rope.scaling.factor") == 2


def test_the_chat_template_and_the_special_tokens(llama: Path, tmp_path: Path) -> None:
    said = {"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}, "add_bos_token": True, "chat_template": "{{ messages }}"}
    (llama / "tokenizer_config.json").write_text(json.dumps(said))
    reader = converted(llama, tmp_path / "l.gguf")
    assert value(reader, "tokenizer.chat_template") == "{{ messages }}"
    assert value(reader, "tokenizer.ggml.add_bos_token") is True
    assert (value(reader, "tokenizer.ggml.bos_token_id"), value(reader, "tokenizer.ggml.eos_token_id")) == (0, 1)
    (llama / "chat_template.jinja").write_text("newer")
    rewrite("tokenizer_config.json", chat_template=[{"name": "default", "template": "older"}])(llama)
    assert value(converted(llama, tmp_path / "l.gguf"), "tokenizer.chat_template") == "newer"


def test_sentence_pieces_have_scores(tmp_path: Path) -> None:
    reader = converted(tiny_llama(tmp_path / "s", sentence_pieces(), bos_token_id=1), tmp_path / "s.gguf")
    tokens, types = value(reader, "tokenizer.ggml.tokens"), value(reader, "tokenizer.ggml.token_type")
    assert value(reader, "tokenizer.ggml.model") == "llama"
    assert value(reader, "tokenizer.ggml.add_bos_token") is True
    assert types[tokens.index("<unk>")] == 2
    assert types[tokens.index("<s>")] == 3
    assert types[tokens.index("<0x0A>")] == 6
    assert value(reader, "tokenizer.ggml.scores")[tokens.index("<0x0A>")] == 0


def test_a_hole_among_the_tokens_has_a_name_of_its_own(llama: Path, tmp_path: Path) -> None:
    said = json.loads((llama / "tokenizer.json").read_text())
    hole = next(token for token, number in said["model"]["vocab"].items() if number == 2)
    del said["model"]["vocab"][hole]
    (llama / "tokenizer.json").write_text(json.dumps(said))
    tokens = value(converted(llama, tmp_path / "l.gguf"), "tokenizer.ggml.tokens")
    assert tokens[2] == "[PAD2]"
    assert tokens[-4:] == [f"[PAD{number}]" for number in range(len(tokens) - 4, len(tokens))]
    assert len(set(tokens)) == len(tokens)


@pytest.mark.parametrize(
    ("spoil", "lowercase", "accents"),
    [
        (wordpiece(letters()), None, None),
        (wordpiece(letters(lowercase=False)), False, None),
        (wordpiece({"type": "Sequence", "normalizers": [letters(lowercase=False)]}), False, None),
        (wordpiece(letters(strip_accents=False)), None, False),
        (text("tokenizer_config.json", '{"do_lower_case": false}'), False, None),
        (text("tokenizer_config.json", '{"do_lower_case": false, "strip_accents": true}'), False, True),
        (both(wordpiece(letters()), text("tokenizer_config.json", '{"do_lower_case": false}')), False, None),
    ],
)
def test_a_bert_keeps_its_letters(bert: Path, tmp_path: Path, spoil: Spoil, lowercase: bool | None, accents: bool | None) -> None:
    spoil(bert)
    reader = converted(bert, tmp_path / "b.gguf")
    found = [reader.get_field(f"tokenizer.ggml.normalizer.{name}") for name in ("lowercase", "strip_accents")]
    assert [field and field.contents() for field in found] == [lowercase, accents]


@pytest.mark.parametrize("normalizer", [{"type": "NFC"}, {"type": "Sequence", "normalizers": []}])
def test_steps_that_change_nothing_are_let_through(llama: Path, tmp_path: Path, normalizer: Any) -> None:
    edit("normalizer", to=normalizer)(llama)
    edit("post_processor", to={"type": "TemplateProcessing", "single": 5})(llama)
    assert value(converted(llama, tmp_path / "l.gguf"), "tokenizer.ggml.pre") == "gpt-2"


def test_yarns_own_number_is_told_as_the_engine_takes_it(llama: Path, tmp_path: Path) -> None:
    stretched(attention_factor=3.0, beta_fast=32, beta_slow=1.0)(llama)
    reader = converted(llama, tmp_path / "l.gguf")
    assert value(reader, "llama.rope.scaling.attn_factor") == pytest.approx(3 / (0.1 * math.log(4) + 1))
    assert value(reader, "llama.rope.scaling.original_context_length") == 64


def test_all_tokens_that_end_an_answer(llama: Path, tmp_path: Path) -> None:
    (llama / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    (llama / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 1, True, -1, 1 << 40]}))
    rewrite("config.json", eos_token_id=7)(llama)
    reader = converted(llama, tmp_path / "l.gguf")
    assert list(value(reader, "tokenizer.ggml.eos_token_ids")) == [1, 5, 7]
    assert [value(reader, f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")] == [1, 5, 7]


def test_only_a_run_of_rows_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors, "CHUNK_VALUES", 1000)
    (tmp_path / "b").mkdir()
    reader = converted(tiny_bert(tmp_path / "b", width=96), tmp_path / "b.gguf")
    stored = floats(tmp_path / "b")["encoder.layer.0.intermediate.dense.weight"]
    assert stored.size > 10 * 1000
    assert (tensor(reader, "blk.0.ffn_up.weight") == stored.astype(np.float16)).all()
    llama = converted(tiny_llama(tmp_path / "l", byte_level(), width=128), tmp_path / "l.gguf")
    monkeypatch.setattr(safetensors, "CHUNK_VALUES", 1 << 22)
    whole = converted(tmp_path / "l", tmp_path / "w.gguf")
    assert all((tensor(llama, one.name) == tensor(whole, one.name)).all() for one in whole.tensors)
