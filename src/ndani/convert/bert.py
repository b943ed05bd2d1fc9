"""The BERT family: from config.json and its tensor names to the engine's keys and names. Pure, but for reading files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ndani.convert.config_values import read_bool, read_float, read_integer, require_value
from ndani.convert.gguf_writer import GgufValue, TargetTensor
from ndani.convert.safetensors import StoredTensor, read_json, read_object
from ndani.convert.tensor_map import TensorMap, TensorRule, count_rows, map_tensors
from ndani.convert.vocabulary import read_wordpiece
from ndani.errors import BadRequest, Unsupported

ARCHITECTURES = ("BertModel", "BertForMaskedLM")

#: Prefixes of tensors that an embedding does not need.
_UNUSED_PREFIXES = ("embeddings.position_ids", "pooler.", "cls.")
#: Older names of a norm's parameters.
_OLD_SUFFIXES = {"gamma": "weight", "beta": "bias"}
_POOLING = {"pooling_mode_mean_tokens": 1, "pooling_mode_cls_token": 2, "pooling_mode_lasttoken": 3}


def lay_out(
    sources: Mapping[str, int], config: dict[str, Any], tensors: Mapping[str, StoredTensor]
) -> tuple[dict[str, GgufValue], list[TargetTensor]]:
    """The keys and the tensors of the GGUF file. Raises BadRequest, Unsupported."""
    for name, supported in (("hidden_act", "gelu"), ("position_embedding_type", "absolute"), ("model_type", "bert")):
        require_value(config, name, supported, "a BERT")
    if read_bool(config, "is_decoder", False) or read_bool(config, "add_cross_attention", False):
        raise Unsupported("a BERT that is a decoder (is_decoder, add_cross_attention) cannot be converted")
    blocks, heads, width, inner = (
        read_integer(config, name) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size")
    )
    if width % heads:
        raise BadRequest(f"config.json says {heads} heads and {width} numbers for them, which cannot be shared out; send the model's own")
    positions, types = read_integer(config, "max_position_embeddings"), read_integer(config, "type_vocab_size", 2)
    pooling, normalized = _pooling(sources)
    rows = count_rows(tensors, _rename, "embeddings.word_embeddings.weight")
    targets = map_tensors(tensors, _tensor_map(blocks, width, inner, {"word": rows, "token_type": types, "position": positions}), _rename)
    vocabulary = read_wordpiece(sources)
    vocabulary.pad_to_rows(rows, read_integer(config, "vocab_size", rows))
    keys: dict[str, GgufValue] = {
        "general.architecture": "bert",
        "general.type": "model",
        "bert.block_count": blocks,
        "bert.context_length": positions,
        "bert.embedding_length": width,
        "bert.feed_forward_length": inner,
        "bert.attention.head_count": heads,
        "bert.attention.layer_norm_epsilon": read_float(config, "layer_norm_eps", 1e-12),
        "bert.attention.causal": False,
        "bert.pooling_type": pooling,
        "bert.normalize_embeddings": normalized,
        "tokenizer.ggml.token_type_count": types,
    }
    return keys | vocabulary.gguf_keys(), targets


def _tensor_map(blocks: int, width: int, inner: int, rows: Mapping[str, int]) -> TensorMap:
    square = (width, width)
    whole_model = {
        "embeddings.word_embeddings": TensorRule("token_embd", (rows["word"], width)),
        "embeddings.token_type_embeddings": TensorRule("token_types", (rows["token_type"], width), keep_f32=True),
        "embeddings.position_embeddings": TensorRule("position_embd", (rows["position"], width)),
        "embeddings.LayerNorm": TensorRule("token_embd_norm", (width,), bias=True),
    }
    block = {
        "attention.self.query": TensorRule("attn_q", square, bias=None),
        "attention.self.key": TensorRule("attn_k", square, bias=None),
        "attention.self.value": TensorRule("attn_v", square, bias=None),
        "attention.output.dense": TensorRule("attn_output", square, bias=None),
        "attention.output.LayerNorm": TensorRule("attn_output_norm", (width,), bias=True),
        "intermediate.dense": TensorRule("ffn_up", (inner, width), bias=None),
        "output.dense": TensorRule("ffn_down", (width, inner), bias=None),
        "output.LayerNorm": TensorRule("layer_output_norm", (width,), bias=True),
    }
    return TensorMap(blocks, "encoder.layer.", whole_model, block)


def _rename(full_name: str) -> str | None:
    name = full_name.removeprefix("bert.")
    if name.startswith(_UNUSED_PREFIXES):
        return None
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{_OLD_SUFFIXES.get(suffix, suffix)}"


def _pooling(sources: Mapping[str, int]) -> tuple[int, bool]:
    """The pooling of the tokens' vectors (the engine's number for it), and whether the result is normalised to length 1."""
    if "modules.json" not in sources:
        raise BadRequest("there is no modules.json, which says how the tokens' vectors become one; send it and 1_Pooling/config.json too")
    modules = _modules(sources["modules.json"])
    types = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if unsupported := set(types) - {"Transformer", "Pooling", "Normalize"}:
        raise Unsupported(f"a module of the kind {sorted(unsupported)[0][:30]} behind the model cannot be converted")
    paths = (str(module.get("path", "")).strip("/") for module, name in zip(modules, types, strict=True) if name == "Pooling")
    folder = next(paths, None)
    name = f"{folder}/config.json"
    if folder is None or name not in sources:
        raise BadRequest(f"modules.json names no pooling, or {name} is missing; send it too")
    modes = [mode for mode, on in read_object(name, sources[name]).items() if mode.startswith("pooling_mode_") and on is True]
    if len(modes) != 1 or modes[0] not in _POOLING:
        requested = " and ".join(modes)[:200] or "no pooling"
        raise Unsupported(f"{name} asks for {requested}; one of mean_tokens, cls_token and lasttoken can be converted")
    return _POOLING[modes[0]], "Normalize" in types


def _modules(descriptor: int) -> list[dict[str, Any]]:
    value = read_json("modules.json", descriptor, "a JSON list of modules")
    if not isinstance(value, list) or not all(isinstance(module, dict) for module in value):
        raise BadRequest("modules.json is not a JSON list of modules; it is damaged, or another file")
    return value
