"""Files named by their digests: written to a partial file, verified, then renamed. A blob is whole or absent.

Names and references between files are in `manifests` and `store`; locks between processes in `locks`.
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
from ndani.store.damage_notes import has_damage_note, note_replacement, was_stored
from ndani.store.disk import make_folder, sync_folder, translate_disk_errors, write_all
from ndani.store.layout import Layout, digest_from_file_name, digest_of

CHUNK_SIZE = 1 << 20  # bytes read or written at once

#: Seconds for which the file of an unfinished pull is kept so that the pull can resume.
PARTIAL_MAX_AGE = 7 * 86400.0

#: Bytes of the largest blob that is read into memory: a text of a model, or its config.
MAX_SMALL_BLOB_SIZE = 16 * CHUNK_SIZE

#: The temporary name of a small file, until it is renamed.
_TEMPORARY_NAME = re.compile(r"\.[0-9a-f]{32}\Z")


class DigestMismatch(Exception):
    """The bytes do not have the expected digest. Not an NdaniError: the caller knows who is at fault and raises the right one."""

    def __init__(self, expected: str, actual: str) -> None:
        super().__init__(f"digest mismatch: want {expected}, got {actual}")
        self.expected, self.actual = expected, actual


class PartialBlob:
    """A blob that is being written. Bytes are hashed as they are written; `finish` verifies and renames the file.

    Only the process that holds the blob's lock may open one without a `path`. Disk errors are StoreFailed.
    """

    def __init__(self, layout: Layout, digest: str, size: int, keep: int | None = 0, path: Path | None = None) -> None:
        """Open the file and keep its first `keep` bytes; `size` is the size of the whole blob.

        With `keep` None the file stays as it is, for `rehash`. `path` is a separate file, which no pull of this blob resumes.
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
        """Cut the file to its first `length` bytes and hash those again; the next write appends to them."""
        for _ in self.rehash(length):
            pass

    def rehash(self, length: int) -> Generator[bytes]:
        """As `truncate`, yielding each chunk after it is hashed. Exhaust the generator before the next write."""
        self._hash, self.length = hashlib.sha256(), 0
        with translate_disk_errors(self.layout.root):
            self._file.truncate(length)
            self._file.seek(0)
            while chunk := self._file.read(CHUNK_SIZE):
                self._hash.update(chunk)
                self.length += len(chunk)
                yield chunk

    @property
    def current_digest(self) -> str:
        """The digest of the bytes so far."""
        return f"sha256:{self._hash.hexdigest()}"

    def write(self, content: bytes) -> None:
        """Append. Raises StoreFailed when the disk is full; the bytes before stay for the next pull."""
        with translate_disk_errors(self.layout.root, max(self.size - self.length, len(content))):
            write_all(self._file.fileno(), content)
        self._hash.update(content)
        self.length += len(content)

    def sync(self) -> None:
        """Make the bytes so far survive a power cut."""
        with translate_disk_errors(self.layout.root):
            os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Verify the digest and rename the file. On other bytes, removes the file and raises DigestMismatch."""
        actual = self.current_digest
        if actual != self.digest:
            self.discard()
            raise DigestMismatch(self.digest, actual)
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


def publish_blob(layout: Layout, temporary: Path, digest: str) -> None:
    """Rename a verified file to the blob's name, durably. Raises OSError."""
    replaces = was_stored(layout, digest)
    temporary.replace(layout.blob(digest))
    sync_folder(layout.blobs)
    if replaces:
        note_replacement(layout, digest)


class Blobs:
    """The blobs of one store."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def has(self, digest: str, size: int | None = None) -> bool:
        """Whether the whole blob is in the store, and of this `size` if one is given."""
        try:
            actual_size = self._layout.blob(digest).stat().st_size
        except OSError:
            return False
        return size is None or actual_size == size

    def is_intact(self, digest: str, size: int | None = None) -> bool:
        """As `has`, but False also for a blob that was found damaged, so that a pull fetches it again."""
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

    def compute_digest(self, digest: str) -> str:
        """The digest of the bytes that a blob's file really has. Raises OSError."""
        with self._layout.blob(digest).open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"

    def put(self, content: bytes) -> str:
        """Store small content and return its digest; replaces a damaged file of that digest. Raises StoreFailed."""
        digest = digest_of(content)
        if self._holds(digest, content):
            return digest
        # A unique temporary name, because two processes may store the same content at once, and both are right.
        temporary = self._layout.blobs / f".{uuid.uuid4().hex}"
        with translate_disk_errors(self._layout.root, len(content)):
            make_folder(self._layout.blobs)
            write_new_file(temporary, content)
            publish_blob(self._layout, temporary, digest)
        return digest

    def _holds(self, digest: str, content: bytes) -> bool:
        try:
            with self._layout.blob(digest).open("rb") as file:
                return file.read(len(content) + 1) == content
        except OSError:
            return False

    def scan(self) -> Iterator[tuple[str, os.stat_result]]:
        """Every whole blob: its digest and its stat result."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self._layout.blobs) as items:
            for item in items:
                digest = digest_from_file_name(item.name)
                if digest and item.is_file():
                    yield digest, item.stat()

    def remove(self, digest: str) -> None:
        """Remove a blob, if it is there. Raises OSError."""
        self._layout.blob(digest).unlink(missing_ok=True)

    def stale_files(self, busy: set[str]) -> Iterator[tuple[Path, os.stat_result]]:
        """Files that unfinished work, mostly pulls, left over a week ago, except those of `busy` digests. Raises OSError."""
        oldest = time.time() - PARTIAL_MAX_AGE
        for path in self._unfinished(busy):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if status.st_mtime < oldest and stat.S_ISREG(status.st_mode):  # some file systems have a hidden folder of their own
                    yield path, status

    def _unfinished(self, busy: set[str]) -> Iterator[Path]:
        for path in self._layout.blobs.glob("*"):
            is_unfinished = "-partial" in path.name or path.name.startswith(".")
            digest = f"sha256:{path.name[7:71]}"
            if is_unfinished and digest not in busy:
                yield path
        for folder in (self._layout.manifests, self._layout.header_notes, self._layout.locks):
            yield from (path for path in folder.glob(".*") if _TEMPORARY_NAME.match(path.name))

    def remove_stale(self, busy: set[str], only: set[Path] | None = None) -> None:
        """Remove the files of `stale_files`, or those of them that are in `only`. Raises OSError."""
        for path, _ in self.stale_files(busy):
            if only is None or path in only:
                path.unlink(missing_ok=True)


def write_new_file(path: Path, content: bytes) -> None:
    """Create a file and write it durably; on an error it is removed again. Raises OSError."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with os.fdopen(handle, "wb", buffering=0) as file:
            write_all(file.fileno(), content)
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise
