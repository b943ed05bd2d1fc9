"""JSON responses: small ones in one step, large ones in chunks, so that the event loop can serve others in between.

Streams of JSON lines are not here, but in `streaming` (answers of a model) and `long_work` (steps of a pull, a create, …).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import msgspec
from starlette.responses import Response

from ndani.api.edge import media_types

JSON = f"{media_types.JSON}; charset=utf-8"

#: Seconds of work on the event loop after which others are let in.
_TIME_SLICE = 0.002

#: Elements of a list that are encoded in one step.
_ELEMENTS_PER_CHUNK = 512

_encode = msgspec.json.Encoder().encode


def encode(value: object) -> bytes:
    """JSON of plain values."""
    return _encode(value)


def respond(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response of one JSON value."""
    return Response(_encode(value), status, headers, JSON)


async def respond_large(value: object, headers: dict[str, str] | None = None) -> Response:
    """A response of one JSON value that may be large: encoded in chunks, with other work in between."""
    time_slice, chunks = TimeSlice(), []
    for chunk in _chunks(value):
        chunks.append(chunk)
        await time_slice.yield_if_over()
    return Response(b"".join(chunks), 200, headers, JSON)


class TimeSlice:
    """Cooperative scheduling for long work on the event loop: `await yield_if_over()` after each short step."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    async def yield_if_over(self) -> None:
        """Let other tasks run if this one has used up its time slice."""
        if time.perf_counter() - self._started > _TIME_SLICE:
            await asyncio.sleep(0)
            self._started = time.perf_counter()


def _chunks(value: object) -> Iterator[bytes]:
    separator = b""
    if isinstance(value, dict) and value:
        for key, member in value.items():
            yield (separator or b"{") + _encode(str(key)) + b":"
            yield from _chunks(member)
            separator = b","
        yield b"}"
    elif isinstance(value, (list, tuple)) and value and isinstance(value[0], (list, tuple, dict)):
        for element in value:
            yield separator or b"["
            yield from _chunks(element)
            separator = b","
        yield b"]"
    elif isinstance(value, (list, tuple)) and len(value) > _ELEMENTS_PER_CHUNK:
        for start in range(0, len(value), _ELEMENTS_PER_CHUNK):
            yield (separator or b"[") + _encode(value[start : start + _ELEMENTS_PER_CHUNK])[1:-1]
            separator = b","
        yield b"]"
    else:
        yield _encode(value)
