"""Converting checkpoints: what is wrong is one sentence, before a byte is written; and nothing takes more memory than it should."""

from __future__ import annotations

import io
import json
import math
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from checkpoints import (
    LLAMA3,
    byte_level,
    convert,
    made_of,
    read_safetensors,
    split,
    write_safetensors,
)
from ndani.errors import BadRequest, Unsupported
from spoils import (
    PART,
    Spoil,
    as_part,
    both,
    changed,
    cut,
    edit,
    gone,
    index,
    letters,
    one,
    raw,
    resized,
    reweigh,
    rewrite,
    shaped,
    split_by,
    steps,
    stretched,
    text,
    wordpiece,
)

BIASED = rewrite("config.json", mlp_bias=True)
PARTIAL = rewrite("config.json", rope_scaling={"rope_type": "default", "partial_rotary_factor": 0.5})

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
    ("llama", resized(9, "model.embed_tokens", "lm_head"), BadRequest, "the tokenizer has "),
    ("llama", changed("model.layers.0.mlp.experts", np.zeros((2, 2), np.float32)), Unsupported, "there is no place for"),
    ("llama", reweigh(lambda w: w.pop("model.norm.weight")), BadRequest, "the weights lack 1 tensors of this model (output_norm.weight"),
    ("llama", rewrite("config.json", hidden_size=128), BadRequest, "the tensor model.embed_tokens.weight has the shape"),
    ("llama", shaped("model.norm.weight", 2, 2, 2, 2, 2), BadRequest, "the tensor model.norm.weight has the shape"),
    ("llama", changed("model.norm.weight", np.zeros(64, np.int64)), Unsupported, "the tensor model.norm.weight is stored as I64"),
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
    ("llama", as_part(text("model.safetensors.index.json", '{"weight_map": {"x": "m"}}')), BadRequest, "model.safetensors.index.json"),
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
    # What config.json claims is believed where the weights bear it out, and nothing as long as it is made before.
    ("llama", rewrite("config.json", num_hidden_layers=2_000_000_000), BadRequest, "config.json says 2000000000 layers"),
    ("bert", rewrite("config.json", num_hidden_layers=2_000_000_000), BadRequest, "config.json says 2000000000 layers"),
    ("llama", rewrite("config.json", head_dim=2_000_000_000), BadRequest, "the tensor model.layers.0.self_attn.q_proj.weight has"),
    ("llama", rewrite("config.json", head_dim=2_000_000_000, architectures=["Qwen2ForCausalLM"]), Unsupported, "4 heads of 2000000000"),
    ("llama", rewrite("config.json", head_dim=15, architectures=["Qwen2ForCausalLM"]), BadRequest, "config.json says heads of 15 numbers"),
    ("llama", rewrite("config.json", num_key_value_heads=3), BadRequest, "config.json says 4 heads and 3 for keys"),
    ("llama", rewrite("config.json", num_key_value_heads=4), BadRequest, "the tensor model.layers.0.self_attn.k_proj.weight has the shape"),
    ("llama", rewrite("config.json", intermediate_size=999), BadRequest, "the tensor model.layers.0.mlp.gate_proj.weight has the shape"),
    ("llama", shaped("model.norm.weight", 63), BadRequest, "the tensor model.norm.weight has the shape [63], and config.json"),
    ("llama", shaped("model.layers.0.self_attn.q_proj.weight", 32, 64), BadRequest, "the tensor model.layers.0.self_attn.q_proj"),
    ("llama", shaped("model.layers.0.mlp.up_proj.weight", 0, 64), BadRequest, "the tensor model.layers.0.mlp.up_proj.weight has the shape"),
    ("llama", both(BIASED, shaped("model.layers.0.mlp.up_proj.bias", 64)), BadRequest, "the tensor model.layers.0.mlp.up_proj.bias has"),
    ("llama", shaped("lm_head.weight", 9, 64), BadRequest, "the tensor lm_head.weight has the shape [9, 64]"),
    ("llama", shaped("model.norm.bias", 64), Unsupported, "there is no place for the tensor model.norm.bias"),
    ("llama", shaped("lm_head.bias", 64), Unsupported, "there is no place for the tensor lm_head.bias"),
    ("llama", shaped(f"model.layers.{'9' * 5000}.x.weight", 64), BadRequest, "the tensor model.layers.999"),
    ("llama", shaped("model.layers.².x.weight", 64), BadRequest, "the tensor model.layers.²"),
    ("bert", shaped("embeddings.position_embeddings.weight", 63, 32), BadRequest, "the tensor embeddings.position_embeddings.weight has"),
    ("bert", reweigh(lambda w: w.pop("embeddings.LayerNorm.bias")), BadRequest, "the weights lack 1 tensors of this model (token_embd"),
    ("bert", shaped("bert.embeddings.LayerNorm.bias", 32), BadRequest, "the weights hold the tensor bert.embeddings.LayerNorm.bias twice"),
    ("bert", rewrite("config.json", num_attention_heads=5), BadRequest, "config.json says 5 heads"),
    # Two tokens with one text end the engine each time it loads them.
    ("llama", edit("added_tokens", 1, "id", to=382), BadRequest, "the tokens 1 and 382 have the same text ('<|end|>')"),
    ("llama", edit("model", "vocab", "[PAD383]", to=382), BadRequest, "the tokens 382 and 383"),
    ("llama", both(edit("model", "vocab", "\ud800", to=381), edit("model", "vocab", "\ud801", to=382)), BadRequest, "the tokens "),
    ("bert", text("vocab.txt", "[UNK]\n[CLS]\n[SEP]\na\nb\na\n"), BadRequest, "the tokens 3 and 5 have the same text ('▁a')"),
    ("bert", text("vocab.txt", "[UNK]\n[CLS]\n[SEP]\na\n##▁a\n"), BadRequest, "the tokens 3 and 4 have the same text ('▁a')"),
    # A tokenizer that does to a text what the engine does not.
    ("bert", wordpiece(None), Unsupported, "this tokenizer splits text in another way than a BERT's"),
    ("bert", wordpiece(letters(), {"type": "Whitespace"}), Unsupported, "this tokenizer splits text in another way than a BERT's"),
    ("bert", wordpiece(letters(handle_chinese_chars=False)), Unsupported, "this tokenizer keeps control characters or Chinese words"),
    ("bert", text("tokenizer_config.json", '{"tokenize_chinese_chars": false}'), Unsupported, "this tokenizer keeps control characters"),
    ("bert", text("tokenizer_config.json", '{"do_lower_case": "no"}'), Unsupported, "the tokenizer's do_lower_case"),
    ("llama", split_by(behavior="Removed"), Unsupported, "this tokenizer splits text"),
    ("llama", split_by({"type": "Whitespace"}), Unsupported, "this tokenizer splits text"),
    ("llama", split_by(invert=True), Unsupported, "this tokenizer splits text"),
    ("llama", split_by(pattern={"String": LLAMA3}), Unsupported, "this tokenizer splits text"),
    ("llama", split_by(pattern={"Regex": [LLAMA3]}), Unsupported, "this tokenizer splits text"),
    ("llama", steps({"type": "Whitespace"}), Unsupported, "this tokenizer splits text"),
    ("llama", steps(add_prefix_space=True), Unsupported, "this tokenizer splits text"),
    ("llama", steps({"type": "Digits", "individual_digits": False}), Unsupported, "this tokenizer splits text"),
    ("llama", steps({"type": "Digits"}), Unsupported, "this tokenizer splits text"),
    ("llama", edit("normalizer", to={"type": "Lowercase"}), Unsupported, "this tokenizer splits text"),
    ("llama", edit("normalizer", to={"normalizers": [{"type": "NFC"}, {"type": "Strip"}]}), Unsupported, "this tokenizer splits text"),
    ("pieces", edit("normalizer", "normalizers", 0, to={"type": "Lowercase"}), Unsupported, "this tokenizer is neither byte-level"),
    ("pieces", edit("normalizer", "normalizers", 1, "content", to="_"), Unsupported, "this tokenizer is neither byte-level"),
    ("llama", edit("pre_tokenizer", to={"type": "Sequence", "pretokenizers": 5}), Unsupported, "this tokenizer is neither byte-level"),
    # Places in a text that are stretched as the engine does not.
    ("llama", stretched(beta_fast=8), Unsupported, "rope_scaling whose beta_fast is not 32"),
    ("llama", stretched(extrapolation_factor=0.5), Unsupported, "rope_scaling whose extrapolation_factor is not 1"),
    ("llama", stretched(mscale_all_dim=1.0), Unsupported, "rope_scaling of the kind yarn with mscale_all_dim"),
    ("llama", PARTIAL, Unsupported, "rope_scaling of the kind default with partial"),
    # Numbers that no float of 32 bits holds.
    ("llama", rewrite("config.json", rms_norm_eps=1e300), BadRequest, "config.json says rms_norm_eps"),
    ("llama", rewrite("config.json", rope_theta=10**400), BadRequest, "config.json says rope_theta"),
    ("llama", rewrite("config.json", rope_theta=1e39), BadRequest, "config.json says rope_theta"),
    ("bert", rewrite("config.json", layer_norm_eps=1e-300), BadRequest, "config.json says layer_norm_eps"),
    # An index that says otherwise than the parts.
    ("llama", index(**{"model.norm.weight": "../../etc/passwd"}), BadRequest, "model.safetensors.index.json names the file ../../etc"),
    ("llama", index(**{"model.norm.weight": None}), BadRequest, f"{PART} holds the tensor model.norm.weight, and model"),
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
    assert str(caught.value).startswith(begins)
    assert str(folder) not in str(caught.value)
    assert not out.getvalue()


@pytest.mark.parametrize(
    ("number", "says"), [(1e6, "above 65504, which F16"), (math.inf, "infinite or none"), (math.nan, "infinite or none")]
)
def test_numbers_that_f16_cannot_hold_are_refused(bert: Path, number: float, says: str) -> None:
    weights = read_safetensors(bert / "model.safetensors")
    embedding = weights["embeddings.word_embeddings.weight"] = weights["embeddings.word_embeddings.weight"].copy()
    embedding[3, 4] = number
    write_safetensors(bert / "model.safetensors", weights)
    with pytest.raises(Unsupported, match=rf"token_embd.weight has numbers (that are )?{says}"):
        list(convert(bert, io.BytesIO()))


@pytest.mark.slow
def test_what_is_read_whole_is_bounded(llama: Path) -> None:
    """Sizes of files and of headers, and how many merges: before any of it is taken apart."""
    for name, bytes_ in (("config.json", (16 << 20) + 1), ("tokenizer.json", (48 << 20) + 1)):
        kept = (llama / name).read_bytes()
        os.truncate(llama / name, bytes_)
        with pytest.raises(BadRequest, match=rf"^{name} is larger than such a file may be"):
            made_of(llama)
        (llama / name).write_bytes(kept)
    said = json.loads((llama / "tokenizer.json").read_text())
    said["model"]["merges"] = ["a b"] * ((1 << 21) + 1)
    (llama / "tokenizer.json").write_text(json.dumps(said))
    with pytest.raises(BadRequest, match=r"^tokenizer.json has 2097153 merges"):
        made_of(llama)
    (llama / "model.safetensors").unlink()
    for name in ("a", "b"):
        header = b"{" + b" " * (9 << 20) + b"}"
        (llama / f"{name}.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(BadRequest, match=r"^the headers of these files have more than 16777216 bytes"):
        made_of(llama)


def test_an_index_beside_a_whole_file_was_left_there(llama: Path) -> None:
    want = made_of(llama)
    (llama / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-00001-of-00009.safetensors"}}')
    assert made_of(llama) == want


def test_a_long_name_is_cut_where_it_is_quoted(llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    for name in ("a", "b"):
        write_safetensors(llama / f"{name}.safetensors", {"x" * 100_000: np.ones(4, np.float32)})
    with pytest.raises(BadRequest, match=r"^b.safetensors and a.safetensors both hold the tensor x{80}…;"):
        made_of(llama)


@pytest.mark.slow
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
            assert "\n" not in str(error)
            assert len(str(error)) < 400
        path.write_bytes(kept)
    assert len(said) > 2
