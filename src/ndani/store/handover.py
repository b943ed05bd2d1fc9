"""A file that becomes a blob without being sent: linked by its owner into a folder of the store's, verified, renamed.

The folder is the proof: mode 0700 and the server's own, so whoever can put a file there is the server's user and sees the
same store. A client says the folder's name and never a path; the file's digest is found here, by the one reading that it
costs. The other end is `cli/handover.py`; the reasons are in `docs/decisions/011`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ndani.errors import BadRequest, NotFound, StoreFailed, Unsupported
from ndani.store.blobs import CHUNK_SIZE
from ndani.store.damage_notes import note_replacement, was_stored
from ndani.store.disk import make_folder, sync_folder, translate_disk_errors
from ndani.store.layout import Layout
from ndani.store.library import Store
from ndani.types import Progress, Report

#: What the file is called inside its place.
FILE = "file"
#: Places that nobody came back to are removed after an hour; more than these at once are not given.
_STALE, _MOST = 3600.0, 64
_PLACE = re.compile(r"[0-9a-f]{32}\Z")
_ELSE = "send the file to /api/blobs instead"


def is_slot_name(name: object) -> bool:
    """Whether this is a name that `prepare` gives, and nothing that leads elsewhere."""
    return isinstance(name, str) and _PLACE.match(name) is not None


def is_private(state: os.stat_result) -> bool:
    """Whether this is a folder of our own that nobody else can enter."""
    return stat.S_ISDIR(state.st_mode) and state.st_uid == os.geteuid() and stat.S_IMODE(state.st_mode) & 0o077 == 0


def create_slot(layout: Layout) -> str:
    """A new, empty place for one file; its name. Raises StoreFailed, Unsupported."""
    if not hasattr(os, "O_DIRECTORY"):
        raise Unsupported(f"files are not handed over on this system; {_ELSE}")
    folder, place = layout.handover, secrets.token_hex(16)
    with translate_disk_errors(layout.root):
        make_folder(layout.root)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        if not is_private(folder.lstat()):
            raise StoreFailed(f"the folder {folder} can be entered by others, so nothing is handed over there; make it 0700")
        remove_stale_slots(layout)
        if sum(1 for _ in folder.iterdir()) >= _MOST:
            raise StoreFailed(f"too many files are being handed over at once; {_ELSE}")
        (folder / place).mkdir(mode=0o700)
    return place


def accept_file(store: Store, place: str, report: Report) -> None:
    """Make the file in a place a blob: its progress, then `success` with its digest. The place is gone after, however it ends.

    Raises BadRequest for a name that is none or a file that is not the owner's own, NotFound, StoreFailed.
    """
    if not is_slot_name(place):
        raise BadRequest(f"place must be a name that this server gave; {_ELSE}")
    with translate_disk_errors(store.layout.root), _opened(store.layout.handover / place) as (folder, file):
        before = os.fstat(file)
        if not stat.S_ISREG(before.st_mode) or before.st_uid != os.geteuid():
            raise BadRequest(f"what was handed over is not a file of the server's own user; {_ELSE}")
        seen, done = hashlib.sha256(), 0
        while piece := os.read(file, 8 * CHUNK_SIZE):
            seen.update(piece)
            done += len(piece)
            report(Progress("verifying sha256 digest", total=before.st_size, completed=min(done, before.st_size)))
        digest, after = f"sha256:{seen.hexdigest()}", os.fstat(file)
        there = os.stat(FILE, dir_fd=folder, follow_symlinks=False)
        if done != before.st_size or after.st_mtime_ns != before.st_mtime_ns or not os.path.samestat(after, there):
            raise BadRequest("the file changed while it was read; run the command again")
        if not store.blobs.is_intact(digest, done):
            os.fsync(file)
            make_folder(store.layout.blobs)
            replaces = was_stored(store.layout, digest)
            os.rename(FILE, store.layout.blob(digest), src_dir_fd=folder)
            sync_folder(store.layout.blobs)
            if replaces:
                note_replacement(store.layout, digest)
    report(Progress("success", digest))


def remove_stale_slots(layout: Layout) -> None:
    """Remove the places that nobody came back to."""
    oldest = time.time() - _STALE
    for place in layout.handover.glob("*"):
        with contextlib.suppress(OSError):
            if place.lstat().st_mtime < oldest:
                (place / FILE).unlink(missing_ok=True)
                place.rmdir()


@contextmanager
def _opened(place: Path) -> Iterator[tuple[int, int]]:
    """The place and the file in it, open, by no link; both are cleared away after. Raises NotFound, OSError."""
    with contextlib.ExitStack() as stack:
        try:
            folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            stack.callback(_clear, place, folder)
            if not is_private(os.fstat(folder)):
                raise FileNotFoundError
            # Not blocking: a pipe would let us wait for its writer.
            file = os.open(FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"nothing was handed over in this place; {_ELSE}") from None
        except OSError:
            raise BadRequest(f"what was handed over cannot be read; {_ELSE}") from None
        stack.callback(os.close, file)
        yield folder, file


def _clear(place: Path, folder: int) -> None:
    with contextlib.suppress(OSError):
        os.unlink(FILE, dir_fd=folder)
    os.close(folder)
    with contextlib.suppress(OSError):
        place.rmdir()
