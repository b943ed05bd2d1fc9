"""A file that grows into a blob whose digest nobody knows yet: it is hashed when it is whole, and named last.

The one way by which weights that are made on this machine come into the store. Who fills it does so through the
descriptor, and need not be trusted with more: its size is set, its digest is computed here.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

from ndani.errors import StoreFailed
from ndani.store.blobs import CHUNK_SIZE
from ndani.store.damage_notes import publish_blob
from ndani.store.disk import make_folder, require_free_space, translate_disk_errors
from ndani.store.layout import Layout

_STRIDE = 64 * CHUNK_SIZE  # bytes hashed between two reports


class TemporaryBlob:
    """The file, open for reading and writing: `allocate`, then fill it, then `compute_digest`, then `name`; `discard` in any case.

    `digest` is computed; `fresh` says, once it is named, whether the store lacked that blob before.
    """

    def __init__(self, layout: Layout, key: str = "") -> None:
        """Make it. With a `key`, it takes the place of what a killed process left under the same key, whose lock must be held.

        Raises StoreFailed.
        """
        self.size, self.digest, self.is_new = 0, "", False
        self._layout = layout
        # A dot, and without a key a name of its own, like an upload's: what a server that died left is tidied away after a week.
        self._path = layout.blobs / f".{key or uuid.uuid4().hex}"
        with translate_disk_errors(layout.root):
            make_folder(layout.blobs)
            if key:
                self._path.unlink(missing_ok=True)  # another file, not the same one emptied: a child that is dying may still write to that
            self.descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_EXCL, 0o644)

    @property
    def root(self) -> Path:
        """The store that it lies in."""
        return self._layout.root

    def allocate(self, size: int) -> None:
        """Say how many bytes it will have, which are then taken at once, where the file system can do that.

        Raises StoreFailed now when there is not that much room, rather than when it is half done.
        """
        self.size = size
        require_free_space(self._layout.root, size)
        with translate_disk_errors(self._layout.root, size):
            try:
                if size and sys.platform == "linux":
                    os.posix_fallocate(self.descriptor, 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # a file system that cannot
                    raise

    def compute_digest(self, report: Callable[[int], None]) -> None:
        """Work out its digest; reports how many bytes are hashed. Nobody may write to it any more. Raises StoreFailed."""
        seen, done = hashlib.sha256(), 0
        with translate_disk_errors(self._layout.root):
            if os.fstat(self.descriptor).st_size != self.size:
                raise StoreFailed("the file that was made has another size than it should; try again, and report it if it stays")
            os.ftruncate(self.descriptor, self.size)  # what was set aside beyond its end is given back
            while piece := os.pread(self.descriptor, CHUNK_SIZE, done):
                seen.update(piece)
                done += len(piece)
                if done % _STRIDE == 0:
                    report(done)
            os.fsync(self.descriptor)
        self.digest = f"sha256:{seen.hexdigest()}"

    def publish(self) -> None:
        """Give it its digest for a name. Raises StoreFailed."""
        assert self.digest, "it is computed before it is named"
        place = self._layout.blob(self.digest)
        with translate_disk_errors(self._layout.root):
            self.is_new = not place.exists()
            publish_blob(self._layout, self._path, self.digest)

    def discard(self) -> None:
        """Close the file, and remove it unless it has its name. May be called again."""
        if self.descriptor < 0:
            return
        os.close(self.descriptor)
        self.descriptor = -1
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
