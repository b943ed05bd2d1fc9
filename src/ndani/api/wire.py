"""Bytes in, bytes out: JSON bodies decoded, the first event awaited before a status is sent, NDJSON framed.

One error handler serves every dialect: it is told how its errors look (`Shape`). No route writes an error body.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ndani.api.connection import pipe
from ndani.errors import BadRequest, Cancelled, Failed, NdaniError
from ndani.types import Done, Event, Outlet, Progress, Rendered, Text

JSON = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"

Render = Callable[[Event], bytes]
Fold = Callable[[str, Done], bytes]
Step = TypeVar("Step")

#: What looks like half of a pair of surrogates in a JSON text.
_HALF, _BACKSLASH = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}"), ord("\\")
#: A byte that is no UTF-8, as Python keeps it.
_STRAY = re.compile("[\udc80-\udcff]")

_encode = msgspec.json.Encoder().encode


def encode(value: object) -> bytes:
    """JSON of plain values."""
    return _encode(value)


def reply(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """One JSON answer."""
    return Response(_encode(value), status, headers, JSON)


def failure(error: NdaniError) -> dict[str, str]:
    """An error in Ollama's shape."""
    return {"error": str(error)}


def fault(error: BaseException) -> Failed:
    """A fault of ours as an error: its kind and place, without its words, which could quote a prompt."""
    trace, place = error.__traceback__, "ndani"
    while trace:
        if "ndani" in trace.tb_frame.f_code.co_filename:
            place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return Failed(f"ndani met a fault of its own ({type(error).__name__} at {place}); please report it")


async def decode(request: Request) -> dict[str, Any]:
    """The body as an object with lower-case names, as Go's decoder matches them; `null` is an empty object.

    Raises BadRequest: `missing request body`, or a sentence that says where the JSON breaks and never quotes it;
    Cancelled when the client leaves before its end.
    """
    try:
        body = await request.body()
    except ClientDisconnect:
        raise Cancelled("request canceled") from None
    if not body.strip():
        raise BadRequest("missing request body")
    try:
        value = await _decoded(body)
    except msgspec.DecodeError as error:
        raise BadRequest("unexpected EOF" if "truncated" in str(error) else f"invalid JSON: {_place(error)}") from None
    except (UnicodeDecodeError, RecursionError):
        raise BadRequest("invalid JSON: it is not UTF-8 text, or nested too deeply") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest("the request body must be a JSON object")
    return {key.lower(): part for key, part in value.items()}


async def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # What Go's decoder reads as U+FFFD: bytes that are no UTF-8 (a Latin-1 terminal, a cut text), and half of a pair of
        # surrogates (JavaScript cuts texts inside an emoji and writes the half as an escape).
        mended = await asyncio.to_thread(_mended, body)  # a large body takes a while to look at
        if mended == body:
            raise
        return msgspec.json.decode(mended)


def _mended(body: bytes) -> bytes:
    """A JSON text in which every byte that is no UTF-8 and every half of a pair of surrogates is U+FFFD."""
    body = _STRAY.sub("\ufffd", body.decode("utf-8", "surrogateescape")).encode()
    pieces, done, paired = [], 0, -1
    for found in _HALF.finditer(body):
        at = first = found.start()
        while first > done and body[first - 1] == _BACKSLASH:
            first -= 1
        if at < paired or (at - first) % 2:  # the other half of a pair, or what an escaped backslash stands before
            continue
        after = _HALF.match(body, found.end()) if body[at + 3] in b"89abAB" else None
        if after and body[after.start() + 3] in b"cdefCDEF":
            paired = after.end()
            continue
        pieces += [body[done:at], rb"\ufffd"]
        done = found.end()
    return b"".join(pieces) + body[done:]


def _place(error: msgspec.DecodeError) -> str:
    text = str(error).removeprefix("JSON is malformed: ")
    return text if "`" not in text else "a value cannot be read"


async def progress(steps: AsyncGenerator[Step], stream: bool, line: Callable[[Step], bytes]) -> Response:
    """The response to long work: a line per step, or only the last step when not streaming."""
    try:
        step = await anext(steps)
        if stream:
            return Lines(line(step), steps, line)
        async for later in steps:
            step = later
        return Response(line(step)[:-1], 200, None, JSON)
    except BaseException:
        await steps.aclose()
        raise


def step_line(step: Progress) -> bytes:
    """A line for a step of a pull, a push or a create."""
    said = {"status": step.status, "digest": step.digest, "total": step.total, "completed": step.completed}
    return _encode({key: value for key, value in said.items() if value is not None}) + b"\n"


async def answer(
    events: AsyncGenerator[Event], stream: bool, render: Render, fold: Fold, headers: dict[str, str], outlet: Outlet | None = None
) -> Response:
    """The response to an answer being made. The first event is awaited here: what fails before it has its own status.

    After it, texts come by `outlet`. Not streaming is the stream, folded. Loads and unloads are one JSON object even when
    streaming, as in Ollama.
    """
    try:
        first = await anext(events)
        if isinstance(first, Done) and first.reason in ("load", "unload"):
            await events.aclose()
            return Response(fold("", first), 200, headers, JSON)
        if isinstance(first, Rendered):
            await events.aclose()
            return Response(render(first)[:-1], 200, headers, JSON)
        if stream:
            return Lines(render(first), events, render, headers, outlet)
        said: list[str] = []
        if outlet:
            outlet.ready, outlet.put = lambda: True, lambda text: said.append(text.text)
        event: Event = first
        while isinstance(event, Text):
            said.append(event.text)
            event = await anext(events)
        assert isinstance(event, Done)  # a prompt comes first or not at all
        await events.aclose()
        return Response(fold("".join(said), event), 200, headers, JSON)
    except BaseException:
        await events.aclose()
        raise


class Lines(Response):
    """Newline-delimited JSON, each line sent as it comes. An error after the first line is the last line."""

    media_type = NDJSON

    def __init__(
        self,
        first: bytes,
        rest: AsyncGenerator[Any],
        render: Callable[[Any], bytes],
        headers: dict[str, str] | None = None,
        outlet: Outlet | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self._first, self._rest, self._render, self._outlet = first, rest, render, outlet
        self.body = b""
        self.init_headers(headers)
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._rest) as rest:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            # Middleware looks at starts only; the body goes to the server itself, and texts straight to the socket.
            direct, render, outlet = pipe(scope), self._render, self._outlet
            send = direct.send if direct else send
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
            if outlet and direct:
                write = direct.write
                outlet.ready, outlet.put = direct.ready, lambda text: write(render(text))
            try:
                async for event in rest:
                    await send({"type": "http.response.body", "body": self._render(event), "more_body": True})
            except NdaniError as error:
                await send({"type": "http.response.body", "body": _encode(failure(error)) + b"\n", "more_body": True})
            except Exception as error:
                last = _encode(failure(fault(error))) + b"\n"
                await send({"type": "http.response.body", "body": last, "more_body": False})
                raise  # the journal notes it
            await send({"type": "http.response.body", "body": b"", "more_body": False})


class Clock:
    """`created_at` stamps: RFC 3339 with nanoseconds, UTC. The second's text is made once a second."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def now(self) -> str:
        """The stamp of this moment."""
        ns = time.time_ns()
        second, rest = divmod(ns, 1_000_000_000)
        if second != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{rest:09d}Z"


def local_stamp(seconds: float) -> str:
    """A time with the machine's own offset, as listings show `modified_at`."""
    whole = int(seconds)
    rest = int((seconds - whole) * 1e9)
    local = time.localtime(whole)
    offset = time.strftime("%z", local)
    zone = "Z" if offset == "+0000" else f"{offset[:3]}:{offset[3:]}"
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', local)}.{rest:09d}{zone}"
