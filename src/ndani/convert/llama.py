"""The Llama family (Llama, Mistral, SmolLM2, Qwen2): config.json and the tensors' names into the engine's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ndani.convert.config_values import MAX_SIZE, read_bool, read_float, read_integer, require_value
from ndani.convert.gguf_writer import GgufValue, TargetTensor
from ndani.convert.rope import read_rope
from ndani.convert.safetensors import StoredTensor
from ndani.convert.tensor_map import TensorMap, TensorRule, map_tensors, rows_of
from ndani.convert.vocabulary import read_bpe
from ndani.errors import BadRequest, Unsupported


@dataclass(frozen=True, slots=True)
class _Family:
    """What one of theirs is for the engine, and what counts for it where config.json does not say it."""

    arch: str
    model_type: str
    kv_heads: int | None = None  # None: as many as heads
    window: int | None = None


#: By their names. The defaults are those of their publishers' library.
_FAMILIES = {
    "LlamaForCausalLM": _Family("llama", "llama"),
    "MistralForCausalLM": _Family("llama", "mistral", kv_heads=8, window=4096),
    "Qwen2ForCausalLM": _Family("qwen2", "qwen2", kv_heads=32, window=4096),
}
#: Their names, as config.json says them.
ARCHITECTURES = tuple(_FAMILIES)

_FULL, _SLIDING = "full_attention", "sliding_attention"


def lay_out(
    sources: Mapping[str, int], config: dict[str, Any], tensors: Mapping[str, StoredTensor]
) -> tuple[dict[str, GgufValue], list[TargetTensor]]:
    """The keys and the tensors of the file to be. Raises BadRequest, Unsupported."""
    family = _FAMILIES[config["architectures"][0]]
    arch = family.arch
    require_value(config, "hidden_act", "silu", "a model")
    require_value(config, "model_type", family.model_type, f"a {config['architectures'][0]}")
    blocks, heads, width, inner = (
        read_integer(config, name) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size")
    )
    shared = "num_key_value_heads" not in config and family.kv_heads
    kv_heads = shared or read_integer(config, "num_key_value_heads", heads)
    size = read_integer(config, "head_dim", max(width // heads, 1))
    _require_heads(arch, heads, kv_heads, size, width)
    keys: dict[str, GgufValue] = {
        "general.architecture": arch,
        "general.type": "model",
        f"{arch}.block_count": blocks,
        f"{arch}.context_length": _reach(family, config, blocks),
        f"{arch}.embedding_length": width,
        f"{arch}.feed_forward_length": inner,
        f"{arch}.attention.head_count": heads,
        f"{arch}.attention.head_count_kv": kv_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": read_float(config, "rms_norm_eps", 1e-6),
        f"{arch}.rope.dimension_count": size,
    }
    if size * heads != width:
        keys |= {f"{arch}.attention.key_length": size, f"{arch}.attention.value_length": size}
    tied = read_bool(config, "tie_word_embeddings", False)

    def rename(full: str) -> str | None:
        stem = full.rpartition(".")[0]
        # Worked out by the engine; the same as the embedding.
        return None if "rotary_emb" in stem or (tied and stem == "lm_head") else full

    rows = rows_of(tensors, rename, "model.embed_tokens.weight")
    layout = _layout(blocks, width, inner, rows, heads * size, kv_heads * size, _biases(family, config))
    targets = map_tensors(tensors, layout, rename)
    if not tied and "lm_head.weight" not in tensors:
        needed = "send all of the model's files (a model whose embedding is its output says tie_word_embeddings)"
        raise BadRequest(f"the weights lack the output (lm_head.weight); {needed}")
    if arch == "llama":
        order = _order(size)  # only now: the weights have as many numbers as config.json says
        turned = ("attn_q", "attn_k")
        targets = [replace(one, order=order) if one.name.split(".")[-2] in turned else one for one in targets]
    rope, factors = read_rope(arch, config, size)
    vocabulary = read_bpe(sources)
    vocabulary.fit(rows, read_integer(config, "vocab_size", rows))
    if factors is not None:
        targets.insert(0, TargetTensor("rope_freqs.weight", "F32", factors))
    return keys | rope | {f"{arch}.vocab_size": rows} | vocabulary.keys(), targets


def _reach(family: _Family, config: dict[str, Any], blocks: int) -> int:
    """How many tokens the model can look back on: its context, or the window of any of its layers, if that is less.

    The engine runs no windows in models of these kinds. Within one a layer sees all that it would see without it, so
    the answers are the model's own as long as the context is no longer than the window.
    """
    return min(read_integer(config, "max_position_embeddings"), _window(family, config, blocks) or MAX_SIZE)


def _window(family: _Family, config: dict[str, Any], blocks: int) -> int | None:
    """The window that some layers have, in tokens; None where no layer has one. Raises BadRequest, Unsupported."""
    named, kinds = "sliding_window" in config, _kinds(config, blocks)
    if family.window is None or (family.model_type == "qwen2" and not read_bool(config, "use_sliding_window", False)):
        window = None  # what stands there is not read by its publishers' library either
    else:  # null means none, which is another thing than not said
        window = None if named and config["sliding_window"] is None else read_integer(config, "sliding_window", family.window)
    if window is None and _SLIDING in kinds:
        raise BadRequest("config.json says layer_types with windows, and no sliding_window that is used; send the model's own")
    if family.model_type == "qwen2" and window:
        first = (
            kinds.index(_SLIDING) if _SLIDING in kinds else blocks if kinds else read_integer(config, "max_window_layers", 28, minimum=0)
        )
        return window if first < blocks else None
    return window


def _kinds(config: dict[str, Any], blocks: int) -> list[str]:
    """The kind of each layer; nothing where that is not said. Raises BadRequest, Unsupported for a kind that is not known."""
    kinds = config.get("layer_types")
    if kinds is None:
        return []
    if not isinstance(kinds, list) or len(kinds) != blocks:
        raise BadRequest(f"config.json says layer_types, and it is not a list of {blocks} kinds; send the model's own")
    if odd := [kind for kind in kinds if kind not in (_FULL, _SLIDING)]:
        raise Unsupported(f"layers of the kind {str(odd[0])[:30]} cannot be converted; {_FULL} and {_SLIDING} can")
    return kinds


def _biases(family: _Family, config: dict[str, Any]) -> dict[str, bool]:
    """Which parts of a block have a bias, by the beginning of their names."""
    if family.model_type == "qwen2":
        return {"self_attn.q": True, "self_attn.k": True, "self_attn.v": True}
    if family.model_type == "llama":
        return {"self_attn.": read_bool(config, "attention_bias", False), "mlp.": read_bool(config, "mlp_bias", False)}
    return {}


def _layout(blocks: int, width: int, inner: int, rows: int, queries: int, keys: int, biases: Mapping[str, bool]) -> TensorMap:
    """`queries` and `keys` are how many numbers all heads have together."""
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
    for begin, on in biases.items():
        block |= {stem: replace(place, bias=on) for stem, place in block.items() if stem.startswith(begin)}
    whole_model = {
        "model.embed_tokens": TensorRule("token_embd", (rows, width)),
        "model.norm": TensorRule("output_norm", (width,)),
        "lm_head": TensorRule("output", (rows, width)),
    }
    return TensorMap(blocks, "model.layers.", whole_model, block, frozenset({"lm_head"}))


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
