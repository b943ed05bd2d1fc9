"""Access to the store's disk: what the operating system refuses becomes one sentence of ours.

Here are the sentences for the store as a whole. Where a single file is concerned and the user can do something about that
file, its own module says so (`blobs`, `manifests`).
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ndani.errors import StoreFailed

#: The error numbers of a full disk or an exceeded quota.
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ACCESS_ERRNOS = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def translate_disk_errors(root: Path, needed: int | None = None) -> Iterator[None]:
    """Turn an OSError inside the block into StoreFailed; `needed` is how many bytes were still to be written."""
    try:
        yield
    except OSError as error:
        raise StoreFailed(_sentence(root, error, needed)) from error


def require_free_space(root: Path, needed: int) -> None:
    """Raise StoreFailed when `needed` bytes do not fit, so that a transfer fails at its start and not after an hour."""
    with translate_disk_errors(root):
        free = shutil.disk_usage(root).free
    if needed > free:
        raise StoreFailed(_disk_full(root, needed, free))


def make_folder(path: Path) -> None:
    """Create a folder and its parents with mode 0755, like Ollama."""
    path.mkdir(parents=True, exist_ok=True, mode=0o755)


def sync_folder(path: Path) -> None:
    """Make renames in this folder survive a power cut. Systems that cannot open a folder do this by themselves."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        return
    finally:
        os.close(descriptor)


def format_bytes(count: int) -> str:
    """A size for people to read, in decimal units as disks are labelled."""
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
        return _disk_full(root, needed, free)
    if error.errno in _ACCESS_ERRNOS:
        path = error.filename or root
        return f"the model store {root} does not allow this ({path}: {error.strerror}); change its owner or set NDANI_MODELS"
    return f"the model store {root} failed: {error.strerror or type(error).__name__} ({error.filename or root})"


def _disk_full(root: Path, needed: int | None, free: int) -> str:
    requirement = f"{format_bytes(needed)} are needed" if needed else "more is needed"
    return (
        f"no room in the model store {root}: {requirement}, {format_bytes(free)} are free; "
        "free some space or point NDANI_MODELS at another disk, then try again"
    )


def write_all(descriptor: int, content: bytes) -> None:
    """Write all bytes: on a nearly full disk one write may accept only some of them. Raises OSError."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
