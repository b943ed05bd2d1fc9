"""A file for `create` linked into the server's store instead of sent, where the server is this machine's and this user's.

The server names an empty folder in its store; that the same folder is in ours, and is our own, shows that both are one.
What cannot be linked safely is sent, as to any server: see `docs/decisions/011`. The other end is `store/handover.py`.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any, BinaryIO

from ndani.cli.client import ServerClient
from ndani.errors import BadRequest, NdaniError, NotFound
from ndani.store.handover import FILE, is_place, is_private
from ndani.store.layout import Layout

_ROUTE = "/api/handover"
#: Linux's call to share a file's blocks until either is changed (`linux/fs.h`).
_FICLONE = 0x40049409


def hand_over(client: ServerClient, models: Path, path: Path, file: BinaryIO) -> Generator[dict[str, Any], None, str]:
    """Link an open file into the store at `models`, if that is the server's; its digest, or nothing where it must be sent."""
    if not client.is_local or sys.platform == "win32":
        return ""
    try:
        said = client.request_json("POST", _ROUTE, {})
    except NdaniError:  # another kind of server, or one whose store takes nothing: sending it says what is wrong
        return ""
    name = said.get("place")
    if not is_place(name):
        return ""
    place = Layout(models).handover / str(name)
    try:
        if not is_private(place.lstat()) or not _link(path, file, place / FILE):
            return ""
        yield {"status": f"linking {path.name}"}
        with contextlib.closing(client.stream(_ROUTE, {"place": name})) as steps:
            for step in steps:
                if step.get("status") == "success":
                    return str(step.get("digest") or "")
                yield step
    except (OSError, BadRequest, NotFound):
        return ""
    finally:
        with contextlib.suppress(OSError):
            (place / FILE).unlink(missing_ok=True)
            place.rmdir()
    return ""


def _link(path: Path, file: BinaryIO, target: Path) -> bool:
    """Give the file's content a second name: by sharing its blocks, else by a hard link where nobody may write to it."""
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError):
            handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                fcntl.ioctl(handle, _FICLONE, file.fileno())
                return True
            except OSError:
                target.unlink()
            finally:
                os.close(handle)
    state = os.fstat(file.fileno())
    if state.st_uid != os.geteuid() or stat.S_IMODE(state.st_mode) & 0o222:
        return False
    try:
        os.link(path, target)
    except OSError:
        return False
    return True
