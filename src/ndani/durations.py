"""Durations as Go writes them (`1h30m`, `-1s`, `1.5h`), which is how Ollama's users type them."""

from __future__ import annotations

import re

from ndani.errors import BadRequest

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?\Z")

#: Letters of the longest duration that is read; whoever means something needs fewer than thirty.
_MOST = 500
#: Letters of one that is wrong that are repeated.
_TOLD = 80


def parse_duration(text: str) -> float:
    """Seconds of a Go duration, or of a bare number of seconds. Raises BadRequest with Go's own sentence."""
    if len(text) > _MOST:  # a body may be as long as a book, and nobody else is served while it is read
        raise _invalid(text)
    if _NUMBER.match(text):
        return float(text)
    body = text[1:] if text[:1] in ("+", "-") else text
    sign = -1.0 if text.startswith("-") else 1.0
    seconds, at = 0.0, 0
    for part in _PART.finditer(body):
        if part.start() != at:
            break
        seconds += float(part[1]) * _UNITS[part[2]]
        at = part.end()
    if not body or at != len(body):
        raise _invalid(text)
    return sign * seconds


def _invalid(text: str) -> BadRequest:
    return BadRequest(f'time: invalid duration "{text if len(text) <= _TOLD else text[:_TOLD] + "…"}"')
