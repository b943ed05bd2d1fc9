"""One client's connection: uvicorn's own, with limits on what it takes, and an ear that stays open.

The parser has no limits: it would collect an endless header, before a body or after it, for as long as somebody sends
one, and copy what it has each time a piece arrives, so that one client could hold up all the others. Bodies have their
limit in `edge.py`. And a second request that comes before the first is answered would have uvicorn stop listening,
and not hear that the client has left.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, cast

from starlette.types import Message, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent

#: Where a request's scope has its cycle, weakly.
CYCLE = "ndani.cycle"

#: Bytes of request line and headers together, or of trailers; browsers and proxies stop at 8 to 64 KiB.
MOST_HEAD = 64 * 1024


class Connection(HttpToolsProtocol):
    """A connection whose heads and trailers are bounded; one that sends more gets 400 and is closed.

    A request that comes before the one ahead of it is answered is not taken, and the connection closes after that
    answer, which tells a client that does so to send it again (RFC 9112, 9.3.2).
    """

    _held = 0  # bytes that the parser has, of which nothing has come out yet
    _surplus = False  # what comes now belongs to a request that is not taken

    def data_received(self, data: bytes) -> None:
        """Give the parser what came, unless a head or the trailers have grown too long."""
        if self.transport.is_closing() or self._surplus:
            return
        # A short head and a long body may come in one piece: only what was already under way counts before parsing.
        if self._held > MOST_HEAD:
            self._surplus = True
            self._refuse()
            return
        self._held += len(data)
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins, perhaps too early."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._surplus, self.cycle.keep_alive = True, False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head has ended."""
        self._held = 0
        if self._surplus:
            return
        super().on_headers_complete()
        if self.cycle is not None and self.cycle.scope is self.scope:
            # No strong reference: the two would keep each other until the next full collection.
            cast("dict[str, object]", self.scope)[CYCLE] = weakref.ref(self.cycle)
            if self.scope["http_version"] == "1.0":
                _without_chunks(self.cycle)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._held = 0
        if not self._surplus:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The body and its trailers have ended; another head may follow."""
        self._held = 0
        if not self._surplus:
            super().on_message_complete()

    def _refuse(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.send_400_response("The head of the request is too long.")
        else:  # these are the trailers of a request that may be answered already: nothing can be said into that
            self.transport.close()


def _without_chunks(cycle: RequestResponseCycle) -> None:
    """Have an answer without a length end with its connection: a client of HTTP/1.0 would read the sizes of chunks as text."""
    send, cycle.chunked_encoding = cycle.send, False

    async def plain(message: Message) -> None:
        if message["type"] == "http.response.body":
            cycle.expected_content_length = len(message.get("body", b""))
        await send(cast("ASGISendEvent", message))

    cycle.send = plain  # type: ignore[method-assign, assignment]


class Pipe:
    """The body of one chunked response, written past every layer between a route and the socket.

    `send` is the server's own; `ready` and `write` are its one step, for whoever cannot wait.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self.send = cast(Send, cycle.send)
        self._cycle = cycle
        self._flow = cycle.flow
        self._write = cycle.transport.write

    def ready(self) -> bool:
        """Whether the client keeps up; when not, the server's own `send` waits for it."""
        return not (self._flow.write_paused or self._cycle.disconnected)

    def write(self, body: bytes) -> None:
        """Send a piece, never an empty one: that would be the end."""
        self._write(b"%x\r\n%b\r\n" % (len(body), body))


def pipe(scope: Scope) -> Pipe | None:
    """The pipe of a response that has begun; None where no connection of ours serves it, or its body is not chunked."""
    cycle = scope[CYCLE]() if CYCLE in scope else None
    return Pipe(cycle) if cycle and cycle.chunked_encoding and cycle.scope["method"] != "HEAD" else None
