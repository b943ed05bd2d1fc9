"""The BERT family: config.json and the tensors' names into the engine's. Pure but for the vocabulary's files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ndani.convert.container import Target, Value
from ndani.convert.numbers import fraction, whole
from ndani.convert.safetensors import Stored, read_file, read_object
from ndani.convert.vocabulary import read_wordpiece
from ndani.errors import BadRequest, Unsupported

ARCHITECTURES = ("BertModel", "BertForMaskedLM")

#: Ends of names, theirs and the engine's.
_NAMES = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.LayerNorm": "token_embd_norm",
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
#: Parts that no vector of a text goes through.
_LEFT_OUT = ("embeddings.position_ids", "pooler.", "cls.")
_POOLING = {"pooling_mode_mean_tokens": 1, "pooling_mode_cls_token": 2, "pooling_mode_lasttoken": 3}


def lay_out(sources: Mapping[str, int], config: dict[str, Any], tensors: Mapping[str, Stored]) -> tuple[dict[str, Value], list[Target]]:
    """The keys and the tensors of the file to be. Raises BadRequest, Unsupported."""
    for name, known in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if config.get(name, known) != known:
            raise Unsupported(f"a BERT whose {name} is {str(config[name])[:30]} cannot be converted; {known} can")
    blocks = whole(config, "num_hidden_layers")
    pooling, normalized = _pooling(sources)
    targets = _targets(tensors, blocks)
    vocabulary = read_wordpiece(sources)
    vocabulary.fit(next(target.source.shape[0] for target in targets if target.name == "token_embd.weight"))
    keys: dict[str, Value] = {
        "general.architecture": "bert",
        "general.type": "model",
        "bert.block_count": blocks,
        "bert.context_length": whole(config, "max_position_embeddings"),
        "bert.embedding_length": whole(config, "hidden_size"),
        "bert.feed_forward_length": whole(config, "intermediate_size"),
        "bert.attention.head_count": whole(config, "num_attention_heads"),
        "bert.attention.layer_norm_epsilon": fraction(config, "layer_norm_eps", 1e-12),
        "bert.attention.causal": False,
        "bert.pooling_type": pooling,
        "bert.normalize_embeddings": normalized,
        "tokenizer.ggml.token_type_count": whole(config, "type_vocab_size", 2),
    }
    return keys | vocabulary.keys(), targets


def _targets(tensors: Mapping[str, Stored], blocks: int) -> list[Target]:
    made: dict[str, Target] = {}
    for full, stored in tensors.items():
        name = full.removeprefix("bert.")
        if name.startswith(_LEFT_OUT):
            continue
        stem, _, end = name.rpartition(".")
        end = {"gamma": "weight", "beta": "bias"}.get(end, end)  # older spelling of norms
        place = ""
        if stem.startswith("encoder.layer."):
            number, _, stem = stem.removeprefix("encoder.layer.").partition(".")
            if not number.isdigit() or int(number) >= blocks:
                raise BadRequest(f"the tensor {full[:100]} does not belong to a model of {blocks} layers; config.json is another model's")
            place = f"blk.{int(number)}."
        if stem not in _NAMES or end not in ("weight", "bias") or bool(place) == stem.startswith("embeddings."):
            raise Unsupported(f"there is no place for the tensor {full[:100]} in a BERT that the engine runs")
        target = f"{place}{_NAMES[stem]}.{end}"
        made[target] = Target(target, "F16" if len(stored.shape) > 1 and stem != "embeddings.token_type_embeddings" else "F32", stored)
    needed = {f"{_NAMES[stem]}.weight" for stem in _NAMES if stem.startswith("embeddings.")}
    needed |= {f"blk.{n}.{_NAMES[stem]}.weight" for stem in _NAMES if not stem.startswith("embeddings.") for n in range(blocks)}
    if missing := sorted(needed - made.keys()):
        raise BadRequest(f"the weights lack {len(missing)} tensors of this model ({missing[0]} is one); send all of its files")
    return list(made.values())


def _pooling(sources: Mapping[str, int]) -> tuple[int, bool]:
    """How the tokens' vectors become the text's (the engine's number for it), and whether that is scaled to length 1."""
    if "modules.json" not in sources:
        raise BadRequest("there is no modules.json, which says how the tokens' vectors become one; send it and 1_Pooling/config.json too")
    modules = _modules(read_file("modules.json", sources["modules.json"]))
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if extra := set(kinds) - {"Transformer", "Pooling", "Normalize"}:
        raise Unsupported(f"a module of the kind {sorted(extra)[0][:30]} behind the model cannot be converted")
    place = next((str(module.get("path", "")).strip("/") for module, kind in zip(modules, kinds, strict=True) if kind == "Pooling"), None)
    name = f"{place}/config.json"
    if place is None or name not in sources:
        raise BadRequest(f"modules.json names no pooling, or {name} is missing; send it too")
    modes = [mode for mode, on in read_object(name, sources[name]).items() if mode.startswith("pooling_mode_") and on is True]
    if len(modes) != 1 or modes[0] not in _POOLING:
        asked = " and ".join(modes)[:200] or "no pooling"
        raise Unsupported(f"{name} asks for {asked}; one of mean_tokens, cls_token and lasttoken can be converted")
    return _POOLING[modes[0]], "Normalize" in kinds


def _modules(content: bytes) -> list[dict[str, Any]]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, list) or not all(isinstance(module, dict) for module in value):
        raise BadRequest("modules.json is not a JSON list of modules; it is damaged, or another file")
    return value
