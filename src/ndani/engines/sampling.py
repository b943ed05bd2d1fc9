"""Options: read, merged and translated into what the engine is sent, each in one place.

Request over model over settings over default. Every option is sent explicitly, because the engine's own defaults
are not Ollama's (DESIGN, traps, 9).
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from ndani.errors import BadRequest
from ndani.types import Sampling

_INT = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "seed", "num_predict", "top_k", "repeat_last_n")
_FLOAT = ("top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty", "frequency_penalty")
_BOOL = ("use_mmap",)
OPTIONS = frozenset((*_INT, *_FLOAT, *_BOOL, "stop"))

#: Where an option's value makes no sense to any sampler; both ends belong to it.
_RANGE = {
    "temperature": (0.0, 1e6),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "top_k": (-1, 2**31 - 1),
    "repeat_penalty": (1e-6, 1e6),
    "presence_penalty": (-1e6, 1e6),
    "frequency_penalty": (-1e6, 1e6),
    "repeat_last_n": (-1, 2**31 - 1),
    "num_ctx": (0, 2**31 - 1),
    "num_keep": (-1, 2**31 - 1),
    "num_batch": (1, 2**31 - 1),
    "num_thread": (-1, 512),  # llama.cpp's own limit: it aborts above; 0 and below choose for themselves
}

#: Ollama's defaults (reference 1.4); what sizes a runner is left open here and decided by the pool.
DEFAULTS = Sampling(
    num_keep=4,
    seed=-1,
    num_predict=-1,
    top_k=40,
    top_p=0.9,
    min_p=0.0,
    typical_p=1.0,
    repeat_last_n=64,
    temperature=0.8,
    repeat_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    stop=(),
)

FIELDS = tuple(option.name for option in fields(Sampling))

#: An answer is never longer than this many contexts, whatever was asked for.
MOST_CONTEXTS = 10


def read(options: dict[str, Any]) -> tuple[Sampling, list[str]]:
    """Options by name, from a request or from a model's parameters."""
    given: dict[str, Any] = {}
    ignored: list[str] = []
    for name, value in options.items():
        if value is None:
            continue
        if name not in OPTIONS:
            ignored.append(name)
            continue
        given[name] = _option(name, value)
    return Sampling(**given), ignored


def _option(name: str, value: Any) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name == "stop":
        if not isinstance(value, list):
            raise BadRequest('option "stop" must be of type array')
        if not all(isinstance(part, str) for part in value):
            raise BadRequest('option "stop" must be of an array of strings')
        return tuple(part for part in value if part)
    if name in _BOOL:
        if not isinstance(value, bool):
            raise BadRequest(f'option "{name}" must be of type boolean')
        return value
    if not number:
        raise BadRequest(f'option "{name}" must be of type {"integer" if name in _INT else "float32"}')
    low, high = _RANGE.get(name, (-(2**31), 2**31 - 1) if name in _INT else (-1e38, 1e38))
    if name == "seed":
        low, high = -(2**63), 2**64 - 1  # a clock's nanoseconds are a common seed: folded into the engine's 32 bits
    if not low <= value <= high:
        raise BadRequest(f'option "{name}" must be between {_shown(low)} and {_shown(high)}')
    if name == "seed":
        return int(value) if value < 0 else int(value) & 0x7FFFFFFF
    return int(value) if name in _INT else float(value)


def _shown(number: float) -> str:
    """A whole number with all its digits, which a user can copy."""
    return str(number) if isinstance(number, int) else f"{number:g}"


def merge(*layers: Sampling) -> Sampling:
    """One Sampling of many, the first that says something wins, field by field; DEFAULTS come last."""
    merged = DEFAULTS
    for layer in reversed(layers):
        given = {name: value for name in FIELDS if (value := getattr(layer, name)) is not None}
        merged = replace(merged, **given) if given else merged
    return merged


def translate(sampling: Sampling, num_ctx: int) -> dict[str, Any]:
    """The engine's body for a merged Sampling; `num_ctx` is the context that the request has."""
    most = MOST_CONTEXTS * num_ctx
    wanted = sampling.num_predict
    assert wanted is not None and sampling.seed is not None and sampling.repeat_last_n is not None and sampling.num_keep is not None
    return {
        # 0 would give one token anyway, which nobody is told. Negative is "as long as it likes", which has a cap.
        "n_predict": min(max(wanted, 1), most) if wanted >= 0 else most,
        "seed": sampling.seed if sampling.seed >= 0 else 0xFFFFFFFF,
        "n_keep": min(max(sampling.num_keep, -1), num_ctx - 1),
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "typical_p": sampling.typical_p,
        "repeat_last_n": min(sampling.repeat_last_n, num_ctx) if sampling.repeat_last_n >= 0 else num_ctx,  # memory per token
        "repeat_penalty": sampling.repeat_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "stop": list(sampling.stop or ()),
        "cache_prompt": True,
    }
