"""Blobs that were found damaged: a small note of each, so that whoever is asked for such a file brings it again.

A note is about one state of a file, so that one that was put in its place by whatever means is not doubted. The folder of
the notes has a second use: its time changes whenever a file is found damaged or takes the place of another one, which
tells every process that what it has kept of blobs may be of one that is gone.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ndani.store.disk import sync_folder
from ndani.store.layout import Layout


def file_state(layout: Layout, digest: str) -> str:
    """What tells one file of this digest from another that takes its place; nothing where there is none."""
    try:
        return _state(layout.blob(digest).stat())
    except OSError:
        return ""


def note_damage(layout: Layout, digest: str, seen: str) -> None:
    """Note that this blob was damaged in the state in which it was `seen`. A store that may not be written to holds no notes."""
    if not seen:
        return
    before = last_change(layout)
    with contextlib.suppress(OSError):
        layout.damage_notes.mkdir(exist_ok=True, mode=0o755)
        layout.damage_note(digest).write_text(seen, "ascii")
    _tell(layout, before)


def forget_damage(layout: Layout, digest: str) -> None:
    """Of a blob that is whole, or gone, keep no note."""
    with contextlib.suppress(OSError):
        layout.damage_note(digest).unlink()


def has_damage_note(layout: Layout, digest: str, status: os.stat_result) -> bool:
    """Whether a blob of which the disk says this was found damaged."""
    try:
        return layout.damage_note(digest).read_text("ascii", "replace") == _state(status)
    except OSError:
        return False


def publish_blob(layout: Layout, fresh: Path, digest: str) -> None:
    """Give a file whose bytes are right its name as a blob, durably. Raises OSError."""
    replaces = was_stored(layout, digest)
    fresh.replace(layout.blob(digest))
    sync_folder(layout.blobs)
    if replaces:
        note_replacement(layout, digest)


def was_stored(layout: Layout, digest: str) -> bool:
    """Whether there is a file of this digest, or was one that another program has removed: a note of it may be a damaged one's."""
    return os.path.lexists(layout.blob(digest)) or os.path.lexists(layout.header_note(digest))


def note_replacement(layout: Layout, digest: str) -> None:
    """A file has taken the place of another one of this digest: what was noted of that one counts no more."""
    before = last_change(layout)
    forget_damage(layout, digest)
    with contextlib.suppress(OSError):
        layout.header_note(digest).unlink()
    with contextlib.suppress(OSError):
        layout.damage_notes.mkdir(exist_ok=True, mode=0o755)
    _tell(layout, before)


def last_change(layout: Layout) -> int:
    """When that was for the last time: a number that is another one each time, 0 before the first."""
    try:
        return layout.damage_notes.stat().st_mtime_ns
    except OSError:
        return 0


def _tell(layout: Layout, before: int) -> None:
    """Give the folder another time than it had `before`, also where less has passed since then than the disk's clock counts."""
    with contextlib.suppress(OSError):
        os.utime(layout.damage_notes)
        for later in (1, 2_000_000_000):
            if last_change(layout) > before:
                break
            os.utime(layout.damage_notes, ns=(before + later, before + later))


def _state(status: os.stat_result) -> str:
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"
