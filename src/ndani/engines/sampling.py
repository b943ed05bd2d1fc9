"""Options: parsed, merged and translated into the fields of `/completion`, each in one function.

Of the request, the model and the defaults, the first that sets an option decides it (`merge`). What these leave open is an
option of the runner, and `runtime.spec` decides it by the settings. Every option is sent explicitly, because llama.cpp's own
defaults are not Ollama's: top_p is 0.95 there, and min_p 0.05.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from ndani.errors import BadRequest
from ndani.types import Sampling

INTEGER_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "seed", "num_predict", "top_k", "repeat_last_n")
FLOAT_OPTIONS = ("top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty", "frequency_penalty")
_BOOL = ("use_mmap",)
OPTIONS = frozenset((*INTEGER_OPTIONS, *FLOAT_OPTIONS, *_BOOL, "stop"))

#: The valid range of each option, both ends included. Other values make no sense to any sampler.
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
    "seed": (-(2**63), 2**64 - 1),  # a time in nanoseconds is a common seed; it is reduced to the engine's 32 bits
    "num_thread": (-1, 512),  # llama.cpp aborts above its limit of 512; 0 and below mean automatic
}

#: Ollama's defaults. Options of a runner (its context, batch, threads and GPU) stay None here.
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

#: An answer is never longer than this many contexts, whatever the request wants.
MAX_CONTEXTS = 10


def parse_options(options: dict[str, Any]) -> tuple[Sampling, list[str]]:
    """Parse options by name, from a request or a model's parameters. Returns them and the names of unknown options. Raises BadRequest."""
    values: dict[str, Any] = {}
    ignored: list[str] = []
    for name, value in options.items():
        if value is None:
            continue
        if name not in OPTIONS:
            ignored.append(name)
            continue
        values[name] = _parse_option(name, value)
    return Sampling(**values), ignored


def _parse_option(name: str, value: Any) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
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
    if not is_number:
        raise BadRequest(f'option "{name}" must be of type {"integer" if name in INTEGER_OPTIONS else "float32"}')
    low, high = range_of(name)
    if not low <= value <= high:
        raise BadRequest(f'option "{name}" must be between {_format_number(low)} and {_format_number(high)}')
    if name == "seed":
        return int(value) if value < 0 else int(value) & 0x7FFFFFFF
    return int(value) if name in INTEGER_OPTIONS else float(value)


def range_of(name: str) -> tuple[float, float]:
    """The smallest and the largest value of an option that is a number."""
    return _RANGE.get(name, (-(2**31), 2**31 - 1) if name in INTEGER_OPTIONS else (-1e38, 1e38))


def _format_number(number: float) -> str:
    """Write a whole number with all its digits, so that a user can copy it."""
    return str(number) if isinstance(number, int) else f"{number:g}"


def merge(*layers: Sampling) -> Sampling:
    """Merge several Samplings field by field: the first one that sets a field wins, DEFAULTS come last."""
    merged = DEFAULTS
    for layer in reversed(layers):
        fields_set = {name: value for name in FIELDS if (value := getattr(layer, name)) is not None}
        merged = replace(merged, **fields_set) if fields_set else merged
    return merged


def translate(sampling: Sampling, num_ctx: int) -> dict[str, Any]:
    """The fields of the engine's request for a merged Sampling; `num_ctx` is the context of the request."""
    max_tokens = MAX_CONTEXTS * num_ctx
    num_predict = sampling.num_predict
    assert num_predict is not None and sampling.seed is not None and sampling.repeat_last_n is not None and sampling.num_keep is not None
    return {
        # The engine generates one token even for 0; it is left out of the answer. Negative means unlimited, up to the maximum.
        "n_predict": min(max(num_predict, 1), max_tokens) if num_predict >= 0 else max_tokens,
        "seed": sampling.seed if sampling.seed >= 0 else 0xFFFFFFFF,
        "n_keep": min(max(sampling.num_keep, -1), num_ctx - 1),
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "typical_p": sampling.typical_p,
        "repeat_last_n": min(sampling.repeat_last_n, num_ctx)
        if sampling.repeat_last_n >= 0
        else num_ctx,  # the engine allocates memory for each
        "repeat_penalty": sampling.repeat_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "stop": list(sampling.stop or ()),
        "cache_prompt": True,
    }
