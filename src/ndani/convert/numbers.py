"""Numbers out of a config.json: the right type and a possible size, or one sentence that names the key."""

from __future__ import annotations

import math
from typing import Any

from ndani.errors import BadRequest

#: No length, count or size of a model is larger.
MOST = 1 << 31


def whole(config: dict[str, Any], name: str, default: int | None = None) -> int:
    """A whole number above zero. Raises BadRequest when it is missing and there is no default, or is none."""
    value = config.get(name)
    if value is None and default is not None:
        return default
    if value is None:
        raise BadRequest(f"config.json does not say {name}; send the model's own config.json")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < MOST:
        raise BadRequest(f"config.json says {name}, and it is not a whole number above 0")
    return value


def fraction(config: dict[str, Any], name: str, default: float | None = None) -> float:
    """A finite number above zero, as a float."""
    value = config.get(name)
    if value is None and default is not None:
        return default
    if value is None:
        raise BadRequest(f"config.json does not say {name}; send the model's own config.json")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise BadRequest(f"config.json says {name}, and it is not a number above 0")
    return float(value)
