"""Landlock: which files a jailed process may open. Rights are masked to those that the running kernel supports. Pure ctypes.

The numbers come from `linux/landlock.h`. A ruleset applies to the calling thread and the threads that it starts later, so
it is applied while there is only one thread.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Mapping

from ndani.jail.syscalls import ARCHITECTURES, syscall_number

WRITE_FILE, READ_FILE, READ_DIR, MAKE_SOCK = 1 << 1, 1 << 2, 1 << 3, 1 << 9

#: Every right by the ABI that brought it: thirteen first, then refer, truncate, ioctl on devices.
_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
#: From ABI 4 binding and connecting TCP, from 6 abstract sockets of others and signals to others.
_NETWORK_FROM, _SCOPE_FROM = 4, 6
_RULE_PATH_BENEATH, _VERSION_FLAG = 1, 1
#: From ABI 5 a device that may be opened may still not be commanded; older kernels do not ask.
COMMAND_DEVICE = 1 << 15
#: A kernel without Landlock, or with one that was not turned on when it started.
_ABSENT = (errno.ENOSYS, errno.EOPNOTSUPP)
_FILE_RIGHTS = WRITE_FILE | READ_FILE | COMMAND_DEVICE


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def abi() -> int:
    """The Landlock version of this kernel; 0 when it has none, or has it disabled.

    Raises OSError for any other error: something forbids the call, as containers do, and the kernel's version is unknown.
    """
    try:
        return _call("landlock_create_ruleset", None, 0, _VERSION_FLAG)
    except OSError as error:
        if error.errno in _ABSENT:
            return 0
        raise


def restrict(version: int, paths: Mapping[str, int], descriptors: Mapping[int, int]) -> None:
    """Let this thread open only what is named, with the rights given, as a `version` of Landlock above 0 can.

    A path that does not exist is passed over. Raises OSError when the kernel refuses.
    """
    handled = 0
    for since, rights in _RIGHTS.items():
        handled |= rights if version >= since else 0
    ruleset = _Ruleset(handled, 0b11 if version >= _NETWORK_FROM else 0, 0b11 if version >= _SCOPE_FROM else 0)
    size = 24 if version >= _SCOPE_FROM else 16 if version >= _NETWORK_FROM else 8
    ruleset_fd = _call("landlock_create_ruleset", ctypes.byref(ruleset), size, 0)
    try:
        for path, rights in paths.items():
            _allow_path(ruleset_fd, path, rights & handled)
        for descriptor, rights in descriptors.items():
            _allow(ruleset_fd, descriptor, rights & handled)
        _call("landlock_restrict_self", ruleset_fd, 0)
    finally:
        os.close(ruleset_fd)


def _allow_path(ruleset_fd: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        _allow(ruleset_fd, descriptor, rights)
    finally:
        os.close(descriptor)


def _allow(ruleset_fd: int, descriptor: int, rights: int) -> None:
    if not os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112 - a descriptor, not a path
        rights &= _FILE_RIGHTS  # rights of folders on a file are refused
    rule = _Beneath(rights, descriptor)
    try:
        _call("landlock_add_rule", ruleset_fd, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    except OSError as error:
        if error.errno != errno.EBADFD:  # a memfd: it is on no mounted file system, and needs no rule
            raise


def _call(name: str, *arguments: object) -> int:
    machine = ARCHITECTURES.get(os.uname().machine)
    if machine is None:
        raise OSError(errno.ENOSYS, name)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    given = [ctypes.c_long(part) if isinstance(part, int) else part for part in arguments]
    result: int = libc.syscall(ctypes.c_long(syscall_number(name, machine) or 0), *given)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result
