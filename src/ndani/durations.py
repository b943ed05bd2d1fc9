"""Durations in Go's syntax (`1h30m`, `-1s`, `1.5h`), which Ollama's users type."""

from __future__ import annotations

import re

from ndani.errors import BadRequest

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?\Z")

#: Characters of the longest duration that is parsed. A sensible one has fewer than thirty.
_MAX_LENGTH = 500
#: Characters of an invalid duration that the error quotes.
_MAX_QUOTED = 80


def parse_duration(text: str) -> float:
    """Seconds of a Go duration, or of a plain number of seconds. Raises BadRequest with Go's own sentence."""
    if len(text) > _MAX_LENGTH:  # parsing blocks the event loop, and a request body may be very long
        raise _invalid(text)
    if _NUMBER.match(text):
        return float(text)
    body = text[1:] if text[:1] in ("+", "-") else text
    sign = -1.0 if text.startswith("-") else 1.0
    seconds, offset = 0.0, 0
    for part in _PART.finditer(body):
        if part.start() != offset:
            break
        seconds += float(part[1]) * _UNITS[part[2]]
        offset = part.end()
    if not body or offset != len(body):
        raise _invalid(text)
    return sign * seconds


def _invalid(text: str) -> BadRequest:
    return BadRequest(f'time: invalid duration "{text if len(text) <= _MAX_QUOTED else text[:_MAX_QUOTED] + "…"}"')
