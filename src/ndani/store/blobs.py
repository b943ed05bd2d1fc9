"""Content by its digest: partial file, verify, rename. A blob is whole or not there.

Names and what refers to what are in `manifests` and `library`; locks between processes in `locks`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import time
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO

from ndani.errors import StoreFailed
from ndani.store.damage_notes import has_damage_note, publish_blob
from ndani.store.disk import make_folder, translate_disk_errors
from ndani.store.layout import Layout, digest_from_file_name, digest_of

CHUNK_SIZE = 1 << 20  # bytes read or written at once

#: An unfinished pull is worth going on with for a week; after that its bytes are only in the way.
PARTIAL_MAX_AGE = 7 * 86400.0

#: Bytes of the largest blob that is read as a whole: a text of a model, or its config.
MAX_SMALL_BLOB_SIZE = 16 * CHUNK_SIZE

#: What a small file is called until it has its name.
_FRESH = re.compile(r"\.[0-9a-f]{32}\Z")


class DigestMismatch(Exception):
    """What arrived is not what was asked for. Not of the tree: whose fault it is, the caller knows and says."""

    def __init__(self, want: str, got: str) -> None:
        super().__init__(f"digest mismatch: want {want}, got {got}")
        self.expected, self.actual = want, got


class PartialBlob:
    """A blob that is growing. Bytes are hashed as they are written; `finish` verifies and renames.

    Only the process that holds the blob's lock may open one without a path of its own. Errors of the disk are StoreFailed.
    """

    def __init__(self, layout: Layout, digest: str, size: int, keep: int | None = 0, path: Path | None = None) -> None:
        """Open the file with the first `keep` bytes of what it holds; `size` is how many the whole blob has.

        None leaves it as it is, for `resume`. `path` is another file than the one that pulls of this blob go on with.
        """
        self.layout, self.digest, self.size = layout, digest, size
        self.path = path or layout.partial(digest)
        with translate_disk_errors(layout.root, size):
            make_folder(layout.blobs)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._file: BinaryIO = os.fdopen(handle, "r+b", buffering=0)
        self._hash = hashlib.sha256()
        self.length = 0
        if keep is not None:
            self.truncate(keep)

    def truncate(self, length: int) -> None:
        """Cut the file to its first `length` bytes and hash those again; the next write goes behind them."""
        for _ in self.rehash(length):
            pass

    def rehash(self, length: int) -> Generator[bytes]:
        """The same, piece by piece: each when it is hashed. To be exhausted before the next write."""
        self._hash, self.length = hashlib.sha256(), 0
        with translate_disk_errors(self.layout.root):
            self._file.truncate(length)
            self._file.seek(0)
            while piece := self._file.read(CHUNK_SIZE):
                self._hash.update(piece)
                self.length += len(piece)
                yield piece

    @property
    def current_digest(self) -> str:
        """The digest of what is in it so far."""
        return f"sha256:{self._hash.hexdigest()}"

    def write(self, content: bytes) -> None:
        """Append. Raises StoreFailed when the disk is full; what was written before stays for the next pull."""
        with translate_disk_errors(self.layout.root, max(self.size - self.length, len(content))):
            write_all(self._file, content)
        self._hash.update(content)
        self.length += len(content)

    def sync(self) -> None:
        """Make what is written so far survive a power cut."""
        with translate_disk_errors(self.layout.root):
            os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Verify and give the file its name. Raises Mismatch, after removing it, when these are other bytes."""
        got = self.current_digest
        if got != self.digest:
            self.discard()
            raise DigestMismatch(self.digest, got)
        self.sync()
        with translate_disk_errors(self.layout.root):
            self._file.close()
            publish_blob(self.layout, self.path, self.digest)

    def discard(self) -> None:
        """Remove the file."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file and leave it for the next pull."""
        self._file.close()


def write_all(file: BinaryIO, content: bytes) -> None:
    """Write all of it through an unbuffered file: on a nearly full disk one write may take only a part."""
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


class Blobs:
    """The blobs of one store."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def has(self, digest: str, size: int | None = None) -> bool:
        """Whether the whole blob is here; with `size`, also that it has that many bytes."""
        try:
            found = self._layout.blob(digest).stat().st_size
        except OSError:
            return False
        return size is None or found == size

    def is_intact(self, digest: str, size: int | None = None) -> bool:
        """As `has`, for whoever could bring it: False also for one that was found damaged."""
        try:
            status = self._layout.blob(digest).stat()
        except OSError:
            return False
        return size in (None, status.st_size) and not has_damage_note(self._layout, digest, status)

    def read(self, digest: str, limit: int = MAX_SMALL_BLOB_SIZE) -> bytes:
        """A small blob's bytes. Raises StoreFailed when it is missing, unreadable or larger than `limit`."""
        path = self._layout.blob(digest)
        try:
            with path.open("rb") as file:
                content = file.read(limit + 1)
        except FileNotFoundError:
            raise StoreFailed(f"the model store lacks the file {path}; run `ndani verify --repair`, or create the model again") from None
        except OSError as error:
            raise StoreFailed(f"the file {path} cannot be read ({error.strerror}); change its owner or mode") from None
        if len(content) > limit:
            raise StoreFailed(f"the file {path} is larger than such a file may be; run `ndani verify --repair`, or create the model again")
        return content

    def put(self, content: bytes) -> str:
        """Store small content, in place of what is damaged under its digest, which is returned. Raises StoreFailed."""
        digest = digest_of(content)
        if self._holds(digest, content):
            return digest
        # A name of its own: two processes may put the same content at once, and both are right.
        fresh = self._layout.blobs / f".{uuid.uuid4().hex}"
        with translate_disk_errors(self._layout.root, len(content)):
            make_folder(self._layout.blobs)
            write_new_file(fresh, content)
            publish_blob(self._layout, fresh, digest)
        return digest

    def _holds(self, digest: str, content: bytes) -> bool:
        try:
            with self._layout.blob(digest).open("rb") as file:
                return file.read(len(content) + 1) == content
        except OSError:
            return False

    def scan(self) -> Iterator[tuple[str, os.stat_result]]:
        """Every whole blob: its digest and what the disk says of it."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self._layout.blobs) as found:
            for item in found:
                digest = digest_from_file_name(item.name)
                if digest and item.is_file():
                    yield digest, item.stat()

    def remove(self, digest: str) -> None:
        """Remove a blob; one that is gone already is fine. Raises OSError."""
        self._layout.blob(digest).unlink(missing_ok=True)

    def stale_files(self, busy: set[str]) -> Iterator[tuple[Path, os.stat_result]]:
        """Files that unfinished work, most of it pulls, left a week ago; those of `busy` digests are no such. Raises OSError."""
        oldest = time.time() - PARTIAL_MAX_AGE
        for path in self._unfinished(busy):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if status.st_mtime < oldest and stat.S_ISREG(status.st_mode):  # a file system's own folder has a dot, too
                    yield path, status

    def _unfinished(self, busy: set[str]) -> Iterator[Path]:
        for path in self._layout.blobs.glob("*"):
            if ("-partial" in path.name or path.name.startswith(".")) and f"sha256:{path.name[7:71]}" not in busy:
                yield path
        for folder in (self._layout.manifests, self._layout.header_notes, self._layout.locks):  # before each has its name
            yield from (path for path in folder.glob(".*") if _FRESH.match(path.name))

    def remove_stale(self, busy: set[str], only: set[Path] | None = None) -> None:
        """Remove what `stale` finds; with `only`, none but those. Raises OSError."""
        for path, _ in self.stale_files(busy):
            if only is None or path in only:
                path.unlink(missing_ok=True)


def write_new_file(path: Path, content: bytes) -> None:
    """Write a new file durably; on an error nothing of it stays. Raises OSError."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with os.fdopen(handle, "wb", buffering=0) as file:
            write_all(file, content)
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise
