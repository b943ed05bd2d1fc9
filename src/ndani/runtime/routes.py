"""Every way out of a process that we know: thirteen to the network, two to local sockets, four to files, one to the server.

Each is tried for real, by a function that needs no import and no file of its own: this module is loaded before the
jail shuts and called after the model is loaded. Raising OSError means the kernel refused. What is at the other end is
made by `probe.Targets`. To add a route: a function, a row in `routes()`, and a target if it needs one.
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

_MPTCP, _FASTOPEN, _PATIENCE = 262, 0x20000000, 2.0
#: The kernel let it out and somebody answered, or will: a refusal by the other end is no jail.
_GOT_OUT = (errno.ECONNREFUSED, errno.ECONNRESET, errno.ETIMEDOUT, errno.EINPROGRESS, errno.EAGAIN, errno.EHOSTUNREACH)


class Addresses(msgspec.Struct, frozen=True):
    """Where the targets are, as the front tells the child: ports on loopback, paths, an abstract name, a process.

    `spare` is a descriptor, open for reading, of a file that is nobody's: whatever is tried on weights is tried on it.
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
    spare: int


class Outcome(msgspec.Struct, frozen=True):
    """What became of one route. `error` is the kernel's name for its refusal, empty when the route is open."""

    name: str
    effect: str
    blocked: bool
    error: str = ""
    network: bool = True


@dataclass(frozen=True, slots=True)
class Route:
    """A way out. `effect` says what it does outside: reaches, creates, reads or writes. `root`: not for ordinary users."""

    name: str
    effect: str
    attempt: Callable[[Addresses], None]
    network: bool = True
    root: bool = False


def routes() -> list[Route]:
    """All routes; the thirteen with `network` are the promise that a runner can open no connection."""
    return [
        _reach("TCP v4", socket.AF_INET, lambda to: ("127.0.0.1", to.tcp4)),
        _reach("TCP v6", socket.AF_INET6, lambda to: ("::1", to.tcp6)),
        _reach("TCP v4-mapped v6", socket.AF_INET6, lambda to: ("::ffff:127.0.0.1", to.tcp4)),
        _reach("MPTCP", socket.AF_INET, lambda to: ("127.0.0.1", to.tcp4), _MPTCP),
        Route("TCP Fast Open", "reaches", _fast_open),
        Route("UDP v4", "reaches", lambda to: _datagram(socket.AF_INET, ("127.0.0.1", to.udp4), b"UDP v4")),
        Route("UDP v6", "reaches", lambda to: _datagram(socket.AF_INET6, ("::1", to.udp6), b"UDP v6")),
        Route("raw socket", "creates", lambda _: _create(2, 3, 1), root=True),
        Route("AF_PACKET", "creates", lambda _: _create(17, 3, 0x0300), root=True),
        Route("netlink", "creates", lambda _: _create(16, 3, 0)),
        Route("vsock", "creates", lambda _: _create(40, 1, 0)),
        Route("io_uring connect", "reaches", _ring),
        _reach("loopback TCP, other port", socket.AF_INET, lambda to: ("127.0.0.1", to.other)),
        _reach("unix socket by path", _unix(), lambda to: to.path),
        _reach("abstract unix socket", _unix(), lambda to: "\0" + to.abstract),
        Route("read a file of the user", "reads", _read, network=False),
        Route("write to a temporary folder", "writes", _write, network=False),
        Route("empty its weights", "writes", _empty, network=False),
        Route("write to its weights", "writes", _overwrite, network=False),
        Route("memory of the server", "reads", _look_into, network=False),
    ]


def attempt(addresses: Addresses) -> list[Outcome]:
    """Try every route from this very process."""
    return [_outcome(route, addresses) for route in routes()]


def _outcome(route: Route, addresses: Addresses) -> Outcome:
    try:
        route.attempt(addresses)
    except OSError as error:  # TimeoutError is one too, and has no number
        number = error.errno or errno.ETIMEDOUT
        name = errno.errorcode.get(number, str(number))
        return Outcome(route.name, route.effect, number not in _GOT_OUT, name, route.network)
    return Outcome(route.name, route.effect, False, "", route.network)


def _unix() -> int:
    return int(getattr(socket, "AF_UNIX", 1))


def _reach(name: str, family: int, where: Callable[[Addresses], tuple[str, int] | str], protocol: int = 0) -> Route:
    """A stream to somewhere that says the route's own name there."""
    return Route(name, "reaches", lambda to: _dial(family, where(to), name.encode(), protocol), network=family != _unix())


def _dial(family: int, address: tuple[str, int] | str, word: bytes, protocol: int) -> None:
    with socket.socket(family, socket.SOCK_STREAM, protocol) as end:
        end.settimeout(_PATIENCE)
        end.connect(address)
        end.sendall(word)


def _fast_open(to: Addresses) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as end:
        # A kernel-side timeout: with Python's own the socket would not block, and the word would not go with the SYN.
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(_PATIENCE), 0))
        end.sendto(b"TCP Fast Open", _FASTOPEN, ("127.0.0.1", to.tcp4))


def _datagram(family: int, address: tuple[str, int], word: bytes) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as end:
        end.settimeout(_PATIENCE)
        end.sendto(word, address)


def _create(family: int, kind: int, protocol: int) -> None:
    socket.socket(family, kind, protocol).close()


def _read(to: Addresses) -> None:
    descriptor = os.open(to.readable, os.O_RDONLY)
    try:
        os.read(descriptor, 1)
    finally:
        os.close(descriptor)


def _write(to: Addresses) -> None:
    os.close(os.open(os.path.join(to.folder, "written"), os.O_WRONLY | os.O_CREAT, 0o600))  # noqa: PTH118 - Path is not loaded here


def _again(to: Addresses, flags: int) -> int:
    """Open a file once more that is open for reading: its name in /proc gives a descriptor with rights of its own."""
    return os.open(f"/proc/self/fd/{to.spare}", flags)


def _empty(to: Addresses) -> None:
    os.close(_again(to, os.O_RDONLY | os.O_TRUNC))


def _overwrite(to: Addresses) -> None:
    descriptor = _again(to, os.O_WRONLY)
    try:
        os.pwrite(descriptor, b"?", 0)
    finally:
        os.close(descriptor)


def _look_into(to: Addresses) -> None:
    os.close(os.open(f"/proc/{to.server}/mem", os.O_RDONLY))


# io_uring: a ring is a second road to the kernel's socket calls that a filter on those calls never sees.
_SETUP, _ENTER, _CONNECT, _SEND, _SOCKET, _GET_EVENTS = 425, 426, 16, 26, 45, 1
_SUBMISSIONS_AT, _COMPLETIONS_AT, _ENTRIES_AT, _ENTRY = 0, 0x8000000, 0x10000000, 64


def _ring(to: Addresses) -> None:
    """Make a socket, connect it and send, all through the ring: no socket call is made by this process."""
    parameters = (ctypes.c_uint32 * 30)()
    libc = ctypes.CDLL(None, use_errno=True)
    ring = libc.syscall(ctypes.c_long(_SETUP), ctypes.c_uint(4), ctypes.byref(parameters))
    if ring < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")
    try:
        end = _ride(ring, parameters, struct.pack("<BBHiQQIIQ", _SOCKET, 0, 0, socket.AF_INET, socket.SOCK_STREAM, 0, 0, 0, 1))
        try:
            packed = struct.pack("<H", socket.AF_INET) + struct.pack(">H4s8x", to.tcp4, b"\x7f\0\0\1")
            name = ctypes.create_string_buffer(packed, 16)
            _ride(ring, parameters, struct.pack("<BBHiQQIIQ", _CONNECT, 0, 0, end, 16, ctypes.addressof(name), 0, 0, 2))
            word = ctypes.create_string_buffer(b"io_uring connect")
            _ride(ring, parameters, struct.pack("<BBHiQQIIQ", _SEND, 0, 0, end, 0, ctypes.addressof(word), 16, 0, 3))
        finally:
            os.close(end)
    finally:
        os.close(ring)


def _ride(ring: int, parameters: ctypes.Array[ctypes.c_uint32], entry: bytes) -> int:
    """Submit one entry, wait for its end and return its result. Layout: `struct io_uring_params` in `linux/io_uring.h`."""
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
        one, flags = ctypes.c_uint(1), ctypes.c_uint(_GET_EVENTS)
        if libc.syscall(ctypes.c_long(_ENTER), ctypes.c_int(ring), one, one, flags, None, ctypes.c_size_t(0)) < 0:
            raise OSError(ctypes.get_errno(), "io_uring_enter")
        (head,) = struct.unpack_from("<I", completions, done_head_at)
        place = done_at + 16 * (head & struct.unpack_from("<I", completions, done_mask_at)[0])
        (result,) = struct.unpack_from("<i", completions, place + 8)
        struct.pack_into("<I", completions, done_head_at, (head + 1) & 0xFFFFFFFF)
    if result < 0:
        raise OSError(-result, "io_uring")
    return int(result)
