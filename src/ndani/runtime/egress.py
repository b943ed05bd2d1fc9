"""Every known way out of a process: thirteen to the network, two to local sockets, four to files, one to the server.

Each route is really tried, by a function that needs no import and no file: this module is loaded before the jail is applied,
and called after the model is loaded. An OSError means that the kernel refused. `probe.Targets` creates the far ends. To add
a route, write a function, a row in `routes()`, and a target if it needs one.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

_MPTCP, _FASTOPEN, _TIMEOUT = 262, 0x20000000, 2.0
#: Errors from the far end or the network, not from a jail: the kernel let the attempt through.
_NOT_BLOCKED = (errno.ECONNREFUSED, errno.ECONNRESET, errno.ETIMEDOUT, errno.EINPROGRESS, errno.EAGAIN, errno.EHOSTUNREACH)


class Addresses(msgspec.Struct, frozen=True):
    """The addresses of the targets, as the front sends them to the child: loopback ports, paths, an abstract name, a process id.

    `decoy` is a descriptor, open for reading, of a file without value. Attacks on the weights are tried on it instead.
    """

    tcp4: int
    tcp6: int
    other: int
    udp4: int
    udp6: int
    path: str
    abstract: str
    readable: str
    folder: str
    server: int
    decoy: int


class Outcome(msgspec.Struct, frozen=True):
    """The outcome of one route. `error` is the name of the kernel's error, empty when the route is open."""

    name: str
    effect: str
    blocked: bool
    error: str = ""
    network: bool = True


@dataclass(frozen=True, slots=True)
class Route:
    """A way out. `effect` is what it does without a jail: reaches, creates, reads or writes. `root`: only root can use it at all."""

    name: str
    effect: str
    attempt: Callable[[Addresses], None]
    network: bool = True
    root: bool = False


def routes() -> list[Route]:
    """All routes. The thirteen with `network` test the promise that a runner can open no network connection."""
    return [
        _reach("TCP v4", socket.AF_INET, lambda targets: ("127.0.0.1", targets.tcp4)),
        _reach("TCP v6", socket.AF_INET6, lambda targets: ("::1", targets.tcp6)),
        _reach("TCP v4-mapped v6", socket.AF_INET6, lambda targets: ("::ffff:127.0.0.1", targets.tcp4)),
        _reach("MPTCP", socket.AF_INET, lambda targets: ("127.0.0.1", targets.tcp4), _MPTCP),
        Route("TCP Fast Open", "reaches", _fast_open),
        Route("UDP v4", "reaches", lambda targets: _datagram(socket.AF_INET, ("127.0.0.1", targets.udp4), b"UDP v4")),
        Route("UDP v6", "reaches", lambda targets: _datagram(socket.AF_INET6, ("::1", targets.udp6), b"UDP v6")),
        Route("raw socket", "creates", lambda _: _create(2, 3, 1), root=True),
        Route("AF_PACKET", "creates", lambda _: _create(17, 3, 0x0300), root=True),
        Route("netlink", "creates", lambda _: _create(16, 3, 0)),
        Route("vsock", "creates", lambda _: _create(40, 1, 0)),
        Route("io_uring connect", "reaches", _io_uring),
        _reach("loopback TCP, other port", socket.AF_INET, lambda targets: ("127.0.0.1", targets.other)),
        _reach("unix socket by path", _unix_family(), lambda targets: targets.path),
        _reach("abstract unix socket", _unix_family(), lambda targets: "\0" + targets.abstract),
        Route("read a file of the user", "reads", _read, network=False),
        Route("write to a temporary folder", "writes", _write, network=False),
        Route("empty its weights", "writes", _empty, network=False),
        Route("write to its weights", "writes", _overwrite, network=False),
        Route("memory of the server", "reads", _open_server_memory, network=False),
    ]


def attempt(addresses: Addresses) -> list[Outcome]:
    """Try every route from this process."""
    return [_outcome(route, addresses) for route in routes()]


def _outcome(route: Route, addresses: Addresses) -> Outcome:
    try:
        route.attempt(addresses)
    except OSError as error:  # a TimeoutError is an OSError without a number
        number = error.errno or errno.ETIMEDOUT
        name = errno.errorcode.get(number, str(number))
        return Outcome(route.name, route.effect, number not in _NOT_BLOCKED, name, route.network)
    return Outcome(route.name, route.effect, False, "", route.network)


def _unix_family() -> int:
    return int(getattr(socket, "AF_UNIX", 1))


def _reach(name: str, family: int, address_of: Callable[[Addresses], tuple[str, int] | str], protocol: int = 0) -> Route:
    """A route that connects a stream socket and sends the route's name."""
    return Route(
        name,
        "reaches",
        lambda targets: _connect_and_send(family, address_of(targets), name.encode(), protocol),
        network=family != _unix_family(),
    )


def _connect_and_send(family: int, address: tuple[str, int] | str, payload: bytes, protocol: int) -> None:
    with socket.socket(family, socket.SOCK_STREAM, protocol) as sock:
        sock.settimeout(_TIMEOUT)
        sock.connect(address)
        sock.sendall(payload)


def _fast_open(targets: Addresses) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        # A timeout in the kernel: Python's own makes the socket non-blocking, and the payload would not be sent with the SYN.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(_TIMEOUT), 0))
        sock.sendto(b"TCP Fast Open", _FASTOPEN, ("127.0.0.1", targets.tcp4))


def _datagram(family: int, address: tuple[str, int], payload: bytes) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(_TIMEOUT)
        sock.sendto(payload, address)


def _create(family: int, socket_type: int, protocol: int) -> None:
    socket.socket(family, socket_type, protocol).close()


def _read(targets: Addresses) -> None:
    descriptor = os.open(targets.readable, os.O_RDONLY)
    try:
        os.read(descriptor, 1)
    finally:
        os.close(descriptor)


def _write(targets: Addresses) -> None:
    os.close(os.open(os.path.join(targets.folder, "written"), os.O_WRONLY | os.O_CREAT, 0o600))  # noqa: PTH118 - Path is not loaded here


def _reopen_decoy(targets: Addresses, flags: int) -> int:
    """Open the decoy again through /proc: that gives a new descriptor with other access rights."""
    return os.open(f"/proc/self/fd/{targets.decoy}", flags)


def _empty(targets: Addresses) -> None:
    os.close(_reopen_decoy(targets, os.O_RDONLY | os.O_TRUNC))


def _overwrite(targets: Addresses) -> None:
    descriptor = _reopen_decoy(targets, os.O_WRONLY)
    try:
        os.pwrite(descriptor, b"?", 0)
    finally:
        os.close(descriptor)


def _open_server_memory(targets: Addresses) -> None:
    os.close(os.open(f"/proc/{targets.server}/mem", os.O_RDONLY))


# io_uring: a second interface to the kernel's socket functions, which a filter on system calls does not see.
_SETUP, _ENTER, _CONNECT, _SEND, _SOCKET, _GET_EVENTS = 425, 426, 16, 26, 45, 1
_SUBMISSIONS_AT, _COMPLETIONS_AT, _ENTRIES_AT, _ENTRY = 0, 0x8000000, 0x10000000, 64


def _io_uring(targets: Addresses) -> None:
    """Create a socket, connect it and send, all through io_uring: this process makes no socket call."""
    parameters = (ctypes.c_uint32 * 30)()
    libc = ctypes.CDLL(None, use_errno=True)
    ring = libc.syscall(ctypes.c_long(_SETUP), ctypes.c_uint(4), ctypes.byref(parameters))
    if ring < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")
    try:
        sock = _submit(ring, parameters, struct.pack("<BBHiQQIIQ", _SOCKET, 0, 0, socket.AF_INET, socket.SOCK_STREAM, 0, 0, 0, 1))
        try:
            packed_address = struct.pack("<H", socket.AF_INET) + struct.pack(">H4s8x", targets.tcp4, b"\x7f\0\0\1")
            name = ctypes.create_string_buffer(packed_address, 16)
            _submit(ring, parameters, struct.pack("<BBHiQQIIQ", _CONNECT, 0, 0, sock, 16, ctypes.addressof(name), 0, 0, 2))
            payload = ctypes.create_string_buffer(b"io_uring connect")
            _submit(ring, parameters, struct.pack("<BBHiQQIIQ", _SEND, 0, 0, sock, 0, ctypes.addressof(payload), 16, 0, 3))
        finally:
            os.close(sock)
    finally:
        os.close(ring)


def _submit(ring: int, parameters: ctypes.Array[ctypes.c_uint32], entry: bytes) -> int:
    """Submit one entry, wait until it completes and return its result. Layout: `struct io_uring_params` in `linux/io_uring.h`."""
    # 32-bit words: 0 sq_entries, 1 cq_entries, then from 10 sq_off and from 20 cq_off (head, tail, mask, entries, ...).
    tail_at, mask_at, array_at = parameters[11], parameters[12], parameters[16]
    done_head_at, done_mask_at, done_at = parameters[20], parameters[22], parameters[25]
    with (
        mmap.mmap(ring, array_at + 4 * parameters[0], offset=_SUBMISSIONS_AT) as submissions,
        mmap.mmap(ring, done_at + 16 * parameters[1], offset=_COMPLETIONS_AT) as completions,
        mmap.mmap(ring, _ENTRY * parameters[0], offset=_ENTRIES_AT) as entries,
    ):
        (tail,) = struct.unpack_from("<I", submissions, tail_at)
        slot = tail & struct.unpack_from("<I", submissions, mask_at)[0]
        entries[slot * _ENTRY : (slot + 1) * _ENTRY] = entry.ljust(_ENTRY, b"\0")
        struct.pack_into("<I", submissions, array_at + 4 * slot, slot)
        struct.pack_into("<I", submissions, tail_at, (tail + 1) & 0xFFFFFFFF)
        libc = ctypes.CDLL(None, use_errno=True)
        count, flags = ctypes.c_uint(1), ctypes.c_uint(_GET_EVENTS)
        if libc.syscall(ctypes.c_long(_ENTER), ctypes.c_int(ring), count, count, flags, None, ctypes.c_size_t(0)) < 0:
            raise OSError(ctypes.get_errno(), "io_uring_enter")
        (head,) = struct.unpack_from("<I", completions, done_head_at)
        offset = done_at + 16 * (head & struct.unpack_from("<I", completions, done_mask_at)[0])
        (result,) = struct.unpack_from("<i", completions, offset + 8)
        struct.pack_into("<I", completions, done_head_at, (head + 1) & 0xFFFFFFFF)
    if result < 0:
        raise OSError(-result, "io_uring")
    return int(result)
