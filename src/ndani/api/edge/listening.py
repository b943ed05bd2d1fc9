"""The listening sockets of a server: the addresses of a host name, bound and listening."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterable, Iterator
from typing import Any

from ndani.errors import Misconfigured
from ndani.hosts import host_and_port, is_loopback
from ndani.settings import Settings

#: Attempts to find a port that is free for both IPv4 and IPv6.
_MAX_ATTEMPTS = 20

#: An address family, and an address of that family as `socket.bind` takes it.
SocketAddress = tuple[int, tuple[Any, ...]]


@contextlib.contextmanager
def listening(settings: Settings, remedy: str = "set NDANI_HOST to another address") -> Iterator[list[socket.socket]]:
    """The listening sockets, closed at the end of the block. Raises Misconfigured with the address, the reason and `remedy`."""
    host, port = settings.address
    listeners: list[socket.socket] = []
    try:
        try:
            candidates = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            listeners = _bind_all(choose_addresses((family, address) for family, _, _, _, address in candidates), port)
        except OSError as error:
            reason = "address already in use: another server listens there" if error.errno == errno.EADDRINUSE else error.strerror
            raise Misconfigured(f"listen tcp {host}:{port}: {reason}; {remedy}") from None
        yield listeners
    finally:
        for listener in listeners:
            listener.close()


def choose_addresses(candidates: Iterable[SocketAddress]) -> list[SocketAddress]:
    """The addresses to listen on, of all addresses of a host name: the first one, IPv4 preferred, as Go does.

    If that is loopback, also the other loopback addresses: a client with the same host name may try any of them.
    """
    first, *others = sorted(dict.fromkeys(candidates), key=lambda candidate: candidate[0] != socket.AF_INET)
    if not _on_loopback(first):
        return [first]
    return [first, *(other for other in others if _on_loopback(other))]


def _on_loopback(address: SocketAddress) -> bool:
    return is_loopback(address[1][0])


def loopback_addresses(sockets: Iterable[socket.socket]) -> frozenset[str]:
    """Those addresses of the sockets that are loopback."""
    hosts = (str(listener.getsockname()[0]) for listener in sockets)
    return frozenset(host for host in hosts if is_loopback(host))


def addresses_of(sockets: Iterable[socket.socket]) -> str:
    """The addresses of the sockets, as text for people."""
    return " and ".join(host_and_port(*listener.getsockname()[:2]) for listener in sockets)


def _bind_all(addresses: list[SocketAddress], port: int) -> list[socket.socket]:
    """A socket for each address, all on one port; without IPv6 in the kernel, only those of IPv4. Raises OSError."""
    for attempt in range(_MAX_ATTEMPTS):
        listeners: list[socket.socket] = []
        try:
            for family, (host, _, *ipv6_fields) in addresses:
                try:
                    listeners.append(_listener(family, (host, listeners[0].getsockname()[1] if listeners else port, *ipv6_fields)))
                except OSError as error:
                    if not listeners or error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                        raise
            return listeners
        except OSError as error:
            for listener in listeners:
                listener.close()
            # With port 0 the system chooses one for IPv4, which may be in use for IPv6: then another one may do.
            only_ipv6_in_use = port == 0 and listeners and error.errno == errno.EADDRINUSE
            if not only_ipv6_in_use or attempt == _MAX_ATTEMPTS - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


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
