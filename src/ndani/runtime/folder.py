"""The folder for the runners' sockets: one private folder per server. Folders that dead servers left behind are removed.

A folder belongs to the process that holds the lock on its `lock` file. The kernel releases the lock when that process ends, in
any way. Process ids would not work: they are reused, and two containers that share a folder both have a process 7.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ndani.errors import LoadFailed, Misconfigured

#: Maximum path of a Unix socket in bytes, without the terminating zero: Linux 107, macOS 103.
MAX_SOCKET_PATH = 107 if sys.platform == "linux" else 103
#: Bytes that follow the folder in a socket's path: `/xxxxxxxx/r.sock` (see `runner`).
_SOCKET_SUBPATH = 16
#: Seconds. A younger folder without a lock file may be one that a server is just creating; an older one is abandoned.
_MIN_UNLOCKED_AGE = 60.0


@contextlib.contextmanager
def runtime_folder() -> Iterator[Path]:
    """Create this server's folder (mode 0700, our user), remove those of dead servers, and remove ours at the end.

    It is under $XDG_RUNTIME_DIR if that is private to us, else under the temporary folder. Raises Misconfigured when no folder
    can be created, or its path is too long for a socket.
    """
    parent, prefix = _parent()
    if not is_utf8(parent):
        raise Misconfigured("the path of the folder for temporary files is no text in UTF-8; set TMPDIR to one that is")
    _sweep(parent, prefix)
    try:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    except OSError as error:
        raise Misconfigured(
            f"no folder for sockets can be made in {parent} ({error.strerror}); set TMPDIR to one you can write to"
        ) from None
    if not is_private(folder) or len(os.fsencode(folder)) + _SOCKET_SUBPATH > MAX_SOCKET_PATH:
        folder.rmdir()
        raise Misconfigured(f"{parent} is too long, or not safe, for sockets; set TMPDIR to a shorter folder of your own")
    lock = _lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def recreate(folder: Path) -> None:
    """Create this server's folder again after a cleanup job has removed it. Raises LoadFailed when that fails.

    Its lock is held until this process ends: the next server would remove a folder without a lock.
    """
    try:
        folder.mkdir(mode=0o700)  # raises if it exists: another user may have created it, and it cannot be trusted
        _lock(folder)
    except OSError as error:
        raise LoadFailed(
            f"the folder for sockets {folder} has gone and cannot be made again ({error.strerror}); restart the server"
        ) from None


def _parent() -> tuple[Path, str]:
    xdg_folder = os.environ.get("XDG_RUNTIME_DIR", "")
    prefix = f"ndani-{os.getuid() if hasattr(os, 'getuid') else 0}-"
    if xdg_folder:
        short_enough = len(os.fsencode(xdg_folder)) < MAX_SOCKET_PATH - _SOCKET_SUBPATH - len(prefix) - 9
        usable = is_utf8(Path(xdg_folder)) and is_private(Path(xdg_folder)) and os.access(xdg_folder, os.W_OK)
        if usable and short_enough:
            return Path(xdg_folder), prefix
    return Path(tempfile.gettempdir()), prefix


def is_private(folder: Path) -> bool:
    """Whether this is a folder, not a link, that we own and no other user can access."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    if not hasattr(os, "getuid"):
        return stat.S_ISDIR(status.st_mode)
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and stat.S_IMODE(status.st_mode) & 0o077 == 0


def is_utf8(path: Path) -> bool:
    """Whether a path can be sent to a runner: a file name may be any bytes, and the runner gets it as JSON."""
    try:
        return bool(str(path).encode())
    except UnicodeEncodeError:
        return False


def _lock(folder: Path) -> int:
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    _try_lock(descriptor)
    return descriptor


def _try_lock(descriptor: int) -> bool:
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sweep(parent: Path, prefix: str) -> None:
    """Remove the folders of dead servers. Folders of other users, or that cannot be read, are left alone."""
    with contextlib.suppress(OSError):
        for folder in parent.glob(f"{prefix}*"):
            if is_private(folder) and _is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        with contextlib.suppress(OSError):
            return time.time() - folder.lstat().st_mtime > _MIN_UNLOCKED_AGE
        return False
    try:
        return _try_lock(descriptor)
    finally:
        os.close(descriptor)
