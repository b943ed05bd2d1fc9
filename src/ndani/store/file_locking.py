"""How one process keeps a file to itself: by a lock of the kernel's, or on a disk that has none by the file's being there.

`flock` is asked first, then a lock of the open file's. Some network and FUSE file systems have neither. There only one
process can have made a file (O_EXCL), and its mark stands in it. The kernel does not clear up after one that dies, so a
file of somebody who is gone is removed: of a process of this machine that does not run any more, and of another machine's
when nobody has touched it for minutes, as who holds it does all the while. One with nothing in it is of somebody who was
ended before the mark stood there, which takes no time: it is nobody's after seconds.
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

#: What the system says where a disk has no such locks.
UNSUPPORTED_ERRNOS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
#: Seconds between two touches, and after how many without one a file of another machine's is nobody's.
TOUCH_INTERVAL, FOREIGN_STALE_AFTER = 30.0, 300.0
#: And after how many an empty one is: less than anybody waits for the store's lock.
EMPTY_STALE_AFTER = 10.0

_MARK = re.compile(rb"held by (\S+) (\d+) (\d+) ([0-9a-f]{32})\n")
_LONGEST = 300  # bytes of a mark

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
            _seize_open_file(handle)

    def _seize_open_file(handle: int) -> None:
        whole = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        try:
            fcntl.fcntl(handle, fcntl.F_OFD_SETLK, whole)
        except PermissionError:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
        except OSError as error:
            # A kernel without them says EINVAL; to whoever asks, it is the same.
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)) if error.errno == errno.EINVAL else error from None


class OwnerRecord:
    """What stands in a file that is held by its being there; it is touched until `remove`."""

    def __init__(self, path: Path, handle: int) -> None:
        """Write it. Raises OSError; FileNotFoundError where the file was taken for one of the dead meanwhile."""
        self._path = path
        self._text = b"held by %s %d %d %s\n" % (_machine(), os.getpid(), _began(os.getpid()), uuid.uuid4().hex.encode())
        try:
            write_all(handle, self._text)
        except OSError:
            path.unlink(missing_ok=True)  # nobody shall take it for a lock
            raise
        if not os.path.samestat(os.fstat(handle), path.stat()):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        self._over = threading.Event()
        threading.Thread(target=self._keep, daemon=True).start()

    def remove(self) -> None:
        """Remove the file, unless somebody has taken it for one of the dead and made their own."""
        self._over.set()
        with contextlib.suppress(OSError):
            if self._path.read_bytes().startswith(self._text):
                self._path.unlink()

    def _keep(self) -> None:
        while not self._over.wait(TOUCH_INTERVAL):
            with contextlib.suppress(OSError):
                os.utime(self._path)


def has_live_owner(path: Path, handle: int) -> bool:
    """Whether an open file is held by its being there; a mark that somebody dead has left is removed. Raises OSError."""
    if not _MARK.match(text := _text(handle)):
        return False
    if _is_held(path, handle, text):
        return True
    os.ftruncate(handle, 0)
    return False


def remove_abandoned(path: Path, handle: int) -> bool:
    """Remove a file that nobody holds any more; False while somebody may. Raises OSError.

    `handle` has it open. Of two who clear it away at once, neither removes what the other has made in its place.
    """
    text = _text(handle)
    if _is_held(path, handle, text):
        return False
    aside = path.with_name(f".{uuid.uuid4().hex}")
    try:
        if path.read_bytes()[:_LONGEST] != text:
            return True  # somebody was faster
        path.rename(aside)
    except FileNotFoundError:
        return True
    if aside.read_bytes()[: len(text)] != text or (not text and aside.stat().st_size):  # it was not that one any more
        with contextlib.suppress(FileExistsError):
            _put_back(aside, path)
    aside.unlink()
    return True


def _put_back(aside: Path, path: Path) -> None:
    """Give a file its name again. Raises FileExistsError where another one has it by now, OSError."""
    try:
        path.hardlink_to(aside)
    except FileExistsError:
        raise
    except OSError:  # a disk without hard links: a copy holds as well, for who made it knows it by its mark
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            write_all(handle, aside.read_bytes())
        finally:
            os.close(handle)


def write_all(handle: int, content: bytes) -> None:
    """Write all of it: on a nearly full disk one write may take only a part. Raises OSError."""
    view = memoryview(content)
    while view:
        view = view[os.write(handle, view) :]


def _text(handle: int) -> bytes:
    """What a file begins with; the next write still goes to its beginning."""
    os.lseek(handle, 0, os.SEEK_SET)
    found = os.read(handle, _LONGEST)
    os.lseek(handle, 0, os.SEEK_SET)
    return found


def _is_held(path: Path, handle: int, text: bytes) -> bool:
    found = _MARK.match(text)
    if found and found[1] == _machine():
        return _lives(int(found[2]), int(found[3]))
    return _now(path.parent) - os.fstat(handle).st_mtime < (FOREIGN_STALE_AFTER if text else EMPTY_STALE_AFTER)


def _now(folder: Path) -> float:
    """The time by the clock of the disk's own machine, which is the one that files are dated by."""
    probe = folder / f".{uuid.uuid4().hex}"
    handle = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        return os.fstat(handle).st_mtime
    finally:
        os.close(handle)
        probe.unlink(missing_ok=True)


def _machine() -> bytes:
    """This machine, since it was started, and among whose processes a number means something."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino}".encode()
    except OSError:
        return os.uname().nodename.encode() if hasattr(os, "uname") else b"-"


def _began(process: int) -> int:
    """When a process of this machine was started, in a measure of the system's; 0 where it does not say. Raises OSError."""
    if not Path("/proc/self/stat").exists():
        return 0
    state, *fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    return -1 if state in (b"Z", b"X") else int(fields[18])  # what is dead and not yet buried holds nothing


def _lives(process: int, began: int) -> bool:
    with contextlib.suppress(OSError, ValueError, IndexError):
        if found := _began(process):
            return found == began
    if sys.platform == "win32":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's, of whom we may not know more
        return True
    return True
