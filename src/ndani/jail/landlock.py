"""Landlock: which files a jailed process may open. Only rights that the running kernel supports are requested. Pure ctypes.

The numbers come from `linux/landlock.h`. A ruleset applies to the calling thread and to threads that it starts later. So
it must be applied while the process has only one thread.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Mapping

from ndani.jail.syscalls import ARCHITECTURES, syscall_number

WRITE_FILE, READ_FILE, READ_DIR, MAKE_SOCK = 1 << 1, 1 << 2, 1 << 3, 1 << 9

#: The rights that each ABI version added: thirteen in the first, then refer, truncate, and ioctl on devices.
_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
#: ABI 4 added binding and connecting TCP; ABI 6 added abstract sockets of, and signals to, processes outside the jail.
_NETWORK_FROM, _SCOPE_FROM = 4, 6
_RULE_PATH_BENEATH, _VERSION_FLAG = 1, 1
#: The right to use ioctl on a device. From ABI 5 the right to open it is not enough; older kernels do not check.
COMMAND_DEVICE = 1 << 15
#: The errors of a kernel without Landlock, or with Landlock not enabled at boot.
_ABSENT = (errno.ENOSYS, errno.EOPNOTSUPP)
_FILE_RIGHTS = WRITE_FILE | READ_FILE | COMMAND_DEVICE


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def abi() -> int:
    """The Landlock version of this kernel; 0 when it has none, or has it disabled.

    Any other error is raised as OSError: something, such as a container, forbids the call, so the version is unknown.
    """
    try:
        return _call("landlock_create_ruleset", None, 0, _VERSION_FLAG)
    except OSError as error:
        if error.errno in _ABSENT:
            return 0
        raise


def restrict(version: int, paths: Mapping[str, int], descriptors: Mapping[int, int]) -> None:
    """Let this thread open only these paths and descriptors, with these rights. `version` is the Landlock version, above 0.

    Paths that do not exist are skipped. Raises OSError when the kernel refuses.
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
        rights &= _FILE_RIGHTS  # the kernel refuses a rule with folder rights on a file
    rule = _Beneath(rights, descriptor)
    try:
        _call("landlock_add_rule", ruleset_fd, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    except OSError as error:
        if error.errno != errno.EBADFD:  # a memfd: it is not on a mounted file system and needs no rule
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
