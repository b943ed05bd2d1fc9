"""Read numbers, flags and strings from a config.json: of the right type and in range, or one sentence that names the key.

Null counts as a missing key, as in the publishers' library, except where a family says otherwise (`llama`: a window).
"""

from __future__ import annotations

from typing import Any, TypeVar

from ndani.errors import BadRequest, Unsupported

_N = TypeVar("_N", int, float)

#: No length, count or size of a model is this large.
MAX_SIZE = 1 << 31
#: The positive range of a 32-bit float, which is the engine's type for such values.
_MIN_FLOAT, _MAX_FLOAT = 1.2e-38, 3.4e38


def read_integer(config: dict[str, Any], name: str, default: int | None = None, *, minimum: int = 1) -> int:
    """An integer, not below `minimum`. Raises BadRequest when the key is missing without a default, or has another value."""
    value = config.get(name)
    if value is None:
        return _default_value(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value < MAX_SIZE:
        raise BadRequest(f"config.json says {name}, and it is not a whole number above {minimum - 1}; send the model's own")
    return value


def read_float(config: dict[str, Any], name: str, default: float | None = None) -> float:
    """A positive number that fits a 32-bit float. Raises BadRequest as `read_integer` does."""
    value = config.get(name)
    if value is None:
        return _default_value(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _MIN_FLOAT <= value <= _MAX_FLOAT:
        raise BadRequest(f"config.json says {name}, and it is not a number above 0 that the engine can hold; send the model's own")
    return float(value)


def read_bool(config: dict[str, Any], name: str, default: bool, file: str = "config.json") -> bool:
    """True or false. Raises BadRequest for any other value."""
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadRequest(f"{file} says {name}, and it is neither true nor false; send the model's own")
    return default if value is None else value


def require_value(config: dict[str, Any], name: str, supported: str, what: str) -> None:
    """Raise Unsupported when a key is present with another value than the one that the engine supports, which is also its default."""
    value = config.get(name)
    if value is not None and value != supported:
        raise Unsupported(f"{what} whose {name} is {str(value)[:30]} cannot be converted; {supported} can")


def _default_value(name: str, default: _N | None) -> _N:
    if default is None:
        raise BadRequest(f"config.json does not say {name}; send the model's own config.json")
    return default
