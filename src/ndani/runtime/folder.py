"""Where runners' sockets lie: one private folder per server, and what dead servers left behind is swept.

A folder belongs to whoever holds the lock on its `lock` file; the kernel lets go of that with the process, however it
died. Process ids would not do: they are used again, and two containers sharing a folder both have a process 7.
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

#: Longest path of a Unix socket in bytes, without its closing zero: Linux 107, macOS 103.
SOCKET_PATH = 107 if sys.platform == "linux" else 103
#: What follows the folder in a socket's path: `/xxxxxxxx/r.sock` (see `runner`).
_TAIL = 16
#: A folder without a lock is being made at this moment, or its maker died there; after a minute it is the latter.
_BEING_MADE = 60.0


@contextlib.contextmanager
def runtime_folder() -> Iterator[Path]:
    """Make this server's folder (mode 0700, ours), sweep those of dead servers, and remove it at the end.

    It is under $XDG_RUNTIME_DIR where that is ours, else under the temporary folder. Raises Misconfigured when no
    folder can be made, or its path is too long for a socket.
    """
    parent, prefix = _parent()
    if not is_text(parent):
        raise Misconfigured("the path of the folder for temporary files is no text in UTF-8; set TMPDIR to one that is")
    _sweep(parent, prefix)
    try:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    except OSError as error:
        raise Misconfigured(
            f"no folder for sockets can be made in {parent} ({error.strerror}); set TMPDIR to one you can write to"
        ) from None
    if not is_ours(folder) or len(os.fsencode(folder)) + _TAIL > SOCKET_PATH:
        folder.rmdir()
        raise Misconfigured(f"{parent} is too long, or not safe, for sockets; set TMPDIR to a shorter folder of your own")
    lock = _lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remake(folder: Path) -> None:
    """Make this server's folder again, where somebody who tidies up has removed it. Raises LoadFailed when that cannot be done.

    Its lock is held until this process ends: a folder without one would be swept by the next server.
    """
    try:
        folder.mkdir(mode=0o700)  # ours, or there is an error: whoever made one of this name meanwhile is not to be trusted
        _lock(folder)
    except OSError as error:
        raise LoadFailed(
            f"the folder for sockets {folder} has gone and cannot be made again ({error.strerror}); restart the server"
        ) from None


def _parent() -> tuple[Path, str]:
    own = os.environ.get("XDG_RUNTIME_DIR", "")
    prefix = f"ndani-{os.getuid() if hasattr(os, 'getuid') else 0}-"
    if (
        own
        and is_text(Path(own))
        and is_ours(Path(own))
        and os.access(own, os.W_OK)
        and len(os.fsencode(own)) < SOCKET_PATH - _TAIL - len(prefix) - 9
    ):
        return Path(own), prefix
    return Path(tempfile.gettempdir()), prefix


def is_ours(folder: Path) -> bool:
    """A real folder, not a link, that nobody but its owner, us, can enter."""
    try:
        state = folder.lstat()
    except OSError:
        return False
    if not hasattr(os, "getuid"):
        return stat.S_ISDIR(state.st_mode)
    return stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid() and stat.S_IMODE(state.st_mode) & 0o077 == 0


def is_text(path: Path) -> bool:
    """Whether a runner can be told a path: a name may be any bytes, and it is told in JSON."""
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
    """Remove the folders of servers that are gone. What is not ours, or cannot be read, is left alone."""
    with contextlib.suppress(OSError):
        for folder in parent.glob(f"{prefix}*"):
            if is_ours(folder) and _is_dead(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_dead(folder: Path) -> bool:
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        with contextlib.suppress(OSError):
            return time.time() - folder.lstat().st_mtime > _BEING_MADE
        return False
    try:
        return _try_lock(descriptor)
    finally:
        os.close(descriptor)
