"""The Llama family (Llama, Mistral, SmolLM2, Qwen2): from config.json and its tensor names to the engine's keys and names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ndani.convert.config_values import MAX_SIZE, read_bool, read_float, read_integer, require_value
from ndani.convert.gguf_writer import GgufValue, TargetTensor
from ndani.convert.rope import read_rope
from ndani.convert.safetensors import StoredTensor
from ndani.convert.tensor_map import TensorMap, TensorRule, count_rows, map_tensors
from ndani.convert.vocabulary import read_bpe
from ndani.errors import BadRequest, Unsupported


@dataclass(frozen=True, slots=True)
class _Family:
    """The engine's name for an architecture, and the defaults for keys that config.json lacks."""

    arch: str
    model_type: str
    kv_heads: int | None = None  # None: as many as heads
    window: int | None = None


#: By the name in config.json. The defaults are those of the publishers' library.
_FAMILIES = {
    "LlamaForCausalLM": _Family("llama", "llama"),
    "MistralForCausalLM": _Family("llama", "mistral", kv_heads=8, window=4096),
    "Qwen2ForCausalLM": _Family("qwen2", "qwen2", kv_heads=32, window=4096),
}
ARCHITECTURES = tuple(_FAMILIES)

_FULL, _SLIDING = "full_attention", "sliding_attention"


def lay_out(
    sources: Mapping[str, int], config: dict[str, Any], tensors: Mapping[str, StoredTensor]
) -> tuple[dict[str, GgufValue], list[TargetTensor]]:
    """The keys and the tensors of the GGUF file. Raises BadRequest, Unsupported."""
    family = _FAMILIES[config["architectures"][0]]
    arch = family.arch
    require_value(config, "hidden_act", "silu", "a model")
    require_value(config, "model_type", family.model_type, f"a {config['architectures'][0]}")
    blocks, heads, width, inner = (
        read_integer(config, name) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size")
    )
    default_kv_heads = "num_key_value_heads" not in config and family.kv_heads
    kv_heads = default_kv_heads or read_integer(config, "num_key_value_heads", heads)
    head_size = read_integer(config, "head_dim", max(width // heads, 1))
    _check_heads(arch, heads, kv_heads, head_size, width)
    keys: dict[str, GgufValue] = {
        "general.architecture": arch,
        "general.type": "model",
        f"{arch}.block_count": blocks,
        f"{arch}.context_length": _context_length(family, config, blocks),
        f"{arch}.embedding_length": width,
        f"{arch}.feed_forward_length": inner,
        f"{arch}.attention.head_count": heads,
        f"{arch}.attention.head_count_kv": kv_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": read_float(config, "rms_norm_eps", 1e-6),
        f"{arch}.rope.dimension_count": head_size,
    }
    if head_size * heads != width:
        keys |= {f"{arch}.attention.key_length": head_size, f"{arch}.attention.value_length": head_size}
    tied = read_bool(config, "tie_word_embeddings", False)

    def rename(full_name: str) -> str | None:
        stem = full_name.rpartition(".")[0]
        is_computed = "rotary_emb" in stem  # the engine computes these itself
        is_embedding = tied and stem == "lm_head"
        return None if is_computed or is_embedding else full_name

    rows = count_rows(tensors, rename, "model.embed_tokens.weight")
    layout = _tensor_map(blocks, width, inner, rows, heads * head_size, kv_heads * head_size, _biases(family, config))
    targets = map_tensors(tensors, layout, rename)
    if not tied and "lm_head.weight" not in tensors:
        needed = "send all of the model's files (a model whose embedding is its output says tie_word_embeddings)"
        raise BadRequest(f"the weights lack the output (lm_head.weight); {needed}")
    if arch == "llama":
        order = _rotary_order(head_size)  # only now: the weights have confirmed the size that config.json states
        permuted = ("attn_q", "attn_k")
        targets = [replace(target, order=order) if target.name.split(".")[-2] in permuted else target for target in targets]
    rope, factors = read_rope(arch, config, head_size)
    vocabulary = read_bpe(sources)
    vocabulary.pad_to_rows(rows, read_integer(config, "vocab_size", rows))
    if factors is not None:
        targets.insert(0, TargetTensor("rope_freqs.weight", "F32", factors))
    return keys | rope | {f"{arch}.vocab_size": rows} | vocabulary.gguf_keys(), targets


def _context_length(family: _Family, config: dict[str, Any], blocks: int) -> int:
    """The context in tokens, no longer than the attention window of any layer.

    The engine does not support windows in these architectures. A context that fits into the window gives the same answers
    with and without it.
    """
    return min(read_integer(config, "max_position_embeddings"), _window(family, config, blocks) or MAX_SIZE)


def _window(family: _Family, config: dict[str, Any], blocks: int) -> int | None:
    """The window that some layers have, in tokens; None when no layer has one. Raises BadRequest, Unsupported."""
    layer_types = _layer_types(config, blocks)
    has_null_window = "sliding_window" in config and config["sliding_window"] is None
    if family.window is None or (family.model_type == "qwen2" and not read_bool(config, "use_sliding_window", False)):
        window = None  # the publishers' library ignores sliding_window here too
    else:  # null means no window; a missing key means the default
        window = None if has_null_window else read_integer(config, "sliding_window", family.window)
    if window is None and _SLIDING in layer_types:
        raise BadRequest("config.json says layer_types with windows, and no sliding_window that is used; send the model's own")
    if family.model_type == "qwen2" and window:
        if layer_types:
            first = layer_types.index(_SLIDING) if _SLIDING in layer_types else blocks
        else:
            first = read_integer(config, "max_window_layers", 28, minimum=0)
        return window if first < blocks else None
    return window


def _layer_types(config: dict[str, Any], blocks: int) -> list[str]:
    """The attention type of each layer; empty when config.json lacks it. Raises BadRequest, Unsupported for an unknown type."""
    layer_types = config.get("layer_types")
    if layer_types is None:
        return []
    if not isinstance(layer_types, list) or len(layer_types) != blocks:
        raise BadRequest(f"config.json says layer_types, and it is not a list of {blocks} kinds; send the model's own")
    if unknown := [layer_type for layer_type in layer_types if layer_type not in (_FULL, _SLIDING)]:
        raise Unsupported(f"layers of the kind {str(unknown[0])[:30]} cannot be converted; {_FULL} and {_SLIDING} can")
    return layer_types


def _biases(family: _Family, config: dict[str, Any]) -> dict[str, bool]:
    """Which tensors of a block have a bias, by name prefix."""
    if family.model_type == "qwen2":
        return {"self_attn.q": True, "self_attn.k": True, "self_attn.v": True}
    if family.model_type == "llama":
        return {"self_attn.": read_bool(config, "attention_bias", False), "mlp.": read_bool(config, "mlp_bias", False)}
    return {}


def _tensor_map(blocks: int, width: int, inner: int, rows: int, queries: int, keys: int, biases: Mapping[str, bool]) -> TensorMap:
    """`queries` and `keys` are the total widths of all heads."""
    block = {
        "input_layernorm": TensorRule("attn_norm", (width,)),
        "self_attn.q_proj": TensorRule("attn_q", (queries, width)),
        "self_attn.k_proj": TensorRule("attn_k", (keys, width)),
        "self_attn.v_proj": TensorRule("attn_v", (keys, width)),
        "self_attn.o_proj": TensorRule("attn_output", (width, queries)),
        "post_attention_layernorm": TensorRule("ffn_norm", (width,)),
        "mlp.gate_proj": TensorRule("ffn_gate", (inner, width)),
        "mlp.up_proj": TensorRule("ffn_up", (inner, width)),
        "mlp.down_proj": TensorRule("ffn_down", (width, inner)),
    }
    for prefix, has_bias in biases.items():
        block |= {stem: replace(rule, bias=has_bias) for stem, rule in block.items() if stem.startswith(prefix)}
    whole_model = {
        "model.embed_tokens": TensorRule("token_embd", (rows, width)),
        "model.norm": TensorRule("output_norm", (width,)),
        "lm_head": TensorRule("output", (rows, width)),
    }
    return TensorMap(blocks, "model.layers.", whole_model, block, frozenset({"lm_head"}))


def _check_heads(arch: str, heads: int, kv_heads: int, size: int, width: int) -> None:
    if size % 2:
        raise BadRequest(f"config.json says heads of {size} numbers ({heads} of them), and an even number is needed; send the model's own")
    if heads % kv_heads:
        raise BadRequest(f"config.json says {heads} heads and {kv_heads} for keys, which cannot be shared out; send the model's own")
    if arch != "llama" and size * heads != width:
        raise Unsupported(f"{heads} heads of {size} numbers beside a width of {width} are not run by the engine in a model of this kind")


def _rotary_order(head_size: int) -> tuple[int, ...]:
    """The row order of one head for the engine's RoPE, which rotates neighbouring rows; these files keep such pairs in two halves.

    The order is the same for every head, so one head's is enough.
    """
    return tuple(half * (head_size // 2) + pair for pair in range(head_size // 2) for half in range(2))
