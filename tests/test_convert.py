"""Converting checkpoints: what is read is checked first, what is written is what another reader sees, and what is wrong is said."""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from checkpoints import LLAMA3, byte_level, convert, made_of, sentence_pieces, split, tiny_bert, tiny_llama, write_safetensors
from ndani.convert import safetensors
from ndani.errors import BadRequest, Unsupported
from ndani.store.inspect import inspect

Spoil = Callable[[Path], object]


def converted(folder: Path, target: Path) -> gguf.GGUFReader:
    """The result, as the gguf library reads it."""
    with target.open("wb") as out:
        steps = list(convert(folder, out))
    assert steps == sorted(steps) and steps[-1] == target.stat().st_size
    return gguf.GGUFReader(target)


def value(reader: gguf.GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    assert field is not None, key
    return field.contents()


def tensor(reader: gguf.GGUFReader, name: str) -> Any:
    (found,) = [one for one in reader.tensors if one.name == name]
    return np.array(found.data)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    (tmp_path / "bert").mkdir()
    return tiny_bert(tmp_path / "bert")


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "llama", byte_level())


def rewrite(name: str, **more: Any) -> Spoil:
    """Change keys of a JSON file; None takes them out."""

    def spoil(folder: Path) -> None:
        said = json.loads((folder / name).read_text()) | more
        (folder / name).write_text(json.dumps({key: item for key, item in said.items() if item is not None}))

    return spoil


def test_a_bert_is_what_was_stored(bert: Path, tmp_path: Path) -> None:
    reader = converted(bert, tmp_path / "b.gguf")
    weights = _floats(bert)
    embedding = tensor(reader, "token_embd.weight")
    assert embedding.dtype == np.float16
    assert (embedding == weights["embeddings.word_embeddings.weight"].astype(np.float16)).all()
    assert (tensor(reader, "token_types.weight") == weights["embeddings.token_type_embeddings.weight"]).all()
    assert (tensor(reader, "blk.1.layer_output_norm.bias") == weights["encoder.layer.1.output.LayerNorm.bias"]).all()
    assert len(reader.tensors) == 5 + 2 * 16 and not [one.name for one in reader.tensors if "pool" in one.name]
    assert value(reader, "tokenizer.ggml.tokens") == [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "▁hello", "▁world", "s", "▁a", "▁b", "c"
    ]  # fmt: skip
    assert value(reader, "bert.pooling_type") == 1 and value(reader, "bert.attention.causal") is False
    assert value(reader, "tokenizer.ggml.seperator_token_id") == 3 and value(reader, "tokenizer.ggml.cls_token_id") == 2
    header = inspect(tmp_path / "b.gguf")
    assert header.capabilities(None) == ("embedding",) and header.file_type == "F16" and header.context_length == 64


def _floats(folder: Path) -> dict[str, Any]:
    from checkpoints import read_safetensors

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
    assert value(whole, "llama.attention.head_count_kv") == 2 and value(whole, "llama.rope.dimension_count") == 16
    assert value(whole, "tokenizer.ggml.model") == "gpt2" and value(whole, "tokenizer.ggml.pre") == "gpt-2"
    assert value(whole, "tokenizer.ggml.tokens")[-1] == "[PAD3]" and value(whole, "tokenizer.ggml.token_type")[-1] == 5


def test_heads_are_turned_as_the_engine_wants_them(llama: Path, tmp_path: Path) -> None:
    reader, weights = converted(llama, tmp_path / "l.gguf"), _floats(llama)
    for ours, theirs, heads in (("attn_q", "q_proj", 4), ("attn_k", "k_proj", 2)):
        stored = weights[f"model.layers.0.self_attn.{theirs}.weight"]
        turned = stored.reshape(heads, 2, -1, stored.shape[1]).swapaxes(1, 2).reshape(stored.shape)
        assert (tensor(reader, f"blk.0.{ours}.weight") == turned.astype(np.float16)).all()
    assert (tensor(reader, "blk.0.attn_v.weight") == weights["model.layers.0.self_attn.v_proj.weight"].astype(np.float16)).all()


def test_qwen2_is_not_turned_and_has_a_name_of_its_own(tmp_path: Path) -> None:
    tokenizer = byte_level(split(LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")))
    folder = tiny_llama(tmp_path / "q", tokenizer, architectures=["Qwen2ForCausalLM"], tie_word_embeddings=True)
    reader = converted(folder, tmp_path / "q.gguf")
    stored = _floats(folder)["model.layers.0.self_attn.q_proj.weight"]
    assert (tensor(reader, "blk.0.attn_q.weight") == stored.astype(np.float16)).all()
    assert value(reader, "general.architecture") == "qwen2" and value(reader, "tokenizer.ggml.pre") == "qwen2"
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
    assert factors[0] == 1 and factors[-1] == 8 and (np.diff(factors) >= 0).all() and len(factors) == 8
    wave = 2 * math.pi * 10000 ** (2 / 16)  # the second pair lies between: 64/4 < 19.9 < 64
    smooth = (64 / wave - 1) / 3
    assert factors[1] == pytest.approx(1 / ((1 - smooth) / 8 + smooth))
    linear = tiny_llama(tmp_path / "m", byte_level(), rope_scaling={"type": "linear", "factor": 2.0})
    assert value(converted(linear, tmp_path / "m.gguf"), "llama.rope.scaling.factor") == 2


def test_the_chat_template_and_the_special_tokens(llama: Path, tmp_path: Path) -> None:
    said = {"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}, "add_bos_token": True, "chat_template": "{{ messages }}"}
    (llama / "tokenizer_config.json").write_text(json.dumps(said))
    reader = converted(llama, tmp_path / "l.gguf")
    assert value(reader, "tokenizer.chat_template") == "{{ messages }}" and value(reader, "tokenizer.ggml.add_bos_token") is True
    assert (value(reader, "tokenizer.ggml.bos_token_id"), value(reader, "tokenizer.ggml.eos_token_id")) == (0, 1)
    (llama / "chat_template.jinja").write_text("newer")
    rewrite("tokenizer_config.json", chat_template=[{"name": "default", "template": "older"}])(llama)
    assert value(converted(llama, tmp_path / "l.gguf"), "tokenizer.chat_template") == "newer"


def test_sentence_pieces_have_scores(tmp_path: Path) -> None:
    reader = converted(tiny_llama(tmp_path / "s", sentence_pieces(), bos_token_id=1), tmp_path / "s.gguf")
    tokens, types = value(reader, "tokenizer.ggml.tokens"), value(reader, "tokenizer.ggml.token_type")
    assert value(reader, "tokenizer.ggml.model") == "llama" and value(reader, "tokenizer.ggml.add_bos_token") is True
    assert types[tokens.index("<unk>")] == 2 and types[tokens.index("<s>")] == 3 and types[tokens.index("<0x0A>")] == 6
    assert value(reader, "tokenizer.ggml.scores")[tokens.index("<0x0A>")] == 0


# What is wrong is one sentence, before a byte is written.


def raw(header: bytes, data: bytes = b"", length: int | None = None) -> Spoil:
    content = struct.pack("<Q", len(header) if length is None else length) + header + data
    return lambda folder: (folder / "model.safetensors").write_bytes(content)


def one(**said: Any) -> bytes:
    return json.dumps({"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | said}).encode()


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def reweigh(change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        weights = _floats(folder)
        change(weights)
        write_safetensors(folder / "model.safetensors", weights)

    return spoil


def changed(name: str, numbers: Any) -> Spoil:
    return reweigh(lambda weights: weights.update({name: numbers}))


def gone(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def text(name: str, content: str) -> Spoil:
    return lambda folder: (folder / name).write_text(content)


WRONG: list[tuple[str, Spoil, type[BadRequest], str]] = [
    ("llama", gone("config.json"), BadRequest, "there is no config.json"),
    ("llama", gone("model.safetensors"), BadRequest, "no files provided to convert"),
    ("llama", gone("tokenizer.json"), BadRequest, "there is no tokenizer.json"),
    ("llama", text("config.json", "{"), BadRequest, "config.json is not a JSON object"),
    ("llama", text("config.json", "[" * 100_000), BadRequest, "config.json is not a JSON object"),
    ("llama", text("config.json", "{}"), BadRequest, "unknown architecture"),
    ("llama", rewrite("config.json", architectures=["MambaForCausalLM"]), Unsupported, 'unsupported architecture "MambaForCausalLM"'),
    ("llama", rewrite("config.json", num_hidden_layers=None), BadRequest, "config.json does not say num_hidden_layers"),
    ("llama", rewrite("config.json", num_hidden_layers="2"), BadRequest, "config.json says num_hidden_layers"),
    ("llama", rewrite("config.json", num_hidden_layers=1), BadRequest, "the tensor model.layers.1."),
    ("llama", rewrite("config.json", num_hidden_layers=3), BadRequest, "the weights lack 9 tensors"),
    ("llama", rewrite("config.json", num_attention_heads=0), BadRequest, "config.json says num_attention_heads"),
    ("llama", rewrite("config.json", num_attention_heads=6), BadRequest, "the tensor model.layers.0.self_attn"),
    ("llama", rewrite("config.json", head_dim=3), BadRequest, "config.json says heads of 3 numbers"),
    ("llama", rewrite("config.json", rope_scaling={"type": "dynamic", "factor": 2}), Unsupported, "rope_scaling of the kind dynamic"),
    ("llama", rewrite("config.json", hidden_act="gelu"), Unsupported, "a model whose hidden_act is gelu"),
    ("llama", rewrite("config.json", quantization_config={"bits": 4}), Unsupported, "these weights are quantised already"),
    ("llama", rewrite("tokenizer.json", model={"type": "Unigram", "vocab": []}), Unsupported, "a tokenizer of the kind Unigram"),
    ("llama", rewrite("tokenizer.json", model={"type": "BPE", "vocab": {"a": "b"}}), BadRequest, "tokenizer.json has a token whose id"),
    ("llama", rewrite("tokenizer.json", model={"type": "BPE", "vocab": {"a": 1 << 40}}), BadRequest, "tokenizer.json has a token whose id"),
    ("llama", rewrite("tokenizer.json", pre_tokenizer={"type": "Whitespace"}), Unsupported, "this tokenizer is neither byte-level"),
    ("llama", lambda folder: byte_level(split(r"\d+|\D+")).save(str(folder / "tokenizer.json")), Unsupported, "this tokenizer splits text"),
    ("llama", changed("model.embed_tokens.weight", np.zeros((9, 64), np.float32)), BadRequest, "the tokenizer has "),
    ("llama", changed("model.layers.0.mlp.experts", np.zeros((2, 2), np.float32)), Unsupported, "there is no place for"),
    ("llama", reweigh(lambda w: w.pop("model.norm.weight")), BadRequest, "the weights lack 1 tensors of this model (output_norm.weight"),
    ("llama", rewrite("config.json", hidden_size=128), BadRequest, "token_embd.weight has the shape"),
    ("llama", changed("model.norm.weight", np.zeros((2, 2, 2, 2, 2), np.float32)), BadRequest, "output_norm.weight has the shape"),
    ("llama", changed("model.norm.weight", np.zeros(64, np.int64)), Unsupported, "output_norm.weight is stored as I64"),
    ("llama", cut, BadRequest, "model.safetensors says something impossible"),
    ("llama", raw(b""), BadRequest, "model.safetensors is not a safetensors file"),
    ("llama", raw(b"{}", length=1 << 60), BadRequest, "model.safetensors is not a safetensors file"),
    ("llama", raw(b"{x}"), BadRequest, "the header of model.safetensors is not JSON"),
    ("llama", raw(b"[1]"), BadRequest, "the header of model.safetensors is not JSON"),
    ("llama", raw(one(), bytes(8) + b"more"), BadRequest, "model.safetensors has "),
    ("llama", raw(one(data_offsets=[4, 12]), bytes(12)), BadRequest, "the tensors of model.safetensors overlap"),
    ("llama", raw(one(data_offsets=[8, 0]), bytes(8)), BadRequest, "model.safetensors says something impossible"),
    ("llama", raw(one(shape=[3]), bytes(8)), BadRequest, "model.safetensors says something impossible"),
    ("llama", raw(one(shape=[-2]), bytes(8)), BadRequest, "model.safetensors says something impossible"),
    ("llama", raw(one(shape=[1 << 47, 1 << 47]), bytes(8)), BadRequest, "model.safetensors says something impossible"),
    ("llama", raw(one(dtype="F4"), bytes(8)), Unsupported, "model.safetensors holds numbers of the kind F4"),
    ("llama", raw(b'{"t":5}'), BadRequest, "model.safetensors says something impossible"),
    ("llama", text("model.safetensors.index.json", '{"weight_map": {"x": "m"}}'), BadRequest, "model.safetensors.index.json"),
    ("bert", gone("modules.json"), BadRequest, "there is no modules.json"),
    ("bert", gone("1_Pooling/config.json"), BadRequest, "modules.json names no pooling"),
    ("bert", gone("vocab.txt"), BadRequest, "there is neither tokenizer.json nor vocab.txt"),
    ("bert", text("modules.json", "{}"), BadRequest, "modules.json is not a JSON list"),
    ("bert", rewrite("1_Pooling/config.json", pooling_mode_max_tokens=True), Unsupported, "1_Pooling/config.json asks for"),
    ("bert", rewrite("config.json", hidden_act="relu"), Unsupported, "a BERT whose hidden_act is relu"),
    ("bert", rewrite("config.json", layer_norm_eps="small"), BadRequest, "config.json says layer_norm_eps"),
    ("bert", rewrite("config.json", architectures=["BertForSequenceClassification"]), Unsupported, "unsupported architecture"),
    ("bert", text("vocab.txt", "hello\nworld\n"), BadRequest, "the tokenizer says nothing of [CLS]"),
    ("bert", reweigh(lambda w: w.pop("encoder.layer.0.output.dense.weight")), BadRequest, "the weights lack 1 tensors"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "spoil", "error", "begins"), WRONG, ids=[f"{n}-{row[3][:40]}" for n, row in enumerate(WRONG)])
def test_what_is_wrong_is_said_before_a_byte_is_written(
    kind: str, spoil: Spoil, error: type[BadRequest], begins: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    spoil(folder)
    out = io.BytesIO()
    with pytest.raises(error) as caught:
        list(convert(folder, out))
    assert str(caught.value).startswith(begins) and str(folder) not in str(caught.value)
    assert not out.getvalue()


@pytest.mark.parametrize("number", [1e6, math.inf, math.nan])
def test_numbers_that_f16_cannot_hold_are_refused(bert: Path, number: float) -> None:
    weights = _floats(bert)
    embedding = weights["embeddings.word_embeddings.weight"] = weights["embeddings.word_embeddings.weight"].copy()
    embedding[3, 4] = number
    write_safetensors(bert / "model.safetensors", weights)
    with pytest.raises(Unsupported, match=r"token_embd.weight has numbers that F16 cannot hold"):
        list(convert(bert, io.BytesIO()))


def test_only_a_run_of_rows_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors, "RUN", 1000)
    (tmp_path / "b").mkdir()
    reader = converted(tiny_bert(tmp_path / "b", width=96), tmp_path / "b.gguf")
    stored = _floats(tmp_path / "b")["encoder.layer.0.intermediate.dense.weight"]
    assert stored.size > 10 * 1000 and (tensor(reader, "blk.0.ffn_up.weight") == stored.astype(np.float16)).all()
    llama = converted(tiny_llama(tmp_path / "l", byte_level(), width=128), tmp_path / "l.gguf")
    monkeypatch.setattr(safetensors, "RUN", 1 << 22)
    whole = converted(tmp_path / "l", tmp_path / "w.gguf")
    assert all((tensor(llama, one.name) == tensor(whole, one.name)).all() for one in whole.tensors)


def test_no_damage_is_a_fault_of_ours(bert: Path, llama: Path) -> None:
    """Bytes exchanged anywhere: it is converted all the same, or refused with a sentence."""
    random = np.random.default_rng(7)
    places = [
        (bert, "model.safetensors"),
        (bert, "modules.json"),
        (llama, "tokenizer.json"),
        (llama, "config.json"),
        (llama, "model.safetensors"),
    ]
    said = set()
    for round_ in range(250):
        folder, name = places[round_ % len(places)]
        path = folder / name
        kept = path.read_bytes()
        spoilt = bytearray(kept)
        for _ in range(random.integers(1, 4)):
            spoilt[random.integers(0, min(len(kept), 3000))] = random.choice(list(b'0123456789[]{},:"ntf-'))
        path.write_bytes(spoilt)
        try:
            list(convert(folder, io.BytesIO()))
        except BadRequest as error:
            said.add(str(error).split()[0])
            assert "\n" not in str(error) and len(str(error)) < 400
        path.write_bytes(kept)
    assert len(said) > 2
