"""Rotary position embedding (RoPE) of the Llama family: from config.json to the engine's keys and factors. Pure.

Newer files have it in `rope_parameters`, older ones in `rope_scaling` and `rope_theta`. Settings that change the answers
and that the engine does not support are refused; so are unknown ones.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ndani.convert.config_values import read_float, read_integer
from ndani.convert.gguf_writer import GgufValue
from ndani.errors import BadRequest, Unsupported

#: The supported keys of rope_scaling, by its type. Any other key would change the answers, so it is refused.
_COMMON_KEYS = ("rope_type", "type", "rope_theta")
_SCALING_KEYS = (*_COMMON_KEYS, "factor", "original_max_position_embeddings")
_SUPPORTED_KEYS = {
    "default": _COMMON_KEYS,
    "linear": _SCALING_KEYS,
    "yarn": (*_SCALING_KEYS, "attention_factor", "beta_fast", "beta_slow", "extrapolation_factor", "finetuned"),
    "llama3": (*_SCALING_KEYS, "low_freq_factor", "high_freq_factor"),
}
_YARN_FIXED = {"beta_fast": 32.0, "beta_slow": 1.0, "extrapolation_factor": 1.0}
#: Keys that make no difference when they have this value.
_NEUTRAL: dict[str, object] = {"partial_rotary_factor": 1, "truncate": True, "finetuned": False}


def read_rope(arch: str, config: dict[str, Any], head_size: int) -> tuple[dict[str, GgufValue], NDArray[np.float32] | None]:
    """The engine's keys, and the scaling factors of a head's frequencies for Llama 3's type (else None).

    Raises BadRequest, Unsupported.
    """
    scaling = _read_scaling(config)
    partial = read_float(config, "partial_rotary_factor", 1.0)
    if partial != 1:
        raise Unsupported(f"a model whose partial_rotary_factor is {partial:g} is not run by the engine as one of this kind")
    base = read_float(scaling, "rope_theta", read_float(config, "rope_theta", 10000.0))
    keys: dict[str, GgufValue] = {f"{arch}.rope.freq_base": base}
    rope_type = _rope_type(scaling)
    if unknown := next((name for name in scaling if name not in _SUPPORTED_KEYS[rope_type]), None):
        raise Unsupported(f"rope_scaling of the kind {rope_type} with {unknown[:30]} cannot be converted; use a GGUF file of this model")
    if rope_type == "default":
        return keys, None
    factor = read_float(scaling, "factor")
    if rope_type == "llama3":
        return keys, _llama3_factors(scaling, base, factor, head_size)
    keys |= {f"{arch}.rope.scaling.type": rope_type, f"{arch}.rope.scaling.factor": factor}
    return keys | (_yarn_keys(arch, scaling, factor) if rope_type == "yarn" else {}), None


def _read_scaling(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of either key, without null and neutral values. Raises BadRequest when both keys are set and differ."""
    settings: list[dict[str, Any]] = []
    for name in ("rope_parameters", "rope_scaling"):
        value = config.get(name)
        if value is not None and not isinstance(value, dict):
            raise BadRequest(f"config.json says {name}, and it is not an object")
        if value:
            settings.append({key: item for key, item in value.items() if item is not None and not _is_neutral(key, item)})
    without_base = [{key: item for key, item in group.items() if key != "rope_theta"} for group in settings]
    if len(settings) == 2 and without_base[0] != without_base[1]:
        raise BadRequest("config.json says both rope_parameters and rope_scaling, and they differ; send the model's own")
    return settings[-1] | settings[0] if settings else {}


def _is_neutral(key: str, value: object) -> bool:
    return key in _NEUTRAL and value == _NEUTRAL[key]


def _rope_type(scaling: dict[str, Any]) -> str:
    """The scaling type. Raises Unsupported for an unknown type, BadRequest for a missing type beside other settings."""
    types = {scaling[name] for name in ("rope_type", "type") if isinstance(scaling.get(name), str)}
    invalid = [scaling[name] for name in ("rope_type", "type") if name in scaling and not isinstance(scaling[name], str)]
    if invalid or len(types) > 1:
        raise BadRequest("config.json says rope_scaling of no kind, or of two; send the model's own")
    if not types and scaling.keys() - {"rope_theta"}:
        raise BadRequest("config.json says rope_scaling, and not of which kind (rope_type); send the model's own")
    rope_type = str(next(iter(types), "default"))
    if rope_type not in _SUPPORTED_KEYS:
        raise Unsupported(f"rope_scaling of the kind {rope_type[:30]} cannot be converted; linear, yarn and llama3 can")
    return rope_type


def _yarn_keys(arch: str, scaling: dict[str, Any], factor: float) -> dict[str, GgufValue]:
    """The additional keys of YaRN. Of its four parameters, the engine reads only the attention factor for these families."""
    for name, fixed in _YARN_FIXED.items():
        if read_float(scaling, name, fixed) != fixed:
            raise Unsupported(f"rope_scaling whose {name} is not {fixed:g} is not run by the engine in a model of this kind")
    keys: dict[str, GgufValue] = {f"{arch}.rope.scaling.original_context_length": read_integer(scaling, "original_max_position_embeddings")}
    if scaling.get("attention_factor") is not None:
        built_in = 0.1 * math.log(max(factor, 1.0)) + 1  # the engine computes this and multiplies it by the key's value
        keys[f"{arch}.rope.scaling.attn_factor"] = read_float(scaling, "attention_factor") / built_in
    return keys


def _llama3_factors(scaling: dict[str, Any], base: float, factor: float, head_size: int) -> NDArray[np.float32]:
    """The factor of each wavelength: 1 for short ones, `factor` for long ones, interpolated between."""
    low, high = read_float(scaling, "low_freq_factor", 1.0), read_float(scaling, "high_freq_factor", 4.0)
    trained = read_integer(scaling, "original_max_position_embeddings", 8192)
    if high <= low:
        raise BadRequest("config.json says rope_scaling whose high_freq_factor is not above its low_freq_factor")
    factors = []
    for dimension in range(0, head_size, 2):
        wavelength = 2 * math.pi * base ** (dimension / head_size)
        if wavelength < trained / high:
            factors.append(1.0)
        elif wavelength > trained / low:
            factors.append(factor)
        else:
            smooth = (trained / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)
