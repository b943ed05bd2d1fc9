"""How a Llama and its like tell places in a text apart (RoPE): what config.json says of it, in the engine's keys and factors. Pure.

Said in `rope_parameters` by newer files, in `rope_scaling` and `rope_theta` by older ones. What would change the answers and
is not run by the engine is refused; so is what is not known.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ndani.convert.config_values import read_float, read_integer
from ndani.convert.gguf_writer import GgufValue
from ndani.errors import BadRequest, Unsupported

#: What is read of rope_scaling, by its kind. More than that would change the answers, so it is refused.
_NAMED = ("rope_type", "type", "rope_theta")
_STRETCHED = (*_NAMED, "factor", "original_max_position_embeddings")
_KNOWN = {
    "default": _NAMED,
    "linear": _STRETCHED,
    "yarn": (*_STRETCHED, "attention_factor", "beta_fast", "beta_slow", "extrapolation_factor", "finetuned"),
    "llama3": (*_STRETCHED, "low_freq_factor", "high_freq_factor"),
}
_YARN_FIXED = {"beta_fast": 32.0, "beta_slow": 1.0, "extrapolation_factor": 1.0}
#: What makes no difference when it has this value.
_NEUTRAL: dict[str, object] = {"partial_rotary_factor": 1, "truncate": True, "finetuned": False}


def read_rope(arch: str, config: dict[str, Any], size: int) -> tuple[dict[str, GgufValue], NDArray[np.float32] | None]:
    """The engine's keys, and Llama 3's factors where it stretches; `size` is how many numbers a head has.

    Raises BadRequest, Unsupported.
    """
    said = _said(config)
    partial = read_float(config, "partial_rotary_factor", 1.0)
    if partial != 1:
        raise Unsupported(f"a model whose partial_rotary_factor is {partial:g} is not run by the engine as one of this kind")
    base = read_float(said, "rope_theta", read_float(config, "rope_theta", 10000.0))
    keys: dict[str, GgufValue] = {f"{arch}.rope.freq_base": base}
    kind = _kind(said)
    if unknown := next((name for name in said if name not in _KNOWN[kind]), None):
        raise Unsupported(f"rope_scaling of the kind {kind} with {unknown[:30]} cannot be converted; use a GGUF file of this model")
    if kind == "default":
        return keys, None
    factor = read_float(said, "factor")
    if kind == "llama3":
        return keys, _factors(said, base, factor, size)
    keys |= {f"{arch}.rope.scaling.type": kind, f"{arch}.rope.scaling.factor": factor}
    return keys | (_yarn(arch, said, factor) if kind == "yarn" else {}), None


def _said(config: dict[str, Any]) -> dict[str, Any]:
    """What is said in either place, without what is null or makes no difference. Raises BadRequest where both are said and differ."""
    found: list[dict[str, Any]] = []
    for name in ("rope_parameters", "rope_scaling"):
        value = config.get(name)
        if value is not None and not isinstance(value, dict):
            raise BadRequest(f"config.json says {name}, and it is not an object")
        if value:
            found.append({key: item for key, item in value.items() if item is not None and not (key in _NEUTRAL and item == _NEUTRAL[key])})
    alike = [{key: item for key, item in one.items() if key != "rope_theta"} for one in found]
    if len(found) == 2 and alike[0] != alike[1]:
        raise BadRequest("config.json says both rope_parameters and rope_scaling, and they differ; send the model's own")
    return found[-1] | found[0] if found else {}


def _kind(said: dict[str, Any]) -> str:
    """How places are stretched. Raises Unsupported for a way that is not known, BadRequest for none where there is more to it."""
    kinds = {said[name] for name in ("rope_type", "type") if isinstance(said.get(name), str)}
    odd = [said[name] for name in ("rope_type", "type") if name in said and not isinstance(said[name], str)]
    if odd or len(kinds) > 1:
        raise BadRequest("config.json says rope_scaling of no kind, or of two; send the model's own")
    if not kinds and said.keys() - {"rope_theta"}:
        raise BadRequest("config.json says rope_scaling, and not of which kind (rope_type); send the model's own")
    kind = str(next(iter(kinds), "default"))
    if kind not in _KNOWN:
        raise Unsupported(f"rope_scaling of the kind {kind[:30]} cannot be converted; linear, yarn and llama3 can")
    return kind


def _yarn(arch: str, said: dict[str, Any], factor: float) -> dict[str, GgufValue]:
    """What more is said of YaRN's way of stretching. The engine takes one of its four numbers from a file of these families."""
    for name, only in _YARN_FIXED.items():
        if read_float(said, name, only) != only:
            raise Unsupported(f"rope_scaling whose {name} is not {only:g} is not run by the engine in a model of this kind")
    keys: dict[str, GgufValue] = {f"{arch}.rope.scaling.original_context_length": read_integer(said, "original_max_position_embeddings")}
    if said.get("attention_factor") is not None:
        own = 0.1 * math.log(max(factor, 1.0)) + 1  # which the engine works out, and multiplies by what it is told
        keys[f"{arch}.rope.scaling.attn_factor"] = read_float(said, "attention_factor") / own
    return keys


def _factors(said: dict[str, Any], base: float, factor: float, size: int) -> NDArray[np.float32]:
    """By how much each wave is stretched: short ones not at all, long ones by `factor`, those between by degrees."""
    low, high = read_float(said, "low_freq_factor", 1.0), read_float(said, "high_freq_factor", 4.0)
    trained = read_integer(said, "original_max_position_embeddings", 8192)
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
