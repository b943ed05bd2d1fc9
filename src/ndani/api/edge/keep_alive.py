"""How long a model stays loaded after a request, as every dialect spells it."""

from __future__ import annotations

from ndani.durations import parse_duration


def keep_alive_seconds(value: float | str | None) -> float | None:
    """Seconds, of a number or of a Go duration such as 5m; negative is for ever, None where nothing is said. Raises BadRequest."""
    if value is None:
        return None
    if isinstance(value, str):
        return parse_duration(value.strip())
    return max(-1.0, min(value, 1e12))  # a JSON integer may be too large for a float
