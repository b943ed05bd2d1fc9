"""The Llama family (Llama, Mistral, SmolLM2, Qwen2): config.json and the tensors' names into the engine's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ndani.convert.container import Target, Value
from ndani.convert.numbers import fraction, whole
from ndani.convert.safetensors import Stored
from ndani.convert.vocabulary import read_bpe
from ndani.errors import BadRequest, Unsupported

#: The engine's architecture for each of theirs.
ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}

_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def lay_out(sources: Mapping[str, int], config: dict[str, Any], tensors: Mapping[str, Stored]) -> tuple[dict[str, Value], list[Target]]:
    """The keys and the tensors of the file to be. Raises BadRequest, Unsupported."""
    arch = ARCHITECTURES[config["architectures"][0]]
    if config.get("hidden_act", "silu") != "silu":
        raise Unsupported(f"a model whose hidden_act is {str(config['hidden_act'])[:30]} cannot be converted; silu can")
    if config.get("quantization_config"):
        raise Unsupported("these weights are quantised already; send those that they were made of")
    blocks, heads, width = (whole(config, name) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
    kv_heads = whole(config, "num_key_value_heads", heads)
    size = whole(config, "head_dim", max(width // heads, 1))
    keys: dict[str, Value] = {
        "general.architecture": arch,
        "general.type": "model",
        f"{arch}.block_count": blocks,
        f"{arch}.context_length": whole(config, "max_position_embeddings"),
        f"{arch}.embedding_length": width,
        f"{arch}.feed_forward_length": whole(config, "intermediate_size"),
        f"{arch}.attention.head_count": heads,
        f"{arch}.attention.head_count_kv": kv_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": fraction(config, "rms_norm_eps", 1e-6),
        f"{arch}.rope.dimension_count": size,
    }
    if size * heads != width:
        keys |= {f"{arch}.attention.key_length": size, f"{arch}.attention.value_length": size}
    rope, factors = _rope(arch, config, size)
    orders = {"attn_q": _order(heads, size), "attn_k": _order(kv_heads, size)} if arch == "llama" else {}
    targets = _targets(tensors, blocks, orders, tied=bool(config.get("tie_word_embeddings")))
    rows = next(target.source.shape[0] for target in targets if target.name == "token_embd.weight")
    vocabulary = read_bpe(sources)
    vocabulary.fit(rows)
    if factors is not None:
        targets.insert(0, Target("rope_freqs.weight", "F32", factors))
    return keys | rope | {f"{arch}.vocab_size": rows} | vocabulary.keys(), targets


def _targets(tensors: Mapping[str, Stored], blocks: int, orders: Mapping[str, tuple[int, ...]], *, tied: bool) -> list[Target]:
    made: dict[str, Target] = {}
    for full, stored in tensors.items():
        stem, _, end = full.rpartition(".")
        if "rotary_emb" in stem or (tied and stem == "lm_head"):  # worked out by the engine; the same as the embedding
            continue
        place, ours = "", _WHOLE.get(stem)
        if stem.startswith("model.layers."):
            number, _, stem = stem.removeprefix("model.layers.").partition(".")
            if not number.isdigit() or int(number) >= blocks:
                raise BadRequest(f"the tensor {full[:100]} does not belong to a model of {blocks} layers; config.json is another model's")
            place, ours = f"blk.{int(number)}.", _BLOCK.get(stem)
        if ours is None or end not in ("weight", "bias"):
            raise Unsupported(f"there is no place for the tensor {full[:100]} in a model of this kind that the engine runs")
        order = orders.get(ours, ())
        if order and stored.shape[0] % len(order):
            raise BadRequest(f"the tensor {full[:100]} does not fit the heads that config.json says; it is another model's")
        target = f"{place}{ours}.{end}"
        made[target] = Target(target, "F16" if len(stored.shape) > 1 else "F32", stored, order)
    needed = {"token_embd.weight", "output_norm.weight"}
    needed |= {f"blk.{number}.{ours}.weight" for number in range(blocks) for ours in _BLOCK.values()}
    if missing := sorted(needed - made.keys()):
        raise BadRequest(f"the weights lack {len(missing)} tensors of this model ({missing[0]} is one); send all of its files")
    return list(made.values())


def _order(heads: int, size: int) -> tuple[int, ...]:
    """The engine turns neighbouring pairs of a head's numbers, these files hold the two halves of them: pairs side by side.

    The same for every head, so one head's order is enough.
    """
    if size % 2:
        raise BadRequest(f"config.json says heads of {size} numbers ({heads} of them), and an even number is needed")
    return tuple(half * (size // 2) + pair for pair in range(size // 2) for half in range(2))


def _rope(arch: str, config: dict[str, Any], size: int) -> tuple[dict[str, Value], NDArray[np.float32] | None]:
    """The keys for how places in the text are told apart, and Llama 3's factors where it stretches them."""
    said = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(said, dict):
        raise BadRequest("config.json says rope_scaling, and it is not an object")
    base = fraction(said if "rope_theta" in said else config, "rope_theta", 10000.0)
    keys: dict[str, Value] = {f"{arch}.rope.freq_base": base}
    kind = said.get("rope_type", said.get("type", "default"))
    if kind == "default":
        return keys, None
    factor = fraction(said, "factor")
    if kind == "llama3":
        return keys, _factors(said, base, factor, size)
    if kind not in ("linear", "yarn"):
        raise Unsupported(f"rope_scaling of the kind {str(kind)[:30]} cannot be converted; linear, yarn and llama3 can")
    keys |= {f"{arch}.rope.scaling.type": kind, f"{arch}.rope.scaling.factor": factor}
    if kind == "yarn":
        keys[f"{arch}.rope.scaling.original_context_length"] = whole(said, "original_max_position_embeddings")
    return keys, None


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
