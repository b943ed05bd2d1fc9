"""Every key of a checkpoint's files that its publishers' library reads: the result does as it says, or it is refused. Never passed over.

What null, absence and a wrong type mean is held here, key by key; that the engine then answers as the key says it should is
`test_made_configs`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import made_of
from ndani.errors import BadRequest, Unsupported
from ndani.store.gguf import read_header
from spoils import Spoil, both, edit, reweigh, shaped, text

MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
QWEN = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
FULL, SLIDING = "full_attention", "sliding_attention"


def keys(file: str = "config.json", **more: Any) -> Spoil:
    """Set keys of a JSON file, which may not be there yet; `...` takes one out, and None is written as null."""

    def spoil(folder: Path) -> None:
        place = folder / file
        found = (json.loads(place.read_text()) if place.exists() else {}) | more
        place.write_text(json.dumps({key: item for key, item in found.items() if item is not ...}))

    return spoil


def biased(*parts: str) -> Spoil:
    """A bias in both blocks for each of these parts of one."""
    sizes = {"k_proj": 32, "v_proj": 32, "gate_proj": 128, "up_proj": 128}
    names = [f"model.layers.{block}.{part}.bias" for block in range(2) for part in parts]
    return reweigh(lambda w: w.update({name: np.ones(sizes.get(name.split(".")[-2], 64), np.float32) for name in names}))


def without(name: str) -> Spoil:
    return reweigh(lambda w: w.pop(name))


QWEN_BIASES = biased("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def qwen(**more: Any) -> Spoil:
    return both(keys(**QWEN, **more), QWEN_BIASES)


def windowed(**more: Any) -> Spoil:
    return qwen(use_sliding_window=True, sliding_window=16, **more)


LINEAR = {"rope_type": "linear", "factor": 2.0}

#: A spoil, and a key of the result with its value: None where the key is not to be there.
HONOURED: list[tuple[str, Spoil, str, Any]] = [
    # Windows. The engine runs none in these kinds, so the context ends where the first would.
    ("llama", keys(**MISTRAL, max_position_embeddings=8192), "llama.context_length", 4096),
    ("llama", keys(**MISTRAL, max_position_embeddings=8192, sliding_window=None), "llama.context_length", 8192),
    ("llama", keys(**MISTRAL, max_position_embeddings=8192, sliding_window=1024), "llama.context_length", 1024),
    ("llama", keys(**MISTRAL, max_position_embeddings=2048, sliding_window=4096), "llama.context_length", 2048),
    ("llama", keys(sliding_window=16), "llama.context_length", 256),
    ("llama", keys(sliding_window="none of its own"), "llama.context_length", 256),
    ("llama", qwen(sliding_window=16, max_window_layers=0), "qwen2.context_length", 256),
    ("llama", qwen(use_sliding_window=False, sliding_window=16, max_window_layers=0), "qwen2.context_length", 256),
    ("llama", qwen(use_sliding_window=None, sliding_window=16, max_window_layers=0), "qwen2.context_length", 256),
    ("llama", windowed(max_window_layers=0), "qwen2.context_length", 16),
    ("llama", windowed(max_window_layers=1), "qwen2.context_length", 16),
    ("llama", windowed(max_window_layers=2), "qwen2.context_length", 256),
    ("llama", windowed(), "qwen2.context_length", 256),
    ("llama", windowed(layer_types=[FULL, SLIDING]), "qwen2.context_length", 16),
    ("llama", windowed(max_window_layers=0, layer_types=[FULL, FULL]), "qwen2.context_length", 256),
    ("llama", qwen(use_sliding_window=True, sliding_window=None, max_window_layers=0), "qwen2.context_length", 256),
    ("llama", qwen(use_sliding_window=True, max_window_layers=0, max_position_embeddings=8192), "qwen2.context_length", 4096),
    ("llama", keys(layer_types=[FULL, FULL]), "llama.context_length", 256),
    # Places in a text.
    ("llama", keys(rope_theta=None), "llama.rope.freq_base", 10000),
    ("llama", keys(rope_theta=...), "llama.rope.freq_base", 10000),
    ("llama", keys(rope_theta=5e5), "llama.rope.freq_base", 5e5),
    ("llama", keys(rope_theta=5e5, rope_parameters=None), "llama.rope.freq_base", 5e5),
    ("llama", keys(rope_theta=5e5, rope_parameters={"rope_theta": None}), "llama.rope.freq_base", 5e5),
    ("llama", keys(rope_theta=5e5, rope_parameters={"rope_theta": 1e6}), "llama.rope.freq_base", 1e6),
    ("llama", keys(rope_theta=5e5, rope_scaling={"rope_theta": None} | LINEAR), "llama.rope.freq_base", 5e5),
    ("llama", keys(rope_scaling=None), "llama.rope.scaling.type", None),
    ("llama", keys(rope_scaling={}), "llama.rope.scaling.type", None),
    ("llama", keys(rope_scaling={"rope_type": None, "type": "linear", "factor": 2}), "llama.rope.scaling.type", "linear"),
    ("llama", keys(rope_scaling={"rope_type": "linear", "type": "linear", "factor": 2}), "llama.rope.scaling.type", "linear"),
    ("llama", keys(rope_parameters=LINEAR | {"rope_theta": 1e6}, rope_scaling=LINEAR), "llama.rope.scaling.factor", 2),
    ("llama", keys(rope_parameters=LINEAR | {"rope_theta": 1e6}, rope_scaling=LINEAR), "llama.rope.freq_base", 1e6),
    ("llama", keys(rope_parameters={"rope_type": "default", "partial_rotary_factor": 1.0}), "llama.rope.scaling.type", None),
    ("llama", keys(partial_rotary_factor=1.0), "llama.rope.dimension_count", 16),
    ("llama", keys(partial_rotary_factor=None), "llama.rope.dimension_count", 16),
    # Sizes.
    ("llama", keys(head_dim=None), "llama.rope.dimension_count", 16),
    ("llama", keys(head_dim=16), "llama.attention.key_length", None),
    ("llama", keys(rms_norm_eps=None), "llama.attention.layer_norm_rms_epsilon", 1e-6),
    ("llama", keys(rms_norm_eps=...), "llama.attention.layer_norm_rms_epsilon", 1e-6),
    ("llama", keys(vocab_size=None), "llama.vocab_size", 385),
    # What is the same either way.
    ("llama", keys(torch_dtype="bfloat16", dtype=None, pretraining_tp=4, use_cache=False), "general.file_type", 1),
    ("llama", keys(hidden_act=None, model_type=None), "general.architecture", "llama"),
    ("llama", keys(hidden_act=..., model_type="llama"), "general.architecture", "llama"),
    ("llama", keys(quantization_config=None, tie_word_embeddings=None), "general.file_type", 1),
    ("llama", keys(attention_bias=None, mlp_bias=False), "general.file_type", 1),
    ("bert", keys(model_type="bert", hidden_act=None, position_embedding_type=None, is_decoder=False), "general.architecture", "bert"),
    ("bert", keys(layer_norm_eps=None), "bert.attention.layer_norm_epsilon", 1e-12),
    ("bert", keys(type_vocab_size=None), "tokenizer.ggml.token_type_count", 2),
    # The tokenizer's files.
    ("llama", keys("tokenizer_config.json", add_bos_token=None), "tokenizer.ggml.add_bos_token", False),
    ("llama", keys("tokenizer_config.json", add_bos_token=True), "tokenizer.ggml.add_bos_token", True),
    ("pieces", both(keys(bos_token_id=1), keys("tokenizer_config.json", add_bos_token=None)), "tokenizer.ggml.add_bos_token", True),
    ("pieces", both(keys(bos_token_id=1), keys("tokenizer_config.json", add_bos_token=False)), "tokenizer.ggml.add_bos_token", False),
    ("llama", keys("tokenizer_config.json", add_prefix_space=None), "tokenizer.ggml.add_space_prefix", None),
    ("llama", keys("tokenizer_config.json", chat_template=None), "tokenizer.chat_template", None),
    ("llama", edit("model", "dropout", to=None), "tokenizer.ggml.pre", "gpt-2"),
    ("llama", edit("model", "end_of_word_suffix", to=""), "tokenizer.ggml.pre", "gpt-2"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "spoil", "key", "value"), HONOURED, ids=[f"{n}-{row[2]}" for n, row in enumerate(HONOURED)])
def test_what_is_said_is_done(kind: str, spoil: Spoil, key: str, value: Any, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder: Path = request.getfixturevalue(kind)
    spoil(folder)
    (tmp_path / "made.gguf").write_bytes(made_of(folder))
    assert read_header(tmp_path / "made.gguf").metadata.get(key) == (pytest.approx(value) if isinstance(value, float) else value)


NO_PLACE = "there is no place for the tensor model.layers.0."

REFUSED: list[tuple[str, Spoil, type[BadRequest], str]] = [
    # The output is the embedding only where that is said: none of these families has it so by itself.
    ("llama", without("lm_head.weight"), BadRequest, "the weights lack the output (lm_head.weight)"),
    ("llama", both(keys(tie_word_embeddings=None), without("lm_head.weight")), BadRequest, "the weights lack the output (lm_head.weight)"),
    ("llama", both(keys(tie_word_embeddings=False), without("lm_head.weight")), BadRequest, "the weights lack the output (lm_head.weight)"),
    ("llama", both(keys(**MISTRAL), without("lm_head.weight")), BadRequest, "the weights lack the output (lm_head.weight)"),
    ("llama", both(qwen(), without("lm_head.weight")), BadRequest, "the weights lack the output (lm_head.weight)"),
    ("llama", keys(tie_word_embeddings="true"), BadRequest, "config.json says tie_word_embeddings, and it is neither true nor false"),
    ("llama", keys(tie_word_embeddings=1), BadRequest, "config.json says tie_word_embeddings, and it is neither true nor false"),
    # Windows.
    ("llama", keys(**MISTRAL, sliding_window="4096"), BadRequest, "config.json says sliding_window, and it is not a whole number"),
    ("llama", keys(**MISTRAL, sliding_window=0), BadRequest, "config.json says sliding_window, and it is not a whole number"),
    ("llama", qwen(use_sliding_window=True, sliding_window=-1), BadRequest, "config.json says sliding_window, and it is not a whole"),
    ("llama", qwen(use_sliding_window="yes"), BadRequest, "config.json says use_sliding_window, and it is neither true nor false"),
    ("llama", windowed(max_window_layers="1"), BadRequest, "config.json says max_window_layers, and it is not a whole number"),
    ("llama", windowed(max_window_layers=-1), BadRequest, "config.json says max_window_layers, and it is not a whole number above -1"),
    ("llama", keys(layer_types=[FULL, "linear_attention"]), Unsupported, "layers of the kind linear_attention cannot be converted"),
    ("llama", keys(layer_types=[FULL, None]), Unsupported, "layers of the kind None cannot be converted"),
    ("llama", keys(layer_types=[FULL]), BadRequest, "config.json says layer_types, and it is not a list of 2 kinds"),
    ("llama", keys(layer_types=FULL), BadRequest, "config.json says layer_types, and it is not a list of 2 kinds"),
    ("llama", keys(layer_types=[FULL, SLIDING], sliding_window=16), BadRequest, "config.json says layer_types with windows"),
    ("llama", qwen(layer_types=[FULL, SLIDING], sliding_window=16), BadRequest, "config.json says layer_types with windows"),
    ("llama", keys(**MISTRAL, layer_types=[FULL, SLIDING], sliding_window=None), BadRequest, "config.json says layer_types with windows"),
    # Places in a text.
    ("llama", keys(rope_scaling=5), BadRequest, "config.json says rope_scaling, and it is not an object"),
    ("llama", keys(rope_scaling=False), BadRequest, "config.json says rope_scaling, and it is not an object"),
    ("llama", keys(rope_scaling=[]), BadRequest, "config.json says rope_scaling, and it is not an object"),
    ("llama", keys(rope_parameters="linear"), BadRequest, "config.json says rope_parameters, and it is not an object"),
    ("llama", keys(rope_scaling={"factor": 2.0}), BadRequest, "config.json says rope_scaling, and not of which kind"),
    ("llama", keys(rope_scaling={"type": None, "factor": 2.0}), BadRequest, "config.json says rope_scaling, and not of which kind"),
    ("llama", keys(rope_scaling={"type": 5, "factor": 2.0}), BadRequest, "config.json says rope_scaling of no kind, or of two"),
    ("llama", keys(rope_scaling={"type": "yarn"} | LINEAR), BadRequest, "config.json says rope_scaling of no kind, or of two"),
    ("llama", keys(rope_scaling={"rope_type": "default", "factor": 2.0}), Unsupported, "rope_scaling of the kind default with factor"),
    ("llama", keys(rope_scaling={"rope_type": "linear"}), BadRequest, "config.json does not say factor"),
    ("llama", keys(rope_scaling={"rope_type": "linear", "factor": None}), BadRequest, "config.json does not say factor"),
    ("llama", keys(rope_scaling={"rope_type": "mrope", "mrope_section": [1]}), Unsupported, "rope_scaling of the kind mrope"),
    ("llama", keys(rope_scaling={"rope_type": "longrope", "short_factor": []}), Unsupported, "rope_scaling of the kind longrope"),
    ("llama", keys(rope_parameters={FULL: {"rope_theta": 1e4}}), BadRequest, "config.json says rope_scaling, and not of which kind"),
    ("llama", keys(rope_parameters=LINEAR, rope_scaling=LINEAR | {"factor": 4}), BadRequest, "config.json says both rope_parameters and"),
    ("llama", keys(rope_theta="10000"), BadRequest, "config.json says rope_theta"),
    ("llama", keys(rope_theta=0), BadRequest, "config.json says rope_theta"),
    ("llama", keys(rope_parameters={"rope_theta": True}), BadRequest, "config.json says rope_theta"),
    ("llama", keys(partial_rotary_factor=0.5), Unsupported, "a model whose partial_rotary_factor is 0.5"),
    ("llama", keys(partial_rotary_factor="half"), BadRequest, "config.json says partial_rotary_factor"),
    # Biases are where config.json says, and nowhere else.
    ("llama", biased("self_attn.q_proj"), Unsupported, NO_PLACE),
    ("llama", keys(attention_bias=True), BadRequest, "the weights lack 8 tensors of this model (blk.0.attn_q.bias"),
    ("llama", keys(mlp_bias=True), BadRequest, "the weights lack 6 tensors of this model (blk.0.ffn_gate.bias"),
    ("llama", both(keys(attention_bias=True), biased(*ATTENTION, *MLP)), Unsupported, NO_PLACE),
    ("llama", both(keys(**MISTRAL, attention_bias=True), biased(*ATTENTION)), Unsupported, NO_PLACE),
    ("llama", both(qwen(), biased("self_attn.o_proj")), Unsupported, NO_PLACE),
    ("llama", keys(**QWEN), BadRequest, "the weights lack 6 tensors of this model (blk.0.attn_q.bias"),
    ("llama", keys(attention_bias="false"), BadRequest, "config.json says attention_bias, and it is neither true nor false"),
    ("llama", keys(mlp_bias=0), BadRequest, "config.json says mlp_bias, and it is neither true nor false"),
    # Sizes, where the families differ in what counts for one that is not said.
    ("llama", keys(head_dim="16"), BadRequest, "config.json says head_dim"),
    ("llama", keys(head_dim=32), BadRequest, "the tensor model.layers.0.self_attn.q_proj.weight has the shape"),
    ("llama", keys(num_key_value_heads=...), BadRequest, "the tensor model.layers.0.self_attn.k_proj.weight has the shape [32, 64]"),
    ("llama", keys(num_key_value_heads=None), BadRequest, "the tensor model.layers.0.self_attn.k_proj.weight has the shape [32, 64]"),
    ("llama", keys(**MISTRAL, num_key_value_heads=...), BadRequest, "config.json says 4 heads and 8 for keys"),
    ("llama", qwen(num_key_value_heads=...), BadRequest, "config.json says 4 heads and 32 for keys"),
    ("llama", keys(max_position_embeddings=None), BadRequest, "config.json does not say max_position_embeddings"),
    ("llama", keys(vocab_size=384), BadRequest, "config.json says vocab_size 384, and the weights have 385 rows"),
    ("llama", keys(vocab_size="385"), BadRequest, "config.json says vocab_size"),
    ("bert", keys(vocab_size=12), BadRequest, "config.json says vocab_size 12, and the weights have 11 rows"),
    # Kinds.
    ("llama", keys(hidden_act="gelu"), Unsupported, "a model whose hidden_act is gelu"),
    ("llama", keys(hidden_act=["silu"]), Unsupported, "a model whose hidden_act is ['silu']"),
    ("llama", keys(model_type="mistral"), Unsupported, "a LlamaForCausalLM whose model_type is mistral"),
    ("bert", keys(model_type="nomic_bert"), Unsupported, "a BERT whose model_type is nomic_bert"),
    ("bert", keys(is_decoder=True), Unsupported, "a BERT that is a decoder"),
    ("bert", keys(position_embedding_type="relative_key"), Unsupported, "a BERT whose position_embedding_type is relative_key"),
    # Weights that are quantised already, however that is said.
    ("llama", keys(quantization_config={"quant_method": "gptq", "bits": 4}), Unsupported, "these weights are quantised already (gptq)"),
    ("llama", keys(quantization_config={"quant_method": "awq"}), Unsupported, "these weights are quantised already (awq)"),
    ("llama", keys(quantization_config={"quant_method": 5}), Unsupported, "these weights are quantised already;"),
    ("llama", keys(quantization={"group_size": 64, "bits": 4}), Unsupported, "these weights are quantised already;"),
    ("llama", keys(compression_config={"quant_method": "compressed-tensors"}), Unsupported, "these weights are quantised already (compr"),
    ("bert", keys(quantization_config={"quant_method": "bitsandbytes"}), Unsupported, "these weights are quantised already (bitsandbytes)"),
    ("llama", shaped("model.layers.0.mlp.up_proj.qweight", 2, 2), Unsupported, "these weights are quantised already (mo"),
    ("llama", shaped("model.layers.0.mlp.up_proj.weight_scale_inv", 1, 1), Unsupported, "these weights are quantised already (mo"),
    # The tokenizer's files.
    ("llama", keys("tokenizer_config.json", add_bos_token="yes"), BadRequest, "tokenizer_config.json says add_bos_token, and it"),
    ("llama", keys("tokenizer_config.json", add_eos_token=1), BadRequest, "tokenizer_config.json says add_eos_token, and it"),
    ("llama", keys("tokenizer_config.json", add_prefix_space=0), BadRequest, "tokenizer_config.json says add_prefix_space, and it"),
    ("llama", keys("tokenizer_config.json", chat_template=5), BadRequest, "tokenizer_config.json says chat_template, and it is no text"),
    ("llama", edit("model", "dropout", to=0.1), Unsupported, "this tokenizer's dropout is not known to the engine"),
    ("llama", edit("model", "continuing_subword_prefix", to="##"), Unsupported, "this tokenizer's continuing_subword_prefix"),
    ("llama", edit("model", "end_of_word_suffix", to="</w>"), Unsupported, "this tokenizer's end_of_word_suffix"),
    ("llama", edit("model", "ignore_merges", to=True), Unsupported, "this tokenizer's ignore_merges"),
    ("pieces", edit("model", "ignore_merges", to=True), Unsupported, "this tokenizer's ignore_merges"),
    ("bert", text("vocab.txt", "\ufeff[UNK]\n[CLS]\n[SEP]\na\na\n"), BadRequest, "the tokens 3 and 4 have the same text"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "spoil", "error", "begins"), REFUSED, ids=[f"{n}-{row[3][:40]}" for n, row in enumerate(REFUSED)])
def test_what_cannot_be_done_is_refused(
    kind: str, spoil: Spoil, error: type[BadRequest], begins: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(kind)
    spoil(folder)
    with pytest.raises(BadRequest) as caught:
        made_of(folder)
    assert type(caught.value) is error
    assert str(caught.value).startswith(begins)
    assert "\n" not in str(caught.value)


def test_a_tied_output_is_left_out_and_an_untied_one_is_not(llama: Path, tmp_path: Path) -> None:
    for tied in (True, False):
        keys(tie_word_embeddings=tied)(llama)
        (tmp_path / "made.gguf").write_bytes(made_of(llama))
        assert ("output.weight" in {tensor.name for tensor in read_header(tmp_path / "made.gguf").tensors}) is not tied


def test_what_a_text_is_called_makes_no_other_file(llama: Path) -> None:
    """A byte-order mark and the ends of lines are not content."""
    (llama / "chat_template.jinja").write_bytes(b"{{ messages }}\n")
    want = made_of(llama)
    (llama / "chat_template.jinja").write_bytes(b"\xef\xbb\xbf{{ messages }}\r\n")
    for name in ("config.json", "tokenizer.json"):
        (llama / name).write_bytes(b"\xef\xbb\xbf" + (llama / name).read_bytes())
    assert made_of(llama) == want
