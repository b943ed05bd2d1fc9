"""Answers of a model as responses: one line per event, or one JSON object.

The first event is awaited before the status is sent. `connection` writes the bytes; how an event or an error looks is the
dialect's. Steps of long work (pull, create, …) are in `long_work`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ndani.api.edge.connection import ChunkedBody, chunked_body
from ndani.api.edge.faults import ErrorFormat, fault
from ndani.api.edge.json_response import JSON
from ndani.errors import NdaniError
from ndani.types import Done, Event, Rendered, Text

NDJSON = "application/x-ndjson"

#: Writes one event as a line.
FormatEvent = Callable[[Event], bytes]

#: Writes a whole answer, its text and its end, as one JSON object.
Fold = Callable[[str, Done], bytes]


class StreamSink:
    """Writes the texts of an answer as lines, straight to the socket. Ready once the response has begun there."""

    def __init__(self, render: FormatEvent) -> None:
        self._render = render
        self._body: ChunkedBody | None = None

    def begin(self, body: ChunkedBody) -> None:
        """The response has begun: its head and its first line are sent."""
        self._body = body

    def ready(self) -> bool:
        """Whether the response has begun and its client keeps up."""
        return self._body is not None and self._body.ready()

    def put(self, text: Text) -> None:
        """Write the text's line."""
        assert self._body is not None  # it was ready
        self._body.write(self._render(text))


class CollectedSink:
    """Collects the texts of an answer that will be one JSON object, so it is always ready."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def ready(self) -> bool:
        """Always true."""
        return True

    def put(self, text: Text) -> None:
        """Keep the text until the answer ends."""
        self._texts.append(text.text)

    def folded(self) -> str:
        """All texts, joined."""
        return "".join(self._texts)


def open_sink(stream: bool, render: FormatEvent) -> StreamSink | CollectedSink:
    """The sink of a response: for a stream of lines, or for one object."""
    return StreamSink(render) if stream else CollectedSink()


async def respond(
    events: AsyncGenerator[Event],
    sink: StreamSink | CollectedSink,
    render: FormatEvent,
    fold: Fold,
    error_format: ErrorFormat,
    headers: dict[str, str],
) -> Response:
    """The response to an answer in progress. The first event is awaited here, so that what fails before it has its own status.

    A `LineSink` makes it a stream, a `FoldedSink` one object; texts arrive at the sink or as events. Loads and unloads are
    one JSON object even when streaming, as in Ollama.
    """
    try:
        first = await anext(events)
        if isinstance(first, Done) and first.reason in ("load", "unload"):
            await events.aclose()
            return Response(fold("", first), 200, headers, JSON)
        if isinstance(first, Rendered):
            await events.aclose()
            return Response(render(first)[:-1], 200, headers, JSON)
        if isinstance(sink, StreamSink):
            return Lines(render(first), events, render, error_format, headers, sink)
        event: Event = first
        while isinstance(event, Text):
            sink.put(event)
            event = await anext(events)
        assert isinstance(event, Done)  # a Rendered comes first or not at all
        await events.aclose()
        return Response(fold(sink.folded(), event), 200, headers, JSON)
    except BaseException:
        await events.aclose()
        raise


class Lines(Response):
    """Newline-delimited JSON; each line is sent as soon as it exists. An error after the first line is the last line."""

    media_type = NDJSON

    def __init__(
        self,
        first: bytes,
        events: AsyncGenerator[Any],
        render: Callable[[Any], bytes],
        error_format: ErrorFormat,
        headers: dict[str, str] | None = None,
        sink: StreamSink | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self._first, self._events, self._render, self._error_format, self._sink = first, events, render, error_format, sink
        self.body = b""
        self.init_headers(headers)
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events) as events:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            # No middleware needs the body, so it goes past them to the server, and texts straight to the socket.
            direct = chunked_body(scope)
            send = direct.send if direct else send
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
            if self._sink and direct:
                self._sink.begin(direct)
            try:
                async for event in events:
                    await send({"type": "http.response.body", "body": self._render(event), "more_body": True})
            except NdaniError as error:
                await send({"type": "http.response.body", "body": self._error_format.stream_end(error), "more_body": True})
            except Exception as exception:
                last = self._error_format.stream_end(fault(exception))
                await send({"type": "http.response.body", "body": last, "more_body": False})
                raise  # the access log writes it down
            await send({"type": "http.response.body", "body": b"", "more_body": False})
