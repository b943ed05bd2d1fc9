"""Linking a file of `create` into the server's store instead of uploading it, when both are of this machine and this user.

The server names an empty folder in its store. When this folder exists in our store too and belongs to this user, both are
the same store. A file that cannot be linked safely is uploaded: see `docs/decisions/011`. The server's part is in
`store/handover.py`.
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
from ndani.store.handover import FILE, is_private, is_slot_name
from ndani.store.layout import Layout

_ROUTE = "/api/handover"
#: Linux's ioctl that makes a file share the blocks of another until one of them changes (`linux/fs.h`).
_FICLONE = 0x40049409


def link_into_store(client: ServerClient, models: Path, path: Path, file: BinaryIO) -> Generator[dict[str, Any], None, str]:
    """Link an open file into the store at `models`, if the server has this store. Returns its digest, empty if it must be uploaded."""
    if not client.is_local or sys.platform == "win32":
        return ""
    try:
        response = client.request_json("POST", _ROUTE, {})
    except NdaniError:  # another kind of server, or a store that cannot be written: the upload reports the reason
        return ""
    folder_name = response.get("place")
    if not is_slot_name(folder_name):
        return ""
    folder = Layout(models).handover / str(folder_name)
    try:
        if not is_private(folder.lstat()) or not _link(path, file, folder / FILE):
            return ""
        yield {"status": f"linking {path.name}"}
        with contextlib.closing(client.stream(_ROUTE, {"place": folder_name})) as steps:
            for step in steps:
                if step.get("status") == "success":
                    return str(step.get("digest") or "")
                yield step
    except (OSError, BadRequest, NotFound):
        return ""
    finally:
        with contextlib.suppress(OSError):
            (folder / FILE).unlink(missing_ok=True)
            folder.rmdir()
    return ""


def _link(path: Path, file: BinaryIO, target: Path) -> bool:
    """Link the file to `target`: a clone that shares its blocks, else a hard link to a file that nobody may write to."""
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError):
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                fcntl.ioctl(descriptor, _FICLONE, file.fileno())
                return True
            except OSError:
                target.unlink()
            finally:
                os.close(descriptor)
    status = os.fstat(file.fileno())
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o222:
        return False
    try:
        os.link(path, target)
    except OSError:
        return False
    return True
