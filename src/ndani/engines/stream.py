"""HTTP exchanges over the runners' Unix sockets: the front's only HTTP client, and it cannot connect to anything else.

It uses httptools instead of a general client because every token takes this path: no connection pool (in llama.cpp's server,
each open connection occupies one of a few threads), no parsing of headers, no second decoding. This file handles bytes;
`client.py` knows what they mean.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import httptools

from ndani.errors import EngineFailed

#: Bytes of events that are buffered for a slow client before the engine has to wait too.
HIGH_WATER_BYTES = 1 << 20
#: Bytes of memory that an event takes besides its content.
_EVENT_OVERHEAD = 64
#: Events that are returned at once, before other tasks get a turn.
_MAX_EVENTS_PER_BATCH = 256

#: Seconds that the front waits for the events of several responses before it reads them.
GATHER_SECONDS = 0.001

#: Maximum bytes of one event: those of llama.cpp have about 300.
MAX_EVENT_BYTES = 1 << 20
#: Maximum bytes of a response that is not a stream: a base, plus some for each byte of the request, up to a fixed maximum. A
#: text as token ids takes a few bytes for each of its bytes, token ids as text some dozens.
_BASE_RESPONSE_BYTES, _RESPONSE_BYTES_PER_REQUEST_BYTE, MAX_RESPONSE_BYTES = 1 << 20, 64, 1 << 30

RUNNER_STOPPED = "an error was encountered while running the model: its runner stopped; the next request starts a new one"


class Coalescer:
    """Wakes the front as rarely as possible. All exchanges of an event loop share one.

    An engine that generates eight responses at once writes to eight sockets within a millisecond, every fifty milliseconds. If
    each wakes the front, the front takes a core from the engine eight times and finds cold caches eight times, which costs more
    than the work itself. So when several responses are active, the first event of a step blocks for `GATHER_SECONDS`, for all of
    them: at most half of the time, and never for a single response.
    """

    def __init__(self) -> None:
        self.active_responses = 0
        self._last_gather = 0.0

    def gather(self) -> None:
        """Let the events of the other responses arrive; called when there are others."""
        if time.monotonic() - self._last_gather > 2 * GATHER_SECONDS:
            time.sleep(GATHER_SECONDS)
            self._last_gather = time.monotonic()


class Exchange(asyncio.Protocol):
    """The response to one request. Server-sent events are split here, once, and returned in batches.

    The caller decides whether the body is a stream of events (`start_stream`). A compromised runner may send anything, so all
    sizes are limited: a body to `max_body` bytes, or, in a stream, an event to MAX_EVENT_BYTES and all unread events together to
    HIGH_WATER_BYTES. Bytes that are neither headers nor body are limited to MAX_EVENT_BYTES too.
    """

    def __init__(self, coalescer: Coalescer, max_body: int) -> None:
        self.status = 0
        self._tap: Callable[[bytes], bool] | None = None
        self._coalescer = coalescer
        self._max_body = max_body
        self._is_stream = False
        self._finished = False  # the whole response arrived
        self._connection_lost = False
        self._tap_error: BaseException | None = None  # our own bug, raised by the tap
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._buffer = bytearray()
        self._events: list[bytes] = []
        self._buffered_bytes = 0  # of the events
        self._bytes_since_body = 0  # received since the last part of the body
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transport is not registered as a subclass

    def data_received(self, data: bytes) -> None:
        """Bytes have arrived."""
        if self._coalescer.active_responses > 1:
            self._coalescer.gather()
        self._bytes_since_body += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            self._tap_error = error.__context__
            self._abort()
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._abort()
        if self._bytes_since_body > MAX_EVENT_BYTES:
            self._abort()
        waiter = self._waiter
        if waiter is not None and not waiter.done() and (self._events or self._finished or self._connection_lost or not self._tap):
            waiter.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """No more bytes will arrive."""
        self._connection_lost = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # Called by the parser.

    def on_headers_complete(self) -> None:
        """The status line and the headers have arrived."""
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """A part of the body has arrived."""
        self._bytes_since_body = 0
        # llama.cpp writes one event per chunk, so the usual body is exactly one event and needs no copy.
        if self._is_stream and not self._buffer and body.endswith(b"\n\n") and body.count(b"\n\n") == 1:
            # With a waiter and no event before this one, all earlier events have been processed: this one is next.
            if self._tap and self._waiter and not self._events and not self._waiter.done() and self._tap(body):
                return
            self._events.append(body)
            self._buffered_bytes += len(body) + _EVENT_OVERHEAD
        else:
            search_from = max(len(self._buffer) - 1, 0)
            self._buffer += body
            if self._is_stream and self._buffer.find(b"\n\n", search_from) >= 0:
                self._split_events()
            if len(self._buffer) > self._max_body:
                self._abort()
        if self._buffered_bytes > HIGH_WATER_BYTES:
            self._pause()

    def on_message_complete(self) -> None:
        """The body is complete."""
        self._finished = True

    def _split_events(self) -> None:
        """Split the buffer into events; the incomplete last one stays in the buffer."""
        *complete, incomplete = bytes(self._buffer).split(b"\n\n")
        self._buffer = bytearray(incomplete)
        events = [event for event in complete if event]
        self._events += events
        self._buffered_bytes += sum(map(len, events)) + _EVENT_OVERHEAD * len(events)

    def _pause(self) -> None:
        """Stop reading, so that the engine has to wait until its events are consumed."""
        if not self._paused and self._transport:
            self._paused = True
            self._transport.pause_reading()

    def _abort(self) -> None:
        """Close the connection to an engine that breaks the protocol or exceeds a limit."""
        self._connection_lost = True
        self._buffer.clear()
        if self._transport:
            self._transport.abort()

    # Called by the client.

    async def status_code(self) -> int:
        """Wait for the status line. Raises EngineFailed when the runner exits first."""
        while not self.status:
            await self._wait()
        return self.status

    async def body(self) -> bytes:
        """Wait for the whole body of a response that is not a stream."""
        while not self._finished:
            await self._wait()
        return bytes(self._buffer)

    def start_stream(self, tap: Callable[[bytes], bool] | None = None) -> None:
        """Treat the body as a stream of events.

        `tap` is called with each event that the client is waiting for. If it returns True, the event is consumed and the client is
        not woken.
        """
        self._is_stream, self._max_body, self._tap = True, MAX_EVENT_BYTES, tap
        self._split_events()
        if self._buffered_bytes > HIGH_WATER_BYTES:
            self._pause()

    async def events(self) -> list[bytes]:
        """The events since the last call, at least one; an empty list when the stream has ended normally."""
        while not self._events:
            if self._finished:
                return []
            await self._wait()
        if len(self._events) > _MAX_EVENTS_PER_BATCH:
            await asyncio.sleep(0)
            batch = self._events[:_MAX_EVENTS_PER_BATCH]
            del self._events[:_MAX_EVENTS_PER_BATCH]
            return batch
        batch, self._events, self._buffered_bytes = self._events, [], 0
        if self._paused and self._transport:
            self._paused = False
            self._transport.resume_reading()
        return batch

    async def _wait(self) -> None:
        if self._tap_error:
            raise self._tap_error
        if self._connection_lost:
            raise EngineFailed(RUNNER_STOPPED)
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


@asynccontextmanager
async def exchange(socket_path: str, path: str, body: bytes, coalescer: Coalescer, *, extra_bytes: int = 0) -> AsyncIterator[Exchange]:
    """Send one request; the context manager gives its response. `extra_bytes` raises the limit of a response that is not a stream.

    Leaving the block closes the connection, which cancels the request: the engine checks the connection between batches. Raises
    EngineFailed when no runner listens on the socket any more.
    """
    loop = asyncio.get_running_loop()
    try:
        max_body = min(_BASE_RESPONSE_BYTES + _RESPONSE_BYTES_PER_REQUEST_BYTE * len(body) + extra_bytes, MAX_RESPONSE_BYTES)
        transport, protocol = await loop.create_unix_connection(lambda: Exchange(coalescer, max_body), socket_path)
    except OSError:
        raise EngineFailed(RUNNER_STOPPED) from None
    coalescer.active_responses += 1
    try:
        request_head = f"POST {path} HTTP/1.1\r\nHost: runner\r\nConnection: close\r\n"
        request_head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        transport.write(request_head.encode() + body)
        yield protocol
    finally:
        coalescer.active_responses -= 1
        transport.abort()
