"""One client's connection: uvicorn's own, with a limit on the head of a request.

The parser has none: it would collect an endless header for as long as somebody sends one, and copy what it has each
time a piece arrives, so that one client could hold up all the others. Bodies have their limit in `edge.py`.
"""

from __future__ import annotations

import weakref
from typing import cast

from starlette.types import Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

#: Where a request's scope has its cycle, weakly.
CYCLE = "ndani.cycle"

#: Bytes of request line and headers together; browsers and proxies stop at 8 to 64 KiB.
MOST_HEAD = 64 * 1024


class Connection(HttpToolsProtocol):
    """A connection whose request heads are bounded; one that sends more gets 400 and is closed."""

    _head: int | None = 0  # bytes of a head that has not ended; None while a body arrives

    def data_received(self, data: bytes) -> None:
        """Give the parser what came, unless a head has grown too long."""
        if self.transport.is_closing():
            return
        if self._head is not None:
            self._head += len(data)
        # A short head and a long body may come in one piece: only what was already under way counts before parsing.
        if self._head is not None and self._head - len(data) > MOST_HEAD:
            self.send_400_response("The head of the request is too long.")
            return
        super().data_received(data)

    def on_headers_complete(self) -> None:
        """The head has ended."""
        self._head = None
        super().on_headers_complete()
        if self.cycle is not None and self.cycle.scope is self.scope:
            # No strong reference: the two would keep each other until the next full collection.
            cast("dict[str, object]", self.scope)[CYCLE] = weakref.ref(self.cycle)

    def on_message_complete(self) -> None:
        """The body has ended; another head may follow."""
        self._head = 0
        super().on_message_complete()


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
