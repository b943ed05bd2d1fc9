"""Answers of a model as responses: a stream of events, or one body.

The first event is awaited before the status is sent. `connection` writes the bytes; how an event or an error looks is the
dialect's. Steps of long work (pull, create, …) are in `long_work`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ndani.api.edge.connection import ChunkedBody, chunked_body
from ndani.api.edge.faults import ErrorFormat, fault
from ndani.api.edge.json_response import JSON
from ndani.api.edge.running_requests import take_cancellation
from ndani.errors import NdaniError
from ndani.types import Answer, Called, Done, Event, Piece, Rendered, Text, Thought, TokenLogprob, ToolCall

Part = TypeVar("Part")


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """How a dialect writes an answer: as a stream of `media_type`, or as one JSON object.

    `event` returns all bytes of one event in a stream, its end included: it is called for every token, so nothing is added to
    them later. `whole` returns the JSON of a whole answer, and of the event that ended it. `is_single` says of a first
    event that it is the whole answer, and gets one JSON object even where a stream was asked for. `measure` is told the size of
    the prompt, and how much of it was in the prefix cache, before the first event of a stream.
    """

    media_type: str
    event: Callable[[Event], bytes]
    whole: Callable[[Answer, Done | Rendered], bytes]
    is_single: Callable[[Event], bool]
    errors: ErrorFormat
    measure: Callable[[int, int], None] | None = None


class StreamSink:
    """Writes the pieces of an answer straight to the socket. Ready once the response has begun there."""

    def __init__(self, format_event: Callable[[Event], bytes], measure: Callable[[int, int], None] | None = None) -> None:
        self._format_event, self._measure = format_event, measure
        self._body: ChunkedBody | None = None

    def begin(self, body: ChunkedBody) -> None:
        """The response has begun: its head and its first event are sent."""
        self._body = body

    def measure(self, prompt_tokens: int, cached_tokens: int) -> None:
        """Tell the dialect the size of the prompt."""
        if self._measure is not None:
            self._measure(prompt_tokens, cached_tokens)

    def ready(self) -> bool:
        """Whether the response has begun and its client keeps up."""
        return self._body is not None and self._body.ready()

    def put(self, piece: Piece) -> None:
        """Write the piece."""
        assert self._body is not None  # it was ready
        self._body.write(self._format_event(piece))


class CollectedSink:
    """Collects the pieces of an answer that will be one JSON object, so it is always ready."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[ToolCall] = []
        self._logprobs: list[TokenLogprob] = []

    def measure(self, prompt_tokens: int, cached_tokens: int) -> None:
        """Not needed: the usage at the end has it."""

    def ready(self) -> bool:
        """Always true."""
        return True

    def put(self, piece: Piece) -> None:
        """Keep the piece until the answer ends."""
        if isinstance(piece, Called):
            self._calls.append(piece.call)
            return
        (self._texts if isinstance(piece, Text) else self._thoughts).append(piece.text)
        if piece.logprobs:
            self._logprobs += piece.logprobs

    def collected(self) -> Answer:
        """All pieces, joined."""
        return Answer("".join(self._texts), "".join(self._thoughts), tuple(self._calls), tuple(self._logprobs))


def open_sink(stream: bool, response_format: ResponseFormat) -> StreamSink | CollectedSink:
    """The sink of a response: for a stream, or for one object."""
    return StreamSink(response_format.event, response_format.measure) if stream else CollectedSink()


async def respond(
    events: AsyncGenerator[Event], sink: StreamSink | CollectedSink, response_format: ResponseFormat, headers: dict[str, str]
) -> Response:
    """The response to an answer in progress. The first event is awaited here, so that what fails before it has its own status.

    A `StreamSink` makes it a stream, a `CollectedSink` one object; pieces arrive at the sink or as events. Before a stream
    has begun its sink is not ready, so its first piece is an event.
    """
    try:
        event = await anext(events)
        if isinstance(sink, CollectedSink):
            # The engine puts most texts into this sink. One that arrives while nobody waits for it (several in one batch), or
            # with the answer's end, is an event instead.
            while isinstance(event, (Text, Thought, Called)):
                sink.put(event)
                event = await anext(events)
        elif not response_format.is_single(event):
            return StreamedResponse(event, events, response_format.event, response_format.media_type, response_format.errors, headers, sink)
        await events.aclose()
        assert isinstance(event, (Done, Rendered))  # a piece is never the whole answer
        answer = sink.collected() if isinstance(sink, CollectedSink) else Answer()
        return Response(response_format.whole(answer, event), 200, headers, JSON)
    except BaseException:
        await events.aclose()
        raise


class StreamedResponse(Response):
    """A response whose parts are sent as soon as each exists. An error after the first part is the last part.

    `to_bytes` returns all bytes of one part, its end included.
    """

    def __init__(
        self,
        first: Part,
        parts: AsyncGenerator[Part],
        to_bytes: Callable[[Part], bytes],
        media_type: str,
        errors: ErrorFormat,
        headers: dict[str, str] | None = None,
        sink: StreamSink | None = None,
    ) -> None:
        self.status_code, self.media_type = 200, media_type
        self.background = None
        self._first, self._parts, self._to_bytes, self._errors, self._sink = to_bytes(first), parts, to_bytes, errors, sink
        self.body = b""
        self.init_headers(headers)
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._parts) as parts:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            # No middleware needs the body, so it goes past them to the server, and texts straight to the socket.
            direct = chunked_body(scope)
            send = direct.send if direct else send
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
            if self._sink and direct:
                self._sink.begin(direct)
            try:
                async for part in parts:
                    await send({"type": "http.response.body", "body": self._to_bytes(part), "more_body": True})
            except asyncio.CancelledError:
                if not (cancelled := take_cancellation(scope)):
                    raise
                await parts.aclose()  # now, and not only when a slow client has read the rest
                await send({"type": "http.response.body", "body": self._errors.stream_end(cancelled), "more_body": True})
            except NdaniError as error:
                await send({"type": "http.response.body", "body": self._errors.stream_end(error), "more_body": True})
            except Exception as exception:
                last = self._errors.stream_end(fault(exception))
                await send({"type": "http.response.body", "body": last, "more_body": False})
                raise  # the error boundary logs it
            await send({"type": "http.response.body", "body": b"", "more_body": False})
