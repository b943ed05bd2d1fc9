"""The Llama family (Llama, Mistral, SmolLM2, Qwen2): config.json and the tensors' names into the engine's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ndani.convert.container import Target, Value
from ndani.convert.numbers import fraction, whole
from ndani.convert.places import Layout, Place, put, rows_of
from ndani.convert.safetensors import Stored
from ndani.convert.vocabulary import read_bpe
from ndani.errors import BadRequest, Unsupported

#: The engine's architecture for each of theirs.
ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}

#: What is read of rope_scaling, by its kind. More than that would change the answers, so it is refused.
_ALWAYS_SAID = ("rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings")
_SCALED = {
    "linear": (),
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "extrapolation_factor", "finetuned"),
    "llama3": ("low_freq_factor", "high_freq_factor"),
}
_YARN_FIXED = {"beta_fast": 32.0, "beta_slow": 1.0, "extrapolation_factor": 1.0}


def lay_out(sources: Mapping[str, int], config: dict[str, Any], tensors: Mapping[str, Stored]) -> tuple[dict[str, Value], list[Target]]:
    """The keys and the tensors of the file to be. Raises BadRequest, Unsupported."""
    arch = ARCHITECTURES[config["architectures"][0]]
    if config.get("hidden_act", "silu") != "silu":
        raise Unsupported(f"a model whose hidden_act is {str(config['hidden_act'])[:30]} cannot be converted; silu can")
    if config.get("quantization_config"):
        raise Unsupported("these weights are quantised already; send those that they were made of")
    blocks, heads, width, inner = (
        whole(config, name) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size")
    )
    kv_heads = whole(config, "num_key_value_heads", heads)
    size = whole(config, "head_dim", max(width // heads, 1))
    _require_heads(arch, heads, kv_heads, size, width)
    keys: dict[str, Value] = {
        "general.architecture": arch,
        "general.type": "model",
        f"{arch}.block_count": blocks,
        f"{arch}.context_length": whole(config, "max_position_embeddings"),
        f"{arch}.embedding_length": width,
        f"{arch}.feed_forward_length": inner,
        f"{arch}.attention.head_count": heads,
        f"{arch}.attention.head_count_kv": kv_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": fraction(config, "rms_norm_eps", 1e-6),
        f"{arch}.rope.dimension_count": size,
    }
    if size * heads != width:
        keys |= {f"{arch}.attention.key_length": size, f"{arch}.attention.value_length": size}
    tied = bool(config.get("tie_word_embeddings"))

    def rename(full: str) -> str | None:
        stem = full.rpartition(".")[0]
        # Worked out by the engine; the same as the embedding.
        return None if "rotary_emb" in stem or (tied and stem == "lm_head") else full

    rows = rows_of(tensors, rename, "model.embed_tokens.weight")
    targets = put(tensors, _layout(arch, blocks, width, inner, rows, heads * size, kv_heads * size), rename)
    if arch == "llama":
        order = _order(size)  # only now: the weights have as many numbers as config.json says
        turned = ("attn_q", "attn_k")
        targets = [replace(one, order=order) if one.name.split(".")[-2] in turned else one for one in targets]
    rope, factors = _rope(arch, config, size)
    vocabulary = read_bpe(sources)
    vocabulary.fit(rows)
    if factors is not None:
        targets.insert(0, Target("rope_freqs.weight", "F32", factors))
    return keys | rope | {f"{arch}.vocab_size": rows} | vocabulary.keys(), targets


def _layout(arch: str, blocks: int, width: int, inner: int, rows: int, queries: int, keys: int) -> Layout:
    """`queries` and `keys` are how many numbers all heads have together; their biases the engine knows in both, others not in Qwen2."""
    other = None if arch == "llama" else False
    block = {
        "input_layernorm": Place("attn_norm", (width,)),
        "self_attn.q_proj": Place("attn_q", (queries, width), bias=None),
        "self_attn.k_proj": Place("attn_k", (keys, width), bias=None),
        "self_attn.v_proj": Place("attn_v", (keys, width), bias=None),
        "self_attn.o_proj": Place("attn_output", (width, queries), bias=other),
        "post_attention_layernorm": Place("ffn_norm", (width,)),
        "mlp.gate_proj": Place("ffn_gate", (inner, width), bias=other),
        "mlp.up_proj": Place("ffn_up", (inner, width), bias=other),
        "mlp.down_proj": Place("ffn_down", (width, inner), bias=other),
    }
    whole_model = {
        "model.embed_tokens": Place("token_embd", (rows, width)),
        "model.norm": Place("output_norm", (width,)),
        "lm_head": Place("output", (rows, width)),
    }
    return Layout(blocks, "model.layers.", whole_model, block, frozenset({"lm_head"}))


def _require_heads(arch: str, heads: int, kv_heads: int, size: int, width: int) -> None:
    if size % 2:
        raise BadRequest(f"config.json says heads of {size} numbers ({heads} of them), and an even number is needed; send the model's own")
    if heads % kv_heads:
        raise BadRequest(f"config.json says {heads} heads and {kv_heads} for keys, which cannot be shared out; send the model's own")
    if arch != "llama" and size * heads != width:
        raise Unsupported(f"{heads} heads of {size} numbers beside a width of {width} are not run by the engine in a model of this kind")


def _order(size: int) -> tuple[int, ...]:
    """The engine turns neighbouring pairs of a head's numbers, these files hold the two halves of them: pairs side by side.

    The same for every head, so one head's order is enough.
    """
    return tuple(half * (size // 2) + pair for pair in range(size // 2) for half in range(2))


def _rope(arch: str, config: dict[str, Any], size: int) -> tuple[dict[str, Value], NDArray[np.float32] | None]:
    """The keys for how places in the text are told apart, and Llama 3's factors where it stretches them."""
    said = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(said, dict):
        raise BadRequest("config.json says rope_scaling, and it is not an object")
    base = fraction(said if "rope_theta" in said else config, "rope_theta", 10000.0)
    keys: dict[str, Value] = {f"{arch}.rope.freq_base": base}
    kind = said.get("rope_type", said.get("type", "default"))
    if kind not in ("default", *_SCALED):
        raise Unsupported(f"rope_scaling of the kind {str(kind)[:30]} cannot be converted; linear, yarn and llama3 can")
    known = (*_ALWAYS_SAID, *_SCALED.get(kind, ()))
    if unknown := next((name for name in said if said[name] is not None and name not in known), None):
        raise Unsupported(f"rope_scaling of the kind {kind} with {unknown[:30]} cannot be converted; use a GGUF file of this model")
    if kind == "default":
        return keys, None
    factor = fraction(said, "factor")
    if kind == "llama3":
        return keys, _factors(said, base, factor, size)
    keys |= {f"{arch}.rope.scaling.type": kind, f"{arch}.rope.scaling.factor": factor}
    return keys | (_yarn(arch, said, factor) if kind == "yarn" else {}), None


def _yarn(arch: str, said: dict[str, Any], factor: float) -> dict[str, Value]:
    """What more is said of YaRN's way of stretching. The engine takes one of its four numbers from a file of these families."""
    for name, only in _YARN_FIXED.items():
        if fraction(said, name, only) != only:
            raise Unsupported(f"rope_scaling whose {name} is not {only:g} is not run by the engine in a model of this kind")
    keys: dict[str, Value] = {f"{arch}.rope.scaling.original_context_length": whole(said, "original_max_position_embeddings")}
    if said.get("attention_factor") is not None:
        own = 0.1 * math.log(max(factor, 1.0)) + 1  # which the engine works out, and multiplies by what it is told
        keys[f"{arch}.rope.scaling.attn_factor"] = fraction(said, "attention_factor") / own
    return keys


def _factors(said: dict[str, Any], base: float, factor: float, size: int) -> NDArray[np.float32]:
    """By how much each wave is stretched: short ones not at all, long ones by `factor`, those between by degrees."""
    low, high = fraction(said, "low_freq_factor", 1.0), fraction(said, "high_freq_factor", 4.0)
    trained = whole(said, "original_max_position_embeddings", 8192)
    if high <= low:
        raise BadRequest("config.json says rope_scaling whose high_freq_factor is not above its low_freq_factor")
    made = []
    for number in range(0, size, 2):
        wave = 2 * math.pi * base ** (number / size)
        if wave < trained / high:
            made.append(1.0)
        elif wave > trained / low:
            made.append(factor)
        else:
            smooth = (trained / wave - low) / (high - low)
            made.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(made, np.float32)
