"""Numbers out of a config.json: the right type and a possible size, or one sentence that names the key."""

from __future__ import annotations

from typing import Any

from ndani.errors import BadRequest

#: No length, count or size of a model is larger.
MOST = 1 << 31
#: What a float of 32 bits can hold above zero, and the engine has no other.
_LEAST, _LARGEST = 1.2e-38, 3.4e38


def whole(config: dict[str, Any], name: str, default: int | None = None) -> int:
    """A whole number above zero. Raises BadRequest when it is missing and there is no default, or is none."""
    value = config.get(name)
    if value is None and default is not None:
        return default
    if value is None:
        raise BadRequest(f"config.json does not say {name}; send the model's own config.json")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < MOST:
        raise BadRequest(f"config.json says {name}, and it is not a whole number above 0; send the model's own")
    return value


def fraction(config: dict[str, Any], name: str, default: float | None = None) -> float:
    """A number above zero that a float of 32 bits can hold. Raises BadRequest as `whole` does."""
    value = config.get(name)
    if value is None and default is not None:
        return default
    if value is None:
        raise BadRequest(f"config.json does not say {name}; send the model's own config.json")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _LEAST <= value <= _LARGEST:
        raise BadRequest(f"config.json says {name}, and it is not a number above 0 that the engine can hold; send the model's own")
    return float(value)
