"""A blob that is made on this machine: what its digest is, nobody knows before its last byte is written."""

from __future__ import annotations

import hashlib
import os
import uuid

from ndani.store.blobs import write_all
from ndani.store.disk import make_folder, on_disk, require_room, settle
from ndani.store.library import Store


class Making:
    """A file to write into, from front to back; `finish` gives it its name. Errors of the disk are StoreFailed.

    `size` is how many bytes will come, so that too little room is said at once. What is left of a killed server is
    removed after a week, like an unfinished pull.
    """

    def __init__(self, store: Store, size: int) -> None:
        self._layout = store.layout
        self._size, self._written = size, 0
        self._hash = hashlib.sha256()
        #: Once it has its name: whether there was no such blob before.
        self.fresh = False
        with on_disk(self._layout.root, size):
            make_folder(self._layout.blobs)
        require_room(self._layout.root, size)
        self._path = self._layout.blobs / f".{uuid.uuid4().hex}"
        with on_disk(self._layout.root, size):
            self._file = os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644), "wb", buffering=0)

    def write(self, content: bytes) -> None:
        """Append all of it."""
        with on_disk(self._layout.root, max(self._size - self._written, len(content))):
            write_all(self._file, content)
        self._hash.update(content)
        self._written += len(content)

    def finish(self) -> str:
        """It is whole: make it survive a power cut, give it its name, and say its digest."""
        digest = f"sha256:{self._hash.hexdigest()}"
        with on_disk(self._layout.root):
            self.fresh = not self._layout.blob(digest).exists()
            os.fsync(self._file.fileno())
            self._file.close()
            self._path.replace(self._layout.blob(digest))
            settle(self._layout.blobs)
        return digest

    def discard(self) -> None:
        """Remove what there is of it; nothing happens once it has its name."""
        self._file.close()
        self._path.unlink(missing_ok=True)
