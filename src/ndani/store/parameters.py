"""A model's default options: their names and types, parsed from text or JSON, printed in Go's syntax.

What an option does, and which values make sense, is in `engines.sampling`; the syntax of a PARAMETER line is in `modelfile`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ndani.control_characters import is_visible
from ndani.errors import BadRequest

#: The value of an option in a Modelfile. A list is a tuple, so that Modelfiles can be compared.
ParameterValue = int | float | bool | tuple[str, ...]

#: Every option that a model may have, and its type. `draft_num_predict` is stored for Ollama and has no effect here.
TYPES = {
    **dict.fromkeys(("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "seed", "num_predict"), "int"),
    **dict.fromkeys(("top_k", "repeat_last_n", "draft_num_predict"), "int"),
    **dict.fromkeys(("top_p", "min_p", "typical_p", "temperature", "repeat_penalty"), "float"),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), "float"),
    "use_mmap": "bool",
    "stop": "list",
}

#: Names that other tools use for the same option.
ALIASES = {"context_length": "num_ctx"}

#: Accepted and dropped, as in Ollama, with a warning.
DEPRECATED = frozenset(
    (
        "penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock", "mirostat", "mirostat_tau",
        "mirostat_eta",
    )
)  # fmt: skip

#: Stored, but without effect in this version.
WITHOUT_EFFECT = frozenset(("draft_num_predict",))

_INT = re.compile(r"[+-]?[0-9]+\Z")
_FLOAT = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?\Z")
_TRUE, _FALSE = ("1", "t", "T", "true", "TRUE", "True"), ("0", "f", "F", "false", "FALSE", "False")
_LARGEST_FLOAT = 3.4028234663852886e38  # options are 32-bit floats in Ollama
_OLLAMA_TYPE_NAMES = {"int": "integer", "float": "float32", "bool": "boolean", "list": "array"}
_ESCAPES = {"\a": r"\a", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v", '"': r"\"", "\\": r"\\"}


def parse_parameter(name: str, text: str) -> ParameterValue:
    """The value of the option `name` from a PARAMETER line; a `stop` is a tuple of one text.

    Raises BadRequest in Ollama's words for an unknown name and for a text that is not of the option's type.
    """
    kind = TYPES.get(ALIASES.get(name, name))
    if kind == "list":
        return (text,)
    if kind == "int" and _INT.match(text) and len(text) <= 20 and -(2**63) <= int(text) < 2**63:
        return int(text)
    if kind == "float" and _FLOAT.match(text) and abs(float(text)) <= _LARGEST_FLOAT:
        return float(text)
    if kind == "bool" and text in (*_TRUE, *_FALSE):
        return text in _TRUE
    raise BadRequest(f"invalid {kind} value [{excerpt(text)}]") if kind else _unknown(name)


def check_parameters(parameters: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The parameters of a create request: as a params layer holds them, and a sentence for each that was dropped.

    Raises BadRequest for an unknown name or a wrong type (both accepted by Ollama, which then fails at use).
    """
    checked: dict[str, Any] = {}
    warnings = []
    for name, value in parameters.items():
        if name in DEPRECATED:
            warnings.append(deprecation_warning(name))
        elif value is not None:
            checked[ALIASES.get(name, name)] = _checked(name, value)
    return checked, tuple(warnings)


def deprecation_warning(name: str) -> str:
    """The sentence about an option that is accepted and dropped; its first words are Ollama's."""
    return f"parameter {name} is deprecated: nothing obeys it, and it is left out"


def format_parameters(params: Mapping[str, Any]) -> str:
    """Options as `show` prints them: by name, the name padded to 30 columns, the value in Go's syntax, one line per item."""
    return "\n".join(f"{excerpt(name):<30} {go_literal(item)}" for name, value in sorted(params.items()) for item in as_list(value))


def as_list(value: Any) -> list[Any]:
    """The items of a list, or a list of the one value."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def go_literal(value: Any) -> str:
    """A value in Go's source syntax: strings in double quotes, with invisible characters escaped."""
    return f'"{"".join(_escaped(char) for char in value)}"' if isinstance(value, str) else go_text(value)


def go_text(value: Any) -> str:
    """A value as Go prints it, strings unchanged. Whole numbers keep all digits, so that they can be parsed again."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _float(value)
    return str(value)


def _checked(name: str, value: Any) -> Any:
    kind = TYPES.get(ALIASES.get(name, name))
    if kind is None:
        raise _unknown(name)
    if kind == "list" and isinstance(value, (list, tuple)):
        if not all(isinstance(item, str) for item in value):
            raise BadRequest(f'option "{name}" must be of an array of strings')
        return list(value)
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind in ("int", "float") and isinstance(value, (int, float)) and not isinstance(value, bool):
        # JSON has one kind of number: 2048.0 is a whole one, and 1.0 is written 1, as Go writes it.
        if -(2**63) <= value < 2**63 and value == int(value):
            return int(value)
        if kind == "float" and abs(value) <= _LARGEST_FLOAT:
            return float(value)
    raise BadRequest(f'option "{name}" must be of type {_OLLAMA_TYPE_NAMES[kind]}')


def _unknown(name: str) -> BadRequest:
    return BadRequest(f"unknown parameter '{excerpt(name)}'")


def excerpt(text: str) -> str:
    """The first 80 characters of a text from outside, for use in an error message: invisible characters are escaped."""
    visible = "".join(char if is_visible(char) else _escaped(char) for char in text[:80])
    return f"{visible}…" if len(text) > 80 else visible


def _float(number: float) -> str:
    """The fewest digits that read back as the same number; a whole one without a point, as in Go."""
    if not math.isfinite(number):
        return "NaN" if math.isnan(number) else "+Inf" if number > 0 else "-Inf"
    if number.is_integer() and abs(number) < 1e21:
        return f"{number:.0f}"
    return repr(number)


def _escaped(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if is_visible(char):
        return char
    code = ord(char)
    if 0xD800 <= code < 0xE000:
        return r"\ufffd"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
