"""One client's connection: uvicorn's own, with limits on what it takes, and an ear that stays open.

The parser has no limits: it would collect an endless header, before a body or after it, for as long as somebody sends
one, and copy what it has each time a piece arrives, so that one client could hold up all the others. Bodies have their
limit in `edge.py`. And a second request that comes before the first is answered would have uvicorn stop listening,
and not hear that the client has left.

What is no request is refused here, with one line in the log (by Python's logging, see `log_handler.py`). A wish for
another protocol is not granted: the request is answered over HTTP/1.1, body and all.
"""

from __future__ import annotations

import re
import weakref
from typing import TYPE_CHECKING, cast

import httptools
from starlette.types import Message, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent

#: Where a request's scope has its cycle, weakly.
CYCLE = "ndani.cycle"

#: Bytes of request line and headers together, or of trailers; browsers and proxies stop at 8 to 64 KiB.
MOST_HEAD = 64 * 1024


#: A request's target that names a host, behind a user perhaps.
_ABSOLUTE = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#]*@)?([^/?#]*)")

#: What `Connection` may still say of a connection whose wish for another protocol is not granted.
_LASTING = (b"close", b"keep-alive")


class Connection(HttpToolsProtocol):
    """A connection whose heads and trailers are bounded; one that sends more, or no HTTP at all, gets 400 and is closed.

    A request that comes before the one ahead of it is answered is not taken, and the connection closes after that
    answer, which tells a client that does so to send it again (RFC 9112, 9.3.2). So it is with bytes that are no request.
    """

    _held = 0  # bytes that the parser has, of which nothing has come out yet
    _surplus = False  # what comes now belongs to a request that is not taken

    def data_received(self, data: bytes) -> None:
        """Give the parser what came, unless a head or the trailers have grown too long."""
        if self.transport.is_closing() or self._surplus:
            return
        # A short head and a long body may come in one piece: only what was already under way counts before parsing.
        if self._held > MOST_HEAD:
            self._refuse("The head of the request is too long.")
            return
        self._held += len(data)
        self._unset_keepalive_if_required()
        self._feed(data)

    def on_message_begin(self) -> None:
        """A request begins, perhaps too early."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._surplus, self.cycle.keep_alive = True, False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head has ended."""
        self._held = 0
        if self._surplus or self.parser.should_upgrade():  # then it comes again, without that wish
            return
        hosts = sum(name == b"host" for name, _ in self.headers)
        # The guard against rebound names judges this header: it must be there, and no second one may say something else (RFC 9112, 3.2).
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            self._refuse("A request needs one Host header, and no more.")
            return
        if place := _ABSOLUTE.match(self.url):
            # A target that is a whole address says its host itself, as to a proxy (RFC 9112, 3.2.2); that is the one to judge.
            self.headers[:] = [pair for pair in self.headers if pair[0] != b"host"] + [(b"host", place[1])]
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
        if not self._surplus and not self.parser.should_upgrade():
            super().on_message_complete()

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as found:
            # The parser takes all that follows such a head for the other protocol, the body too.
            if self.parser.get_method() == b"CONNECT":
                self._refuse("This server is no proxy.")
            elif not self._surplus:
                again = self._plain_head() + data[found.args[0] :]
                self.parser = httptools.HttpRequestParser(self)  # the old one may have read that nothing follows
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it: junk there is passed over
                self._feed(again)
        except httptools.HttpParserError:
            self._refuse(self._named(data))

    def _plain_head(self) -> bytes:
        """The head that was read, without its wish for another protocol (RFC 9110, 7.8)."""
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                value = b", ".join(word for word in map(bytes.strip, value.split(b",")) if word.lower() in _LASTING)
            if name != b"upgrade":
                lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join([*lines, b"", b""])

    def _refuse(self, sentence: str) -> None:
        if self.transport.is_closing():  # refused already, for its head
            return
        self._surplus = True
        self.logger.warning("bytes of a client were refused: %s", sentence)
        if self.cycle is None or self.cycle.response_complete:
            self.send_400_response(sentence)
        elif not self.cycle.more_body:  # behind a whole request: it is answered, and nothing can be said into its answer
            self.cycle.keep_alive = False
        elif self.cycle.response_started:
            self.transport.close()
        else:
            self.send_400_response(sentence)

    def _named(self, data: bytes) -> str:
        """What bytes that are no request are."""
        if data.startswith(b"\x16\x03"):
            return "The client speaks TLS to a port without it; its address must begin with http://."
        if self.parser.get_method() == b"PRI":
            return "The client speaks HTTP/2, and this server HTTP/1.1."
        return "That is no HTTP request."


def _without_chunks(cycle: RequestResponseCycle) -> None:
    """Have an answer without a length end with its connection: a client of HTTP/1.0 would read the sizes of chunks as text."""
    send, cycle.chunked_encoding = cycle.send, False

    async def plain(message: Message) -> None:
        if message["type"] == "http.response.body":
            cycle.expected_content_length = len(message.get("body", b""))
        await send(cast("ASGISendEvent", message))

    cycle.send = plain  # type: ignore[method-assign, assignment]


class ChunkedBody:
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


def chunked_body(scope: Scope) -> ChunkedBody | None:
    """The pipe of a response that has begun; None where no connection of ours serves it, or its body is not chunked."""
    cycle = scope[CYCLE]() if CYCLE in scope else None
    return ChunkedBody(cycle) if cycle and cycle.chunked_encoding and cycle.scope["method"] != "HEAD" else None
