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

#: Events held for a client that reads slowly, before the engine is made to wait too.
HIGH_WATER = 512

#: Seconds that the front lets news of several answers gather before it reads them.
GATHER = 0.001

#: Bytes of one event, or of an answer that is none: the token ids of the largest body that may be sent here take half of it.
MOST_BODY = 1 << 30

BROKEN = "an error was encountered while running the model: its runner stopped; the next request starts a new one"


class Mailroom:
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
    """The reading end of one request. Server-sent events are split here, once, and handed out in batches."""

    def __init__(self, mailroom: Mailroom) -> None:
        self.status = 0
        #: Offered each event that somebody is waiting for; one that it takes wakes nobody.
        self.tap: Callable[[bytes], bool] | None = None
        self._mailroom = mailroom
        self._finished = False  # the whole answer arrived
        self._lost = False
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._events: list[bytes] = []
        self._split = True
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is not registered as one

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if self._mailroom.answers > 1:
            self._mailroom.gather()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._lost = True
        if self._waiter is not None and not self._waiter.done() and (self._events or self._finished or self._lost or not self.tap):
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
        self._split = self.status == 200

    def on_body(self, body: bytes) -> None:
        """A piece of the body is in."""
        if not self._split:
            self._body += body
            self._bound()
            return
        # llama.cpp writes one event per chunk, so the usual body is exactly one event and needs no copy.
        if not self._body and body.endswith(b"\n\n") and body.count(b"\n\n") == 1:
            # With a waiter and no event before this one, all that came has been dealt with: this one is next.
            if not (self.tap and self._waiter and not self._events and not self._waiter.done() and self.tap(body)):
                self._events.append(body)
        else:
            looked = max(len(self._body) - 1, 0)
            self._body += body
            while (end := self._body.find(b"\n\n", looked)) >= 0:
                self._events.append(bytes(self._body[:end]))
                del self._body[: end + 2]
                looked = 0
            self._bound()
        if len(self._events) > HIGH_WATER and not self._paused and self._transport:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """The body is whole."""
        self._finished = True

    def _bound(self) -> None:
        """Hang up on an engine that says more in one piece than any does."""
        if len(self._body) > MOST_BODY and self._transport:
            self._lost = True
            self._body.clear()
            self._transport.abort()

    # What the client calls.

    def whole(self) -> bytes:
        """The body of an answer that is no event stream."""
        return b"\n\n".join([*self._events, bytes(self._body)]) if self._events else bytes(self._body)

    async def headers(self) -> int:
        """Wait for the status line; raises EngineFailed when the runner goes away first."""
        while not self.status:
            await self._more()
        return self.status

    async def end(self) -> bytes:
        """Wait for the whole body."""
        while not self._finished:
            await self._more()
        return self.whole()

    async def events(self) -> list[bytes]:
        """The events that have come since the last call, at least one; empty when the stream has ended well."""
        while not self._events:
            if self._finished:
                return []
            await self._more()
        batch, self._events = self._events, []
        if self._paused and self._transport:
            self._paused = False
            self._transport.resume_reading()
        return batch

    async def _more(self) -> None:
        if self._lost:
            raise EngineFailed(BROKEN)
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


@asynccontextmanager
async def exchange(socket: str, route: str, body: bytes | None, mailroom: Mailroom) -> AsyncIterator[Exchange]:
    """Send one request (POST with a body, GET without) and give its reading end.

    Leaving the block closes the connection, which is how an answer is cancelled: the engine looks between batches.
    Raises EngineFailed when nobody listens on the socket any more.
    """
    loop = asyncio.get_running_loop()
    try:
        transport, protocol = await loop.create_unix_connection(lambda: Exchange(mailroom), socket)
    except OSError:
        raise EngineFailed(BROKEN) from None
    mailroom.answers += 1
    try:
        verb = "GET" if body is None else "POST"
        head = f"{verb} {route} HTTP/1.1\r\nHost: runner\r\nConnection: close\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        transport.write(head.encode() + b"\r\n" + (body or b""))
        yield protocol
    finally:
        mailroom.answers -= 1
        transport.abort()
