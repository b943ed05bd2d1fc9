"""Bytes in, bytes out: JSON bodies decoded, the first event awaited before a status is sent, NDJSON framed.

One error handler serves every dialect: it is told how its errors look (`Shape`). No route writes an error body.
"""

from __future__ import annotations

import asyncio
import codecs
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ndani.api.edge.connection import ChunkedBody, chunked_body
from ndani.errors import BadRequest, Cancelled, Failed, NdaniError
from ndani.types import Done, Event, Rendered, Text
from ndani.untrusted_json import MARK, InvalidJson, require_bounds

JSON = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"

RenderEvent = Callable[[Event], bytes]
Fold = Callable[[str, Done], bytes]

#: What a body may hold: a conversation of 30,000 turns, or 500,000 token ids. More would be read while everybody else waits.
MOST_VALUES, MOST_CONTAINERS = 500_000, 30_000
#: Bytes of a body that are looked at without a thread.
_SHORT = 1 << 16
#: Seconds after which work that comes in pieces lets others take their turn.
_TURN = 0.002
_AT_ONCE = 512
#: Bytes of a body that are mended at once.
_PIECE = 1 << 16

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
    """The body as an object with lower-case names, as Go's decoder matches them; `null` is an empty object. A byte-order mark
    in front is passed over: Windows' editors and shells write one into a file that is sent.

    Raises BadRequest: `missing request body`, or a sentence that says where the JSON breaks and never quotes it;
    Cancelled when the client leaves before its end.
    """
    try:
        body = await request.body()
    except ClientDisconnect:
        raise Cancelled("request canceled") from None
    if not body or body.isspace():
        raise BadRequest("missing request body")
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise BadRequest("the request body is compressed; send it as it is, without Content-Encoding")
    body = body.removeprefix(MARK)
    try:
        bounded = partial(require_bounds, body, values=MOST_VALUES, containers=MOST_CONTAINERS)
        if len(body) > _SHORT:
            await asyncio.to_thread(bounded)
        else:
            bounded()
        value = await _decoded(body)
    except InvalidJson as error:
        raise BadRequest(f"invalid JSON: {error}") from None
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
    """A JSON text in which every byte that is no UTF-8 and every half of a pair of surrogates is U+FFFD.

    Made in place and piece by piece: lists of what is between the halves would take fifty times the memory of a hostile body.
    """
    text, reader = bytearray(), codecs.getincrementaldecoder("utf-8")("surrogateescape")
    for at in range(0, len(body), _PIECE):
        piece = reader.decode(body[at : at + _PIECE], final=at + _PIECE >= len(body))
        text += _STRAY.sub("\ufffd", piece).encode()
    whole, done, paired = bytes(text), 0, -1
    for found in _HALF.finditer(whole):
        at = first = found.start()
        while first > done and whole[first - 1] == _BACKSLASH:
            first -= 1
        if at < paired or (at - first) % 2:  # the other half of a pair, or what an escaped backslash stands before
            continue
        after = _HALF.match(whole, found.end()) if whole[at + 3] in b"89abAB" else None
        if after and whole[after.start() + 3] in b"cdefCDEF":
            paired = after.end()
            continue
        done = found.end()
        text[at:done] = rb"\ufffd"
    return bytes(text) if done else whole


def _place(error: msgspec.DecodeError) -> str:
    text = str(error).removeprefix("JSON is malformed: ")
    return text if "`" not in text else "a value cannot be read"


class LineSink:
    """Texts of an answer as lines, written straight to the socket. Ready once the response has begun there."""

    def __init__(self, render: RenderEvent) -> None:
        self._render = render
        self._pipe: ChunkedBody | None = None

    def begin(self, chunked_body: ChunkedBody) -> None:
        """The response has begun: its head and its first line are sent."""
        self._pipe = chunked_body

    def ready(self) -> bool:
        """Whether the response has begun and its client keeps up."""
        return self._pipe is not None and self._pipe.ready()

    def put(self, text: Text) -> None:
        """Write its line."""
        assert self._pipe is not None  # it was ready
        self._pipe.write(self._render(text))


class FoldedSink:
    """Texts of an answer that will be one JSON object: kept until it ends, so always ready."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def ready(self) -> bool:
        """Always."""
        return True

    def put(self, text: Text) -> None:
        """Keep it."""
        self._texts.append(text.text)

    def folded(self) -> str:
        """All texts, joined."""
        return "".join(self._texts)


def open_sink(stream: bool, render: RenderEvent) -> LineSink | FoldedSink:
    """The sink of a response that is a stream of lines, or one object."""
    return LineSink(render) if stream else FoldedSink()


async def respond(
    events: AsyncGenerator[Event], sink: LineSink | FoldedSink, render: RenderEvent, fold: Fold, headers: dict[str, str]
) -> Response:
    """The response to an answer being made. The first event is awaited here: what fails before it has its own status.

    `sink` says whether it is a stream, and is where texts come beside the events. Not streaming is the stream, folded. Loads
    and unloads are one JSON object even when streaming, as in Ollama.
    """
    try:
        first = await anext(events)
        if isinstance(first, Done) and first.reason in ("load", "unload"):
            await events.aclose()
            return Response(fold("", first), 200, headers, JSON)
        if isinstance(first, Rendered):
            await events.aclose()
            return Response(render(first)[:-1], 200, headers, JSON)
        if isinstance(sink, LineSink):
            return Lines(render(first), events, render, headers, sink)
        event: Event = first
        while isinstance(event, Text):
            sink.put(event)
            event = await anext(events)
        assert isinstance(event, Done)  # a prompt comes first or not at all
        await events.aclose()
        return Response(fold(sink.folded(), event), 200, headers, JSON)
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
        sink: LineSink | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self._first, self._rest, self._render, self._sink = first, rest, render, sink
        self.body = b""
        self.init_headers(headers)
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._rest) as rest:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            # Middleware looks at starts only; the body goes to the server itself, and texts straight to the socket.
            direct = chunked_body(scope)
            send = direct.send if direct else send
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
            if self._sink and direct:
                self._sink.begin(direct)
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
        self._text = b""

    def now(self) -> str:
        """The stamp of this moment."""
        return self.stamp().decode()

    def stamp(self) -> bytes:
        """The same as it stands in the line of every token."""
        second, rest = divmod(time.time_ns(), 1_000_000_000)
        if second != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
        return b"%b.%09dZ" % (self._text, rest)


def local_stamp(seconds: float) -> str:
    """A time with the machine's own offset, as listings show `modified_at`."""
    whole = int(seconds)
    rest = int((seconds - whole) * 1e9)
    local = time.localtime(whole)
    offset = time.strftime("%z", local)
    zone = "Z" if offset == "+0000" else f"{offset[:3]}:{offset[3:]}"
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', local)}.{rest:09d}{zone}"
