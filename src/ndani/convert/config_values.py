"""Numbers, switches and words out of a config.json: of the right type and a possible size, or one sentence that names the key.

What is null counts as not said, as for its publishers' library, except where a family says otherwise (`llama`: a window).
"""

from __future__ import annotations

from typing import Any, TypeVar

from ndani.errors import BadRequest, Unsupported

_N = TypeVar("_N", int, float)

#: No length, count or size of a model is larger.
MAX_SIZE = 1 << 31
#: What a float of 32 bits can hold above zero, and the engine has no other.
_MIN_FLOAT, _MAX_FLOAT = 1.2e-38, 3.4e38


def read_integer(config: dict[str, Any], name: str, default: int | None = None, *, minimum: int = 1) -> int:
    """A whole number, of at least `least`. Raises BadRequest when it is missing and there is no default, or is none."""
    value = config.get(name)
    if value is None:
        return _default_value(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value < MAX_SIZE:
        raise BadRequest(f"config.json says {name}, and it is not a whole number above {minimum - 1}; send the model's own")
    return value


def read_float(config: dict[str, Any], name: str, default: float | None = None) -> float:
    """A number above zero that a float of 32 bits can hold. Raises BadRequest as `whole` does."""
    value = config.get(name)
    if value is None:
        return _default_value(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _MIN_FLOAT <= value <= _MAX_FLOAT:
        raise BadRequest(f"config.json says {name}, and it is not a number above 0 that the engine can hold; send the model's own")
    return float(value)


def read_bool(config: dict[str, Any], name: str, default: bool, file: str = "config.json") -> bool:
    """True or false. Raises BadRequest for what is neither."""
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadRequest(f"{file} says {name}, and it is neither true nor false; send the model's own")
    return default if value is None else value


def require_value(config: dict[str, Any], name: str, known: str, what: str) -> None:
    """Raise Unsupported when a key has another value than the one that the engine knows, and that counts where none is said."""
    value = config.get(name)
    if value is not None and value != known:
        raise Unsupported(f"{what} whose {name} is {str(value)[:30]} cannot be converted; {known} can")


def _default_value(name: str, default: _N | None) -> _N:
    if default is None:
        raise BadRequest(f"config.json does not say {name}; send the model's own config.json")
    return default
