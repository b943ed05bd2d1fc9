"""A file that becomes a blob whose digest is not known yet: it is hashed when it is complete, and then renamed.

All weights that are made on this machine enter the store this way. The process that fills the file gets the descriptor
only and need not be trusted further: the size is set here, and the digest is computed here.
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
from ndani.store.blobs import CHUNK_SIZE, publish_blob
from ndani.store.disk import make_folder, require_free_space, translate_disk_errors
from ndani.store.layout import Layout

_REPORT_INTERVAL = 64 * CHUNK_SIZE  # bytes hashed between two reports


class TemporaryBlob:
    """The file, open for reading and writing. Call `allocate`, fill it, `compute_digest`, `publish`; and `discard` in any case.

    After `publish`, `is_new` says whether the store lacked the blob before.
    """

    def __init__(self, layout: Layout, key: str = "") -> None:
        """Create the file. With a `key`, replaces what a killed process left under that key, whose lock must be held.

        Raises StoreFailed.
        """
        self.size, self.digest, self.is_new = 0, "", False
        self._layout = layout
        # A hidden name, unique without a key, as of an upload: if this process dies, the file is removed after a week.
        self._path = layout.blobs / f".{key or uuid.uuid4().hex}"
        with translate_disk_errors(layout.root):
            make_folder(layout.blobs)
            if key:
                self._path.unlink(missing_ok=True)  # not truncated: a child that is still exiting may write to the old file
            self.descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_EXCL, 0o644)

    @property
    def root(self) -> Path:
        """The store's folder."""
        return self._layout.root

    def allocate(self, size: int) -> None:
        """Set the size and reserve that space at once, where the file system can.

        Raises StoreFailed if the space is not free, so that the work fails before it starts and not halfway.
        """
        self.size = size
        require_free_space(self._layout.root, size)
        with translate_disk_errors(self._layout.root, size):
            try:
                if size and sys.platform == "linux":
                    os.posix_fallocate(self.descriptor, 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # the file system cannot reserve space
                    raise

    def compute_digest(self, report: Callable[[int], None]) -> None:
        """Compute the digest and report the number of bytes hashed. The file may not be written to any more. Raises StoreFailed."""
        hasher, offset = hashlib.sha256(), 0
        with translate_disk_errors(self._layout.root):
            if os.fstat(self.descriptor).st_size != self.size:
                raise StoreFailed("the file that was made has another size than it should; try again, and report it if it stays")
            os.ftruncate(self.descriptor, self.size)  # releases space reserved beyond the end
            while chunk := os.pread(self.descriptor, CHUNK_SIZE, offset):
                hasher.update(chunk)
                offset += len(chunk)
                if offset % _REPORT_INTERVAL == 0:
                    report(offset)
            os.fsync(self.descriptor)
        self.digest = f"sha256:{hasher.hexdigest()}"

    def publish(self) -> None:
        """Rename the file to its digest. Raises StoreFailed."""
        assert self.digest, "compute_digest comes first"
        path = self._layout.blob(self.digest)
        with translate_disk_errors(self._layout.root):
            self.is_new = not path.exists()
            publish_blob(self._layout, self._path, self.digest)

    def discard(self) -> None:
        """Close the file, and remove it unless it was published. May be called again."""
        if self.descriptor < 0:
            return
        os.close(self.descriptor)
        self.descriptor = -1
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
