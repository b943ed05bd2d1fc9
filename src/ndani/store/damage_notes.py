"""Notes about blobs that were found damaged, one small file each, so that the next pull of such a blob fetches it again.

A note describes one state of a file (inode, size, time), so it does not apply to a file that replaced the damaged one. The
folder of the notes has a second use: its modification time changes whenever a blob is found damaged or is replaced, which
tells every process that its caches of blobs may be out of date.
"""

from __future__ import annotations

import contextlib
import os

from ndani.store.layout import Layout


def file_state(layout: Layout, digest: str) -> str:
    """The state that tells a blob's file from one that replaces it; an empty text if there is no file."""
    try:
        return _state(layout.blob(digest).stat())
    except OSError:
        return ""


def note_damage(layout: Layout, digest: str, state: str) -> None:
    """Note that the blob was damaged when its file had this `state`. In a read-only store this does nothing."""
    if not state:
        return
    before = last_change(layout)
    with contextlib.suppress(OSError):
        layout.damage_notes.mkdir(exist_ok=True, mode=0o755)
        layout.damage_note(digest).write_text(state, "ascii")
    _advance_time(layout, before)


def forget_damage(layout: Layout, digest: str) -> None:
    """Remove the note of a blob that is whole, or gone."""
    with contextlib.suppress(OSError):
        layout.damage_note(digest).unlink()


def has_damage_note(layout: Layout, digest: str, status: os.stat_result) -> bool:
    """Whether the blob was found damaged when its file had the state `status`."""
    try:
        return layout.damage_note(digest).read_text("ascii", "replace") == _state(status)
    except OSError:
        return False


def was_stored(layout: Layout, digest: str) -> bool:
    """Whether the blob is or was in the store. Another program may have removed it, and a note about it may describe a damaged file."""
    return os.path.lexists(layout.blob(digest)) or os.path.lexists(layout.header_note(digest))


def note_replacement(layout: Layout, digest: str) -> None:
    """Drop the notes about a blob whose file was replaced, and let every process see that it was."""
    before = last_change(layout)
    forget_damage(layout, digest)
    with contextlib.suppress(OSError):
        layout.header_note(digest).unlink()
    with contextlib.suppress(OSError):
        layout.damage_notes.mkdir(exist_ok=True, mode=0o755)
    _advance_time(layout, before)


def last_change(layout: Layout) -> int:
    """A number that differs after every damage or replacement; 0 before the first."""
    try:
        return layout.damage_notes.stat().st_mtime_ns
    except OSError:
        return 0


def _advance_time(layout: Layout, before: int) -> None:
    """Move the folder's modification time past `before`, even within one tick of the file system's clock."""
    with contextlib.suppress(OSError):
        os.utime(layout.damage_notes)
        for later in (1, 2_000_000_000):
            if last_change(layout) > before:
                break
            os.utime(layout.damage_notes, ns=(before + later, before + later))


def _state(status: os.stat_result) -> str:
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"
