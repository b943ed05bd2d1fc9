"""The sockets that a server listens on: where a name leads, bound and listening, and how they are spelled. And its last signals."""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

from ndani.errors import Misconfigured
from ndani.hosts import host_and_port, is_loopback
from ndani.settings import Settings

#: How often a port that is free in both families is looked for.
_TRIES = 20

SocketAddress = tuple[int, tuple[Any, ...]]  # a family, and an address of it as sockets have them


@contextlib.contextmanager
def listening(settings: Settings, remedy: str = "set NDANI_HOST to another address") -> Iterator[list[socket.socket]]:
    """The listening sockets, closed when the block is left. Raises Misconfigured with the address, the reason and the `remedy`."""
    host, port = settings.address
    bound: list[socket.socket] = []
    try:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            bound = _bound(choose_addresses((family, address) for family, _, _, _, address in found), port)
        except OSError as error:
            reason = "address already in use: another server listens there" if error.errno == errno.EADDRINUSE else error.strerror
            raise Misconfigured(f"listen tcp {host}:{port}: {reason}; {remedy}") from None
        yield bound
    finally:
        for one in bound:
            one.close()


def choose_addresses(found: Iterable[SocketAddress]) -> list[SocketAddress]:
    """Where to listen, of all addresses of a name: at the first one of IPv4, as Go does.

    Where that is loopback, at its other loopback addresses too: a client that is given the same name may try any of them.
    """
    places = sorted(dict.fromkeys(found), key=lambda place: place[0] != socket.AF_INET)
    return [place for place in places if place == places[0] or (is_loopback(places[0][1][0]) and is_loopback(place[1][0]))]


def loopback_addresses(sockets: Iterable[socket.socket]) -> frozenset[str]:
    """The loopback addresses that are listened on."""
    return frozenset(host for host in (str(one.getsockname()[0]) for one in sockets) if is_loopback(host))


def addresses_of(sockets: Iterable[socket.socket]) -> str:
    """Where they listen, for people."""
    return " and ".join(host_and_port(*one.getsockname()[:2]) for one in sockets)


@contextlib.contextmanager
def hung_up(end: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have a server end by `end` when its terminal goes (SIGHUP), or by SIGQUIT, too. One that is ignored (`nohup`) stays so.

    What the command line does with them, raising, is lost in an event loop: the server would go on without a terminal.
    """
    numbers = [getattr(signal, name) for name in ("SIGHUP", "SIGQUIT") if hasattr(signal, name)]
    before = {number: signal.signal(number, end) for number in numbers if signal.getsignal(number) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _bound(places: list[SocketAddress], port: int) -> list[socket.socket]:
    """A socket for each place, all at one port; without IPv6 in the kernel, those of IPv4. Raises OSError."""
    for attempt in range(_TRIES):
        bound: list[socket.socket] = []
        try:
            for family, (host, _, *rest) in places:
                try:
                    bound.append(_listener(family, (host, bound[0].getsockname()[1] if bound else port, *rest)))
                except OSError as error:
                    if not bound or error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                        raise
            return bound
        except OSError as error:
            for one in bound:
                one.close()
            # Any port was asked for, and the one that IPv4 had free is taken in the other family.
            if port or not bound or error.errno != errno.EADDRINUSE or attempt == _TRIES - 1:
                raise
    raise AssertionError("the last try returns or raises")


def _listener(family: int, address: tuple[Any, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(4096)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
