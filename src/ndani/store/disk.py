"""The border to the operating system's files: its errors become one sentence of ours here, and nowhere else."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ndani.errors import StoreFailed

#: What the system says when there is no room.
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def translate_disk_errors(root: Path, needed: int | None = None) -> Iterator[None]:
    """Rename an OSError inside to StoreFailed; `needed` is how many bytes were still to be written."""
    try:
        yield
    except OSError as error:
        raise StoreFailed(_sentence(root, error, needed)) from error


def require_free_space(root: Path, needed: int) -> None:
    """Raise StoreFailed now when `needed` bytes cannot fit, rather than after an hour of transfer."""
    with translate_disk_errors(root):
        free = shutil.disk_usage(root).free
    if needed > free:
        raise StoreFailed(_full(root, needed, free))


def make_folder(path: Path) -> None:
    """Make a folder and its parents, 0755 as Ollama's are."""
    path.mkdir(parents=True, exist_ok=True, mode=0o755)


def sync_folder(path: Path) -> None:
    """Make a rename in this folder survive a power cut. Systems that cannot open a folder settle by themselves."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        return
    finally:
        os.close(handle)


def format_bytes(count: int) -> str:
    """Bytes for a reader, in the decimal units that disks are sold in."""
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count} bytes"


def _sentence(root: Path, error: OSError, needed: int | None) -> str:
    if error.errno in DISK_FULL_ERRNOS:
        try:
            free = shutil.disk_usage(root).free
        except OSError:
            free = 0
        return _full(root, needed, free)
    if error.errno in _CLOSED:
        what = error.filename or root
        return f"the model store {root} does not allow this ({what}: {error.strerror}); change its owner or set NDANI_MODELS"
    return f"the model store {root} failed: {error.strerror or type(error).__name__} ({error.filename or root})"


def _full(root: Path, needed: int | None, free: int) -> str:
    wanted = f"{format_bytes(needed)} are needed" if needed else "more is needed"
    return (
        f"no room in the model store {root}: {wanted}, {format_bytes(free)} are free; "
        "free some space or point NDANI_MODELS at another disk, then try again"
    )
