"""Locks between processes: files under `.locks`, held by the kernel, so that a process that dies holds nothing.

Three kinds. The *store's* lock is held for milliseconds while names or blobs come and go. A *blob's* lock is held by
the one process that is bringing that blob. A *claim* lists blobs that a pull has or will have before any name does,
so that a delete or a prune elsewhere leaves them alone.
"""

from __future__ import annotations

import contextlib
import os
import sys
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ndani.store.disk import make_folder
from ndani.store.layout import Layout, hex_of

if sys.platform == "win32":  # written from the documentation of msvcrt, never run
    import msvcrt

    def _lock(handle: int, wait: bool) -> None:
        msvcrt.locking(handle, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(handle: int, wait: bool) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


class Lock:
    """One lock file, taken at construction by `take`. Gone from the disk when it is released."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._handle = handle

    def release(self) -> None:
        """Let go; the file is removed first, while it is still ours, so that no lock files pile up."""
        if self._handle < 0:
            return
        with contextlib.suppress(OSError):
            self.path.unlink()
        os.close(self._handle)
        self._handle = -1

    def write(self, content: bytes) -> None:
        """What the holder wants others to read."""
        os.write(self._handle, content)


def take(path: Path, *, wait: bool) -> Lock | None:
    """The lock at `path`, or None when somebody else has it and `wait` is false. Raises OSError."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(handle, wait)
            # The holder before us may have removed the file between our open and our lock: then ours guards nothing.
            if os.path.samestat(os.fstat(handle), path.stat()):
                return Lock(path, handle)
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


class Locks:
    """The locks of one store."""

    def __init__(self, layout: Layout) -> None:
        self._folder = layout.locks

    @contextmanager
    def store(self) -> Iterator[None]:
        """Held while names or blobs come and go; for milliseconds only. Raises OSError."""
        make_folder(self._folder)
        lock = take(self._folder / "store", wait=True)
        try:
            yield
        finally:
            if lock:
                lock.release()

    def blob(self, digest: str) -> Lock | None:
        """The right to bring this blob, or None while another process is bringing it. Raises OSError."""
        make_folder(self._folder)
        return take(self._folder / f"blob-{hex_of(digest)}", wait=False)

    @contextmanager
    def claim(self, digests: Iterable[str]) -> Iterator[None]:
        """Keep these blobs from being removed while inside. Raises OSError."""
        with self.store():
            lock = take(self._folder / f"claim-{uuid.uuid4().hex}", wait=True)
            if lock:
                lock.write("\n".join(sorted(digests)).encode())
        try:
            yield
        finally:
            if lock:
                lock.release()

    def claimed(self) -> set[str]:
        """Every digest that a living process has claimed. Call it under `store()`; claims of the dead are removed."""
        found: set[str] = set()
        for path in self._folder.glob("claim-*"):
            lock = take(path, wait=False)
            if lock:
                lock.release()
                continue
            with contextlib.suppress(FileNotFoundError):
                found.update(path.read_text(encoding="ascii").split())
        return found
