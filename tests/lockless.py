"""A disk without locks, and without hard links, as some network and FUSE file systems are: the kernel itself answers so, to a
thread and its children.

Shared by tests; holds no test.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import pytest

T = TypeVar("T")

_NUMBERS = {"x86_64": (73, 72, 86, 265), "aarch64": (32, 25, 37, 37)}  # flock, fcntl, link, linkat
_OFD_SETLK = 37


def without_locks(work: Callable[[], T], *, ofd: bool = False) -> T:
    """Do `work` where `flock` is not implemented and, unless `ofd`, locks of open files are not to be had either."""
    if sys.platform != "linux" or platform.machine() not in _NUMBERS:
        pytest.skip("a filter of system calls for this machine is not written")
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            _refuse(ofd)
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def _refuse(ofd: bool) -> None:
    """A filter for this thread and what it starts: the ones named are answered with an error, everything else is let through."""
    flock, fcntl, link, linkat = _NUMBERS[platform.machine()]
    load, equal, give = 0x20, 0x15, 0x06
    steps = [
        (load, 0, 0, 0),  # the number of the call
        (equal, 0, 1, flock),
        (give, 0, 0, 0x00050000 | errno.ENOSYS),
        (equal, 1, 0, link),
        (equal, 0, 1, linkat),
        (give, 0, 0, 0x00050000 | errno.EPERM),
        (equal, 0, 3, fcntl),
        (load, 0, 0, 16 + 8),  # its second argument
        (equal, 0, 1, _OFD_SETLK if not ofd else 0xFFFFFFFF),
        (give, 0, 0, 0x00050000 | errno.ENOLCK),
        (give, 0, 0, 0x7FFF0000),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in steps))
    program = struct.pack("<HxxxxxxQ", len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    for words in ((38, 1, 0, 0, 0), (22, 2, ctypes.c_char_p(program))):  # no new privileges; the filter
        if libc.prctl(*words):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
