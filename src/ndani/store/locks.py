"""Locks between processes: files under `.locks` with a kernel lock, which ends with its process. On a file system without
kernel locks, the existence of the file is the lock (`file_locking`).

There are three kinds. The *store lock* is held for milliseconds while names are written and names or blobs are removed. A *blob
lock* is held by the one process that pulls or makes that blob. A *claim* lists the blobs of a pull that no name refers to yet, so that a
delete or a prune in another process does not remove them.
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
from ndani.store.disk import DISK_FULL_ERRNOS, make_folder, write_all
from ndani.store.file_locking import UNSUPPORTED_ERRNOS, OwnerRecord, has_live_owner, lock_file, remove_abandoned
from ndani.store.layout import Layout, hex_of

#: Seconds to wait for the store lock. It is held for milliseconds, so a process that holds it for longer hangs.
STORE_LOCK_TIMEOUT = 30.0

T = TypeVar("T")


class Lock:
    """A lock file that is held, made by `acquire`. Releasing it removes the file.

    With an `owner` there is no kernel lock: the existence of the file is the lock.
    """

    def __init__(self, path: Path, handle: int, owner: OwnerRecord | None = None) -> None:
        self.path = path
        self._handle = handle
        self._owner = owner

    def release(self) -> None:
        """Release the lock. The file is removed first, while the lock is still held, so that lock files do not accumulate."""
        if self._handle < 0:
            return
        if self._owner:
            self._owner.remove()
        else:
            with contextlib.suppress(OSError):
                self.path.unlink()
        os.close(self._handle)
        self._handle = -1

    def write(self, content: bytes) -> None:
        """Write content that other processes may read. Raises OSError."""
        write_all(self._handle, content)


def acquire(path: Path) -> Lock | None:
    """The lock at `path`, or None when another process holds it. Raises OSError."""
    while True:
        handle, created = _open_or_create(path)
        try:
            lock, retry = _try_acquire(path, handle, created)
        except BaseException:
            os.close(handle)
            raise
        if lock:
            return lock
        os.close(handle)
        if not retry:
            return None


def _open_or_create(path: Path) -> tuple[int, bool]:
    """Open the file; also returns whether this call created it. Raises OSError."""
    while True:
        with contextlib.suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644), True
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC), False
        except FileNotFoundError:
            if path.is_symlink():
                raise


def _try_acquire(path: Path, handle: int, created: bool) -> tuple[Lock | None, bool]:
    """The lock, if it is free, and whether to retry. Raises OSError."""
    try:
        lock_file(handle)
        # The last holder may have removed the file between our open and our lock. Then our lock is on a deleted file.
        if not os.path.samestat(os.fstat(handle), path.stat()):
            return None, True
        return (None, False) if not created and has_live_owner(path, handle) else (Lock(path, handle), False)
    except FileNotFoundError:
        return None, True
    except BlockingIOError:
        return None, False
    except OSError as error:
        if error.errno not in UNSUPPORTED_ERRNOS:
            raise
    if created:
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
        self._closing = threading.Event()

    def close(self) -> None:
        """Stop waiting for the store lock: every wait, also a later one, raises StoreFailed at once."""
        self._closing.set()

    @contextmanager
    def lock_store(self) -> Iterator[None]:
        """Hold the store lock, for milliseconds only, while names or blobs change. Raises OSError, StoreFailed on a timeout.

        Two things are locked: a file, and the store's folder itself, which takes no space. If the disk is too full to create
        the file, the lock on the folder is enough, so that a model can still be removed.
        """
        with contextlib.ExitStack() as stack:
            disk_full: OSError | None = None
            try:
                make_folder(self._folder)
            except OSError as error:
                if error.errno not in DISK_FULL_ERRNOS:
                    raise
                disk_full = error
            folder_locked = self._lock_folder(stack)
            try:
                if disk_full:
                    raise disk_full
                stack.callback(self._wait(lambda: acquire(self._folder / "store")).release)
            except OSError as error:
                if error.errno not in DISK_FULL_ERRNOS or not folder_locked:
                    raise
            yield

    def _lock_folder(self, stack: contextlib.ExitStack) -> bool:
        """Lock the store's folder itself until the stack is closed; False where a folder cannot be locked."""
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
            except OSError:  # a network file system locks only files that are open for writing
                return False
            return True

        return self._wait(attempt)

    def _wait(self, attempt: Callable[[], T | None]) -> T:
        """Call `attempt` until it returns a result. This polls, because a thread that blocks in the kernel cannot be interrupted."""
        deadline, delay = time.monotonic() + STORE_LOCK_TIMEOUT, 0.001
        while (result := attempt()) is None:
            if self._closing.wait(delay):
                raise StoreFailed("the server is stopping, and another program holds the model store; try again")
            if time.monotonic() > deadline:
                problem = f"another program has held the model store {self._root} for {STORE_LOCK_TIMEOUT:.0f} seconds"
                raise StoreFailed(f"{problem}; end it, or wait for it, and try again")
            delay = min(2 * delay, 0.05)
        return result

    def lock_blob(self, digest: str) -> Lock | None:
        """The lock for writing this blob, or None while another process holds it. Raises OSError."""
        make_folder(self._folder)
        lock = acquire(self._folder / f"blob-{hex_of(digest)}")
        if lock:
            with contextlib.suppress(OSError):
                lock.write(b"\n")  # held for long, and an empty file would soon count as abandoned where kernel locks are not seen
        return lock

    @contextmanager
    def claim(self, digests: Iterable[str]) -> Iterator[None]:
        """Protect these blobs from removal inside the block. Raises OSError."""
        with self.lock_store():
            path = self._folder / f"claim-{uuid.uuid4().hex}"
            # The name is new, so another process can hold the file only for a moment, while it checks whether it is held.
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
        """Every digest that a running process claims. Call it under the store lock; claims of ended processes are removed."""
        digests: set[str] = set()
        for path in self._folder.glob("claim-*"):
            lock = acquire(path)
            if lock:
                lock.release()
                continue
            with contextlib.suppress(FileNotFoundError):
                digests.update(line for line in path.read_text("ascii", "replace").split() if line.startswith("sha256:"))
        return digests
