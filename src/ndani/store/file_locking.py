"""How a process locks a file: with a kernel lock, or on a file system without those by creating the file.

`flock` is tried first, then an open file description lock. Some network and FUSE file systems have neither. There, only one
process can create the file (O_EXCL), and it writes an owner record into it. The kernel does not clean up after a process
that dies, so abandoned files are removed: those of a process of this machine that has ended, and those of another machine
that were not touched for minutes, because an owner touches its file regularly. An empty file is from a process that ended
before it wrote its record, which takes no time, so it counts as abandoned after seconds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import struct
import sys
import threading
import uuid
from pathlib import Path

from ndani.store.disk import write_all

#: The error numbers of a file system without kernel locks.
UNSUPPORTED_ERRNOS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
#: Seconds between two touches by the owner; and seconds without one after which another machine's file is abandoned.
TOUCH_INTERVAL, FOREIGN_STALE_AFTER = 30.0, 300.0
#: Seconds after which an empty file is abandoned: fewer than the timeout of the store lock.
EMPTY_STALE_AFTER = 10.0

_OWNER = re.compile(rb"held by (\S+) (\d+) (\d+) ([0-9a-f]{32})\n")
_MAX_OWNER_LENGTH = 300  # bytes

if sys.platform == "win32":  # written from the documentation of msvcrt, never run
    import msvcrt

    def lock_file(handle: int) -> None:
        """Lock an open file. Raises BlockingIOError where somebody else has, another OSError where it cannot be locked."""
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def lock_file(handle: int) -> None:
        """Lock an open file. Raises BlockingIOError where somebody else has, another OSError where it cannot be locked."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in UNSUPPORTED_ERRNOS or not hasattr(fcntl, "F_OFD_SETLK"):
                raise
            _lock_open_file(handle)

    def _lock_open_file(handle: int) -> None:
        whole = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        try:
            fcntl.fcntl(handle, fcntl.F_OFD_SETLK, whole)
        except PermissionError:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
        except OSError as error:
            # A kernel without these locks answers EINVAL; callers need not tell the cases apart.
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)) if error.errno == errno.EINVAL else error from None


class OwnerRecord:
    """The owner record in a lock file whose existence is the lock. The file is touched regularly until `remove`."""

    def __init__(self, path: Path, handle: int) -> None:
        """Write the record. Raises OSError; FileNotFoundError if another process took the file for abandoned in the meantime."""
        self._path = path
        self._text = b"held by %s %d %d %s\n" % (_machine_id(), os.getpid(), _start_time(os.getpid()), uuid.uuid4().hex.encode())
        try:
            write_all(handle, self._text)
        except OSError:
            path.unlink(missing_ok=True)  # so that it does not count as a lock
            raise
        if not os.path.samestat(os.fstat(handle), path.stat()):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        self._stop = threading.Event()
        threading.Thread(target=self._touch_until_stopped, daemon=True).start()

    def remove(self) -> None:
        """Remove the file, unless another process took it for abandoned and created its own."""
        self._stop.set()
        with contextlib.suppress(OSError):
            if self._path.read_bytes().startswith(self._text):
                self._path.unlink()

    def _touch_until_stopped(self) -> None:
        while not self._stop.wait(TOUCH_INTERVAL):
            with contextlib.suppress(OSError):
                os.utime(self._path)


def has_live_owner(path: Path, handle: int) -> bool:
    """Whether the open lock file has the record of a running owner; a record of an ended one is removed. Raises OSError."""
    if not _OWNER.match(text := _read_owner(handle)):
        return False
    if _is_alive(path, handle, text):
        return True
    os.ftruncate(handle, 0)
    return False


def remove_abandoned(path: Path, handle: int) -> bool:
    """Remove an abandoned lock file; False while it may have an owner. Raises OSError.

    `handle` is the open file. If two processes do this at once, neither removes the file that the other then creates.
    """
    text = _read_owner(handle)
    if _is_alive(path, handle, text):
        return False
    aside = path.with_name(f".{uuid.uuid4().hex}")
    try:
        if path.read_bytes()[:_MAX_OWNER_LENGTH] != text:
            return True  # another process was faster
        path.rename(aside)
    except FileNotFoundError:
        return True
    if aside.read_bytes()[: len(text)] != text or (not text and aside.stat().st_size):  # another file by now
        with contextlib.suppress(FileExistsError):
            _put_back(aside, path)
    aside.unlink()
    return True


def _put_back(aside: Path, path: Path) -> None:
    """Restore a file's name. Raises FileExistsError if another file has that name by now, OSError."""
    try:
        path.hardlink_to(aside)
    except FileExistsError:
        raise
    except OSError:  # no hard links here: a copy works as well, because its owner recognises it by the record
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            write_all(handle, aside.read_bytes())
        finally:
            os.close(handle)


def _read_owner(handle: int) -> bytes:
    """The beginning of the file, where its owner record is. Leaves the file position at 0."""
    os.lseek(handle, 0, os.SEEK_SET)
    content = os.read(handle, _MAX_OWNER_LENGTH)
    os.lseek(handle, 0, os.SEEK_SET)
    return content


def _is_alive(path: Path, handle: int, text: bytes) -> bool:
    owner = _OWNER.match(text)
    if owner and owner[1] == _machine_id():
        return _process_runs(int(owner[2]), int(owner[3]))
    return _disk_time(path.parent) - os.fstat(handle).st_mtime < (FOREIGN_STALE_AFTER if text else EMPTY_STALE_AFTER)


def _disk_time(folder: Path) -> float:
    """The time by the file server's clock, which sets the times of files."""
    probe = folder / f".{uuid.uuid4().hex}"
    handle = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        return os.fstat(handle).st_mtime
    finally:
        os.close(handle)
        probe.unlink(missing_ok=True)


def _machine_id() -> bytes:
    """An id of this boot of this machine and of the PID namespace, within which process ids are comparable."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino}".encode()
    except OSError:
        return os.uname().nodename.encode() if hasattr(os, "uname") else b"-"


def _start_time(process: int) -> int:
    """The start time of a process in clock ticks; 0 where the system has no /proc, -1 for a zombie. Raises OSError."""
    if not Path("/proc/self/stat").exists():
        return 0
    state, *fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    return -1 if state in (b"Z", b"X") else int(fields[18])  # a zombie holds no lock


def _process_runs(process: int, started: int) -> bool:
    with contextlib.suppress(OSError, ValueError, IndexError):
        if actual := _start_time(process):
            return actual == started
    if sys.platform == "win32":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's process, which runs
        return True
    return True
