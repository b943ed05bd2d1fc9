"""One client's connection: uvicorn's own, with a limit on the head of a request.

The parser has none: it would collect an endless header for as long as somebody sends one, and copy what it has each
time a piece arrives, so that one client could hold up all the others. Bodies have their limit in `edge.py`.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

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

    def on_message_complete(self) -> None:
        """The body has ended; another head may follow."""
        self._head = 0
        super().on_message_complete()
