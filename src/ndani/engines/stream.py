"""HTTP exchanges over runners' Unix sockets: the only client the front has, and it cannot dial anywhere else.

Written over httptools instead of a general client because this is the path of every token: no connection pool
(llama.cpp's server gives each kept connection a thread of its few), no headers to look at, no decoding twice.
What lives here is bytes; what they mean is `client.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import httptools

from ndani.errors import EngineFailed

#: Bytes of events held for a client that reads slowly, before the engine is made to wait too.
HIGH_WATER = 1 << 20
#: What an event takes beside its bytes.
_PER_EVENT = 64
#: Events that are handed out without a turn for others.
_AT_ONCE = 256

#: Seconds that the front lets news of several answers gather before it reads them.
GATHER = 0.001

#: Bytes of one event: llama.cpp's have some 300.
MOST_EVENT = 1 << 20
#: Bytes of an answer that is no stream: so many, and for each that was sent so many more (a text as token ids has a few for
#: each of its bytes, token ids as a text some dozens), and no more than these.
_LEAST_ANSWER, _PER_BYTE, MOST_ANSWER = 1 << 20, 64, 1 << 30

BROKEN = "an error was encountered while running the model: its runner stopped; the next request starts a new one"


class Coalescer:
    """Wakes the front as seldom as can be: one for all exchanges of an event loop.

    An engine that makes eight answers at once writes eight sockets within a millisecond, every fifty. Woken for each,
    the front takes a core away from the engine eight times and finds its caches cold eight times, which costs more
    than the work. So where several answers are under way, the first news of a step sleeps `GATHER` on the spot, for
    all: at most that long, at most every second such span of time, and never for a single answer.
    """

    def __init__(self) -> None:
        self.answers = 0
        self._slept = 0.0

    def gather(self) -> None:
        """Let the other answers of this step arrive; called where there are others."""
        if time.monotonic() - self._slept > 2 * GATHER:
            time.sleep(GATHER)
            self._slept = time.monotonic()


class Exchange(asyncio.Protocol):
    """The reading end of one request. Server-sent events are split here, once, and handed out in batches.

    Whether the body is a stream of events is for the caller to say (`stream`). A runner that has been taken over says what it
    likes. So a body has `most` bytes, or in a stream each event has MOST_EVENT and those that nobody has taken yet have
    HIGH_WATER together; what is neither head nor body has no more either.
    """

    def __init__(self, coalescer: Coalescer, most: int) -> None:
        self.status = 0
        self._tap: Callable[[bytes], bool] | None = None
        self._coalescer = coalescer
        self._most = most
        self._streamed = False
        self._finished = False  # the whole answer arrived
        self._lost = False
        self._fault: BaseException | None = None  # of ours, in the tap
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._events: list[bytes] = []
        self._held = 0  # bytes of them
        self._bare = 0  # bytes that have come since the last one of the body
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is not registered as one

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if self._coalescer.answers > 1:
            self._coalescer.gather()
        self._bare += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            self._fault = error.__context__
            self._hang_up()
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._hang_up()
        if self._bare > MOST_EVENT:
            self._hang_up()
        if self._waiter is not None and not self._waiter.done() and (self._events or self._finished or self._lost or not self._tap):
            self._waiter.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """No more bytes will come."""
        self._lost = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # What the parser calls.

    def on_headers_complete(self) -> None:
        """The status line and headers are in."""
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """A piece of the body is in."""
        self._bare = 0
        # llama.cpp writes one event per chunk, so the usual body is exactly one event and needs no copy.
        if self._streamed and not self._body and body.endswith(b"\n\n") and body.count(b"\n\n") == 1:
            # With a waiter and no event before this one, all that came has been dealt with: this one is next.
            if self._tap and self._waiter and not self._events and not self._waiter.done() and self._tap(body):
                return
            self._events.append(body)
            self._held += len(body) + _PER_EVENT
        else:
            looked = max(len(self._body) - 1, 0)
            self._body += body
            if self._streamed and self._body.find(b"\n\n", looked) >= 0:
                self._take_apart()
            if len(self._body) > self._most:
                self._hang_up()
        if self._held > HIGH_WATER:
            self._pause()

    def on_message_complete(self) -> None:
        """The body is whole."""
        self._finished = True

    def _take_apart(self) -> None:
        """Make events of the bytes that are held, but for the last one, which is not whole yet."""
        *found, rest = bytes(self._body).split(b"\n\n")
        self._body = bytearray(rest)
        events = [event for event in found if event]
        self._events += events
        self._held += sum(map(len, events)) + _PER_EVENT * len(events)

    def _pause(self) -> None:
        """Have the engine wait until what it has said is taken."""
        if not self._paused and self._transport:
            self._paused = True
            self._transport.pause_reading()

    def _hang_up(self) -> None:
        """Listen no more to an engine that says what none does, or more than any."""
        self._lost = True
        self._body.clear()
        if self._transport:
            self._transport.abort()

    # What the client calls.

    async def headers(self) -> int:
        """Wait for the status line; raises EngineFailed when the runner goes away first."""
        while not self.status:
            await self._more()
        return self.status

    async def end(self) -> bytes:
        """Wait for the whole body of an answer that is no stream of events."""
        while not self._finished:
            await self._more()
        return bytes(self._body)

    def stream(self, tap: Callable[[bytes], bool] | None = None) -> None:
        """Say that the body is a stream of events, and no single answer.

        `tap` is offered each event that somebody is waiting for; one that it takes wakes nobody.
        """
        self._streamed, self._most, self._tap = True, MOST_EVENT, tap
        self._take_apart()
        if self._held > HIGH_WATER:
            self._pause()

    async def events(self) -> list[bytes]:
        """Events that have come since the last call, at least one; empty when the stream has ended well."""
        while not self._events:
            if self._finished:
                return []
            await self._more()
        if len(self._events) > _AT_ONCE:
            await asyncio.sleep(0)
            batch = self._events[:_AT_ONCE]
            del self._events[:_AT_ONCE]
            return batch
        batch, self._events, self._held = self._events, [], 0
        if self._paused and self._transport:
            self._paused = False
            self._transport.resume_reading()
        return batch

    async def _more(self) -> None:
        if self._fault:
            raise self._fault
        if self._lost:
            raise EngineFailed(BROKEN)
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


@asynccontextmanager
async def exchange(socket: str, route: str, body: bytes, coalescer: Coalescer, *, more: int = 0) -> AsyncIterator[Exchange]:
    """Send one request and give its reading end. An answer that is no stream may have `more` bytes than most.

    Leaving the block closes the connection, which is how an answer is cancelled: the engine looks between batches.
    Raises EngineFailed when nobody listens on the socket any more.
    """
    loop = asyncio.get_running_loop()
    try:
        most = min(_LEAST_ANSWER + _PER_BYTE * len(body) + more, MOST_ANSWER)
        transport, protocol = await loop.create_unix_connection(lambda: Exchange(coalescer, most), socket)
    except OSError:
        raise EngineFailed(BROKEN) from None
    coalescer.answers += 1
    try:
        head = f"POST {route} HTTP/1.1\r\nHost: runner\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        transport.write(head.encode() + body)
        yield protocol
    finally:
        coalescer.answers -= 1
        transport.abort()
