"""One client's connection: uvicorn's HTTP/1.1 protocol with limits on a request's head, and a direct writer for chunked bodies.

uvicorn's parser has no limits: it would buffer an endless header or trailer, and copy the buffer each time data arrives, so
that one client could block all others. Bodies have their limit in `body_limit`. And a pipelined request would have uvicorn
stop reading the socket, so that it would not notice when the client disconnects.

Bytes that are not a valid request are refused here, with one line in the log (by Python's logging, see `library_log`). A
request to upgrade to another protocol is ignored: the request is answered over HTTP/1.1, with its whole body.
"""

from __future__ import annotations

import re
import weakref
from typing import TYPE_CHECKING, cast

import httptools
from starlette.types import Message, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ndani.api.edge.running_requests import REQUEST_ID, new_id

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent

#: The key in a request's scope under which a weak reference to uvicorn's request/response cycle is kept.
CYCLE_KEY = "ndani.cycle"

#: Bytes of request line and headers together, or of trailers; the limits of browsers and proxies are 8 to 64 KiB.
MAX_HEAD = 64 * 1024


#: A request target in absolute form; the group is the host, without user information.
_ABSOLUTE = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#]*@)?([^/?#]*)")

#: The options of `Connection` that are kept when an upgrade to another protocol is ignored.
_KEPT_CONNECTION_OPTIONS = (b"close", b"keep-alive")


class Connection(HttpToolsProtocol):
    """A connection whose heads and trailers are bounded; one that sends more, or no HTTP at all, gets 400 and is closed.

    Pipelining is not supported: a request that arrives before the previous one is answered is ignored, and the connection
    closes after that answer, which tells the client to send it again (RFC 9112, 9.3.2). Invalid bytes are treated the same.
    """

    _buffered = 0  # bytes given to the parser since it last reported progress
    _ignoring = False  # the bytes that arrive now belong to a request that is ignored

    def data_received(self, data: bytes) -> None:
        """Give the parser the data, unless a head or the trailers have grown too long."""
        if self.transport.is_closing() or self._ignoring:
            return
        # A short head and a long body may arrive together, so only bytes of earlier calls count here.
        if self._buffered > MAX_HEAD:
            self._refuse("The head of the request is too long.")
            return
        self._buffered += len(data)
        self._unset_keepalive_if_required()
        self._feed(data)

    def on_message_begin(self) -> None:
        """A request begins, perhaps before the previous one is answered."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._ignoring, self.cycle.keep_alive = True, False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head has ended."""
        self._buffered = 0
        if self._ignoring or self.parser.should_upgrade():  # an upgrade: `_feed` parses it again without that header
            return
        hosts = sum(name == b"host" for name, _ in self.headers)
        # HostGuard checks this header: it must be present, and a second one must not contradict it (RFC 9112, 3.2).
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            self._refuse("A request needs one Host header, and no more.")
            return
        if absolute := _ABSOLUTE.match(self.url):
            # A target in absolute form, as sent to a proxy, overrides the Host header (RFC 9112, 3.2.2); HostGuard checks this one.
            self.headers[:] = [pair for pair in self.headers if pair[0] != b"host"] + [(b"host", absolute[1])]
        super().on_headers_complete()
        if self.cycle is not None and self.cycle.scope is self.scope:
            # A weak reference: a strong one would be a reference cycle that lives until the next full garbage collection.
            cast("dict[str, object]", self.scope)[CYCLE_KEY] = weakref.ref(self.cycle)
            if self.scope["http_version"] == "1.0":
                _without_chunks(self.cycle)

    def on_body(self, body: bytes) -> None:
        """Part of the body has arrived."""
        self._buffered = 0
        if not self._ignoring:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The body and its trailers have ended; another head may follow."""
        self._buffered = 0
        if not self._ignoring and not self.parser.should_upgrade():
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no request: as uvicorn does, with an id as every response has one."""
        head = b"HTTP/1.1 400 Bad Request\r\n%b: %b\r\n" % (REQUEST_ID.encode(), new_id().encode())
        head += b"".join(b"%b: %b\r\n" % header for header in self.server_state.default_headers)
        head += b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(msg)
        self.transport.write(head + msg.encode("ascii"))
        self.transport.close()

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # The parser takes everything after such a head, the body too, for the other protocol.
            if self.parser.get_method() == b"CONNECT":
                self._refuse("This server is no proxy.")
            elif not self._ignoring:
                replayed = self._plain_head() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)  # the old one may have read `Connection: close`
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as in uvicorn: data after a close is skipped
                self._feed(replayed)
        except httptools.HttpParserError:
            self._refuse(self._diagnosis(data))

    def _plain_head(self) -> bytes:
        """The head that was parsed, without its request for an upgrade (RFC 9110, 7.8)."""
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                options = map(bytes.strip, value.split(b","))
                value = b", ".join(option for option in options if option.lower() in _KEPT_CONNECTION_OPTIONS)
            if name != b"upgrade":
                lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join([*lines, b"", b""])

    def _refuse(self, message: str) -> None:
        if self.transport.is_closing():  # already refused because of its head
            return
        self._ignoring = True
        self.logger.warning("bytes of a client were refused: %s", message)
        if self.cycle is None or self.cycle.response_complete:
            self.send_400_response(message)
        elif not self.cycle.more_body:  # after a complete request: that one is still answered, and then the connection closes
            self.cycle.keep_alive = False
        elif self.cycle.response_started:
            self.transport.close()
        else:
            self.send_400_response(message)

    def _diagnosis(self, data: bytes) -> str:
        """What bytes that are not a valid request probably are, as a sentence for the client."""
        if data.startswith(b"\x16\x03"):
            return "The client speaks TLS to a port without it; its address must begin with http://."
        if self.parser.get_method() == b"PRI":
            return "The client speaks HTTP/2, and this server HTTP/1.1."
        return "That is no HTTP request."


def _without_chunks(cycle: RequestResponseCycle) -> None:
    """End a response without a length by closing the connection: an HTTP/1.0 client would read chunk sizes as text."""
    send, cycle.chunked_encoding = cycle.send, False

    async def send_unchunked(message: Message) -> None:
        if message["type"] == "http.response.body":
            cycle.expected_content_length = len(message.get("body", b""))
        await send(cast("ASGISendEvent", message))

    cycle.send = send_unchunked  # type: ignore[method-assign, assignment]


class ChunkedBody:
    """The body of one chunked response, written directly to the socket, without the layers between it and a route.

    `send` is uvicorn's own, a coroutine; `ready` and `write` do the same for callers that cannot await.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self.send = cast(Send, cycle.send)
        self._cycle = cycle
        self._flow = cycle.flow
        self._write = cycle.transport.write

    def ready(self) -> bool:
        """Whether the client keeps up; if not, use `send`, which waits for it."""
        return not (self._flow.write_paused or self._cycle.disconnected)

    def write(self, body: bytes) -> None:
        """Send one chunk, which must not be empty: an empty chunk ends the body."""
        self._write(b"%x\r\n%b\r\n" % (len(body), body))


def chunked_body(scope: Scope) -> ChunkedBody | None:
    """The body of a response that has begun; None where the server is not a `Connection`, or the body is not chunked."""
    cycle = scope[CYCLE_KEY]() if CYCLE_KEY in scope else None
    return ChunkedBody(cycle) if cycle and cycle.chunked_encoding and cycle.scope["method"] != "HEAD" else None
