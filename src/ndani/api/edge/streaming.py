"""Answers as responses: the first event is awaited before a status is sent, then a line for each event."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ndani.api.edge.connection import ChunkedBody, chunked_body
from ndani.api.edge.faults import failure, fault
from ndani.api.edge.json_response import JSON, encode
from ndani.errors import NdaniError
from ndani.types import Done, Event, Rendered, Text

NDJSON = "application/x-ndjson"

RenderEvent = Callable[[Event], bytes]

Fold = Callable[[str, Done], bytes]


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
                await send({"type": "http.response.body", "body": encode(failure(error)) + b"\n", "more_body": True})
            except Exception as error:
                last = encode(failure(fault(error))) + b"\n"
                await send({"type": "http.response.body", "body": last, "more_body": False})
                raise  # the journal notes it
            await send({"type": "http.response.body", "body": b"", "more_body": False})
