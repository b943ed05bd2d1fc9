"""A file that grows into a blob whose digest nobody knows yet: it is hashed when it is whole, and named last.

Who fills it does so through the descriptor, and need not be trusted with more: its size is set, its digest is reckoned here.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import sys
import uuid
from collections.abc import Generator

from ndani.errors import StoreFailed
from ndani.store.blobs import PIECE
from ndani.store.disk import make_folder, on_disk, require_room, settle
from ndani.store.layout import Layout

_STRIDE = 64 * PIECE  # bytes hashed between two words of it


class Nameless:
    """The file, open for reading and writing. Its disk space is set aside at once, where the file system can do that.

    Once it is named, `digest` is its name, and `fresh` says whether the store lacked that blob before.
    """

    def __init__(self, layout: Layout, size: int) -> None:
        """Make it, with room for `size` bytes. Raises StoreFailed now when there is not that much, rather than when it is half done."""
        self.size = size
        self.digest, self.fresh = "", False
        self._layout = layout
        with on_disk(layout.root):
            make_folder(layout.blobs)
        require_room(layout.root, size)
        # A dot and a name of its own, like an upload's: what a server that died left behind is tidied away after a week.
        self._path = layout.blobs / f".{uuid.uuid4().hex}"
        with on_disk(layout.root, size):
            self.descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            self._set_aside()
        except BaseException:
            self.discard()
            raise

    def _set_aside(self) -> None:
        with on_disk(self._layout.root, self.size):
            try:
                if self.size and sys.platform == "linux":
                    os.posix_fallocate(self.descriptor, 0, self.size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # a file system that cannot
                    raise

    def name(self) -> Generator[int]:
        """Give the whole file its digest for a name; yields how many bytes are hashed.

        Raises StoreFailed. Nobody may write to it any more.
        """
        seen, done = hashlib.sha256(), 0
        with on_disk(self._layout.root):
            if os.fstat(self.descriptor).st_size != self.size:
                raise StoreFailed("the file that was made has another size than it should; create the model again")
            while piece := os.pread(self.descriptor, PIECE, done):
                seen.update(piece)
                done += len(piece)
                if done % _STRIDE == 0:
                    yield done
            os.fsync(self.descriptor)
            self.digest = f"sha256:{seen.hexdigest()}"
            place = self._layout.blob(self.digest)
            self.fresh = not place.exists()
            self._path.replace(place)
            settle(self._layout.blobs)

    def discard(self) -> None:
        """Close the file, and remove it unless it has its name."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
