"""A file that becomes a blob without an upload: its owner links it into a slot, a folder in the store; here it is verified and renamed.

The folder is the proof of identity: it has mode 0700 and belongs to the server's user, so only that user, with access to the
same store, can put a file there. A client names the slot and never a path. The server computes the digest, so that the file
is read only once. The client's side is `cli/handover.py`; the reasons are in `docs/decisions/011`.
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

from ndani.errors import BadRequest, Busy, NotFound, StoreFailed, Unsupported
from ndani.store.blobs import CHUNK_SIZE
from ndani.store.damage_notes import note_replacement, was_stored
from ndani.store.disk import make_folder, sync_folder, translate_disk_errors
from ndani.store.layout import Layout
from ndani.store.store import Store
from ndani.types import Progress, Report

#: The name of the file inside its slot.
FILE = "file"
#: An abandoned slot is removed after an hour; there are at most `_MAX_SLOTS` at a time.
_STALE_AFTER, _MAX_SLOTS = 3600.0, 64
_SLOT_NAME = re.compile(r"[0-9a-f]{32}\Z")
_ALTERNATIVE = "send the file to /api/blobs instead"


def is_slot_name(name: object) -> bool:
    """Whether this can be a name from `create_slot`, and not a path to somewhere else."""
    return isinstance(name, str) and _SLOT_NAME.match(name) is not None


def is_private(state: os.stat_result) -> bool:
    """Whether this is a folder of our user that no other user can enter."""
    return stat.S_ISDIR(state.st_mode) and state.st_uid == os.geteuid() and stat.S_IMODE(state.st_mode) & 0o077 == 0


def create_slot(layout: Layout) -> str:
    """Create an empty slot for one file and return its name. Raises Busy, StoreFailed, Unsupported."""
    if not hasattr(os, "O_DIRECTORY"):
        raise Unsupported(f"files are not handed over on this system; {_ALTERNATIVE}")
    folder, slot = layout.handover, secrets.token_hex(16)
    with translate_disk_errors(layout.root):
        make_folder(layout.root)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        if not is_private(folder.lstat()):
            raise StoreFailed(f"the folder {folder} can be entered by others, so nothing is handed over there; make it 0700")
        remove_stale_slots(layout)
        if sum(1 for _ in folder.iterdir()) >= _MAX_SLOTS:
            raise Busy(f"too many files are being handed over at once; {_ALTERNATIVE}")
        (folder / slot).mkdir(mode=0o700)
    return slot


def accept_file(store: Store, slot: str, report: Report) -> None:
    """Make the file in a slot a blob; reports progress, then `success` with the digest. The slot is removed in any case.

    Raises BadRequest for an invalid name or another user's file, NotFound, StoreFailed.
    """
    if not is_slot_name(slot):
        raise BadRequest(f"place must be a name that this server gave; {_ALTERNATIVE}")
    with translate_disk_errors(store.layout.root), _open_slot(store.layout.handover / slot) as (folder, file):
        before = os.fstat(file)
        if not stat.S_ISREG(before.st_mode) or before.st_uid != os.geteuid():
            raise BadRequest(f"what was handed over is not a file of the server's own user; {_ALTERNATIVE}")
        hasher, length = hashlib.sha256(), 0
        while chunk := os.read(file, 8 * CHUNK_SIZE):
            hasher.update(chunk)
            length += len(chunk)
            report(Progress("verifying sha256 digest", total=before.st_size, completed=min(length, before.st_size)))
        digest, after = f"sha256:{hasher.hexdigest()}", os.fstat(file)
        linked = os.stat(FILE, dir_fd=folder, follow_symlinks=False)
        if length != before.st_size or after.st_mtime_ns != before.st_mtime_ns or not os.path.samestat(after, linked):
            raise BadRequest("the file changed while it was read; run the command again")
        if not store.blobs.is_intact(digest, length):
            os.fsync(file)
            make_folder(store.layout.blobs)
            replaces = was_stored(store.layout, digest)
            os.rename(FILE, store.layout.blob(digest), src_dir_fd=folder)
            sync_folder(store.layout.blobs)
            if replaces:
                note_replacement(store.layout, digest)
    report(Progress("success", digest))


def remove_stale_slots(layout: Layout) -> None:
    """Remove abandoned slots."""
    oldest = time.time() - _STALE_AFTER
    for slot in layout.handover.glob("*"):
        with contextlib.suppress(OSError):
            if slot.lstat().st_mtime < oldest:
                (slot / FILE).unlink(missing_ok=True)
                slot.rmdir()


@contextmanager
def _open_slot(slot: Path) -> Iterator[tuple[int, int]]:
    """The slot and its file, opened without following links; both are removed afterwards. Raises NotFound, BadRequest."""
    with contextlib.ExitStack() as stack:
        try:
            folder = os.open(slot, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            stack.callback(_remove_slot, slot, folder)
            if not is_private(os.fstat(folder)):
                raise FileNotFoundError
            # Non-blocking, because opening a named pipe would wait for its writer.
            file = os.open(FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"nothing was handed over in this place; {_ALTERNATIVE}") from None
        except OSError:
            raise BadRequest(f"what was handed over cannot be read; {_ALTERNATIVE}") from None
        stack.callback(os.close, file)
        yield folder, file


def _remove_slot(slot: Path, folder: int) -> None:
    with contextlib.suppress(OSError):
        os.unlink(FILE, dir_fd=folder)
    os.close(folder)
    with contextlib.suppress(OSError):
        slot.rmdir()
