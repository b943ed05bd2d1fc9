"""JSON responses: short ones at once, long ones in pieces, so that others have their turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import msgspec
from starlette.responses import Response

JSON = "application/json; charset=utf-8"


#: Seconds after which work that comes in pieces lets others take their turn.
_TURN = 0.002

_AT_ONCE = 512

_encode = msgspec.json.Encoder().encode


def encode(value: object) -> bytes:
    """JSON of plain values."""
    return _encode(value)


def reply(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """One JSON answer."""
    return Response(_encode(value), status, headers, JSON)


async def reply_long(value: object, headers: dict[str, str] | None = None) -> Response:
    """One JSON answer whose lists may be long: written piece by piece, and others have their turn in between."""
    turns, pieces = Turns(), []
    for piece in _pieces(value):
        pieces.append(piece)
        await turns.give()
    return Response(b"".join(pieces), 200, headers, JSON)


class Turns:
    """Long work on the loop, cut into short pieces: `await give()` after each."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    async def give(self) -> None:
        """Let others go first, if this has lasted."""
        if time.perf_counter() - self._began > _TURN:
            await asyncio.sleep(0)
            self._began = time.perf_counter()


def _pieces(value: object) -> Iterator[bytes]:
    mark = b""
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield (mark or b"{") + _encode(str(key)) + b":"
            yield from _pieces(part)
            mark = b","
        yield b"}"
    elif isinstance(value, (list, tuple)) and value and isinstance(value[0], (list, tuple, dict)):
        for part in value:
            yield mark or b"["
            yield from _pieces(part)
            mark = b","
        yield b"]"
    elif isinstance(value, (list, tuple)) and len(value) > _AT_ONCE:
        for at in range(0, len(value), _AT_ONCE):
            yield (mark or b"[") + _encode(value[at : at + _AT_ONCE])[1:-1]
            mark = b","
        yield b"]"
    else:
        yield _encode(value)
