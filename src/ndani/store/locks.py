"""Locks between processes: files under `.locks`, held by the kernel, so that a process that dies holds nothing; on a disk
that has no such locks, held by their being there (`exclusion`).

Three kinds. The *store's* lock is held for milliseconds while names or blobs come and go. A *blob's* lock is held by
the one process that is bringing that blob. A *claim* lists blobs that a pull has or will have before any name does,
so that a delete or a prune elsewhere leaves them alone.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ndani.errors import StoreFailed
from ndani.store.disk import DISK_FULL_ERRNOS, make_folder
from ndani.store.file_locking import UNSUPPORTED_ERRNOS, OwnerRecord, has_live_owner, lock_file, remove_abandoned, write_all
from ndani.store.layout import Layout, hex_of

#: Seconds to wait for the store's lock, which is held for milliseconds: whoever holds it longer hangs.
STORE_LOCK_TIMEOUT = 30.0

T = TypeVar("T")


class Lock:
    """One lock file, taken at construction by `take`. Gone from the disk when it is released.

    With a `mark` it is no lock of the kernel's that holds it, but the file's being there.
    """

    def __init__(self, path: Path, handle: int, mark: OwnerRecord | None = None) -> None:
        self.path = path
        self._handle = handle
        self._mark = mark

    def release(self) -> None:
        """Let go; the file is removed first, while it is still ours, so that no lock files pile up."""
        if self._handle < 0:
            return
        if self._mark:
            self._mark.remove()
        else:
            with contextlib.suppress(OSError):
                self.path.unlink()
        os.close(self._handle)
        self._handle = -1

    def write(self, content: bytes) -> None:
        """What the holder wants others to read. Raises OSError."""
        write_all(self._handle, content)


def acquire(path: Path) -> Lock | None:
    """The lock at `path`, or None when somebody else has it. Raises OSError."""
    while True:
        handle, ours = _open(path)
        try:
            lock, again = _take(path, handle, ours)
        except BaseException:
            os.close(handle)
            raise
        if lock:
            return lock
        os.close(handle)
        if not again:
            return None


def _open(path: Path) -> tuple[int, bool]:
    """The file, open; and whether it was not there before. Raises OSError."""
    while True:
        with contextlib.suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644), True
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC), False
        except FileNotFoundError:
            if path.is_symlink():
                raise


def _take(path: Path, handle: int, ours: bool) -> tuple[Lock | None, bool]:
    """The lock, if it can be had; and whether to try again."""
    try:
        lock_file(handle)
        # The holder before us may have removed the file between our open and our lock: then ours guards nothing.
        if not os.path.samestat(os.fstat(handle), path.stat()):
            return None, True
        return (None, False) if not ours and has_live_owner(path, handle) else (Lock(path, handle), False)
    except FileNotFoundError:
        return None, True
    except BlockingIOError:
        return None, False
    except OSError as error:
        if error.errno not in UNSUPPORTED_ERRNOS:
            raise
    if ours:
        try:
            return Lock(path, handle, OwnerRecord(path, handle)), False
        except FileNotFoundError:
            return None, True
    return None, remove_abandoned(path, handle)


class Locks:
    """The locks of one store."""

    def __init__(self, layout: Layout) -> None:
        self._root = layout.root
        self._folder = layout.locks
        self._ending = threading.Event()

    def close(self) -> None:
        """Nobody waits for the store's lock any more: who does, or will, gets StoreFailed at once."""
        self._ending.set()

    @contextmanager
    def lock_store(self) -> Iterator[None]:
        """Held while names or blobs come and go; for milliseconds only. Raises OSError, StoreFailed when it cannot be had.

        Two things are locked: a file, and the store's folder itself, which needs no room. On a disk so full that the file
        cannot be made, the folder alone has to do: then a model can still be removed.
        """
        with contextlib.ExitStack() as stack:
            full: OSError | None = None
            try:
                make_folder(self._folder)
            except OSError as error:
                if error.errno not in DISK_FULL_ERRNOS:
                    raise
                full = error
            alone = self._take_folder(stack)
            try:
                if full:
                    raise full
                stack.callback(self._wait(lambda: acquire(self._folder / "store")).release)
            except OSError as error:
                if error.errno not in DISK_FULL_ERRNOS or not alone:
                    raise
            yield

    def _take_folder(self, stack: contextlib.ExitStack) -> bool:
        """Lock the store's folder itself until the stack ends; False where a folder cannot be locked."""
        try:
            handle = os.open(self._root, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        stack.callback(os.close, handle)

        def attempt() -> bool | None:
            try:
                lock_file(handle)
            except BlockingIOError:
                return None
            except OSError:  # a network's file system locks only files that are open for writing
                return False
            return True

        return self._wait(attempt)

    def _wait(self, attempt: Callable[[], T | None]) -> T:
        """Try until it gives something. In steps, because a thread that waits inside the kernel cannot be called back."""
        until, pause = time.monotonic() + STORE_LOCK_TIMEOUT, 0.001
        while (got := attempt()) is None:
            if self._ending.wait(pause):
                raise StoreFailed("the server is stopping, and another program holds the model store; try again")
            if time.monotonic() > until:
                held = f"another program has held the model store {self._root} for {STORE_LOCK_TIMEOUT:.0f} seconds"
                raise StoreFailed(f"{held}; end it, or wait for it, and try again")
            pause = min(2 * pause, 0.05)
        return got

    def lock_blob(self, digest: str) -> Lock | None:
        """The right to bring this blob, or None while another process is bringing it. Raises OSError."""
        make_folder(self._folder)
        lock = acquire(self._folder / f"blob-{hex_of(digest)}")
        if lock:
            with contextlib.suppress(OSError):
                lock.write(b"\n")  # held for long: whoever sees no lock of the kernel's shall not take it for an unmarked one
        return lock

    @contextmanager
    def claim(self, digests: Iterable[str]) -> Iterator[None]:
        """Keep these blobs from being removed while inside. Raises OSError."""
        with self.lock_store():
            path = self._folder / f"claim-{uuid.uuid4().hex}"
            # The name is new, so nobody holds it for long: somebody only looks whether it is held.
            lock = self._wait(lambda: acquire(path))
            try:
                lock.write("\n".join(sorted(digests)).encode())
            except BaseException:
                lock.release()
                raise
        try:
            yield
        finally:
            lock.release()

    def claimed_digests(self) -> set[str]:
        """Every digest that a living process has claimed. Call it under `store()`; claims of the dead are removed."""
        found: set[str] = set()
        for path in self._folder.glob("claim-*"):
            lock = acquire(path)
            if lock:
                lock.release()
                continue
            with contextlib.suppress(FileNotFoundError):
                found.update(word for word in path.read_text("ascii", "replace").split() if word.startswith("sha256:"))
        return found
