"""Model names on the disk: one manifest file each, four levels deep. Reads, lists, writes and removes them.

A name is found without regard to case, and keeps the spelling that was given first. A manifest is written to a temporary
file, synced and renamed, so a reader sees the old manifest or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

from ndani import names
from ndani.errors import BadName, BadRequest, StoreFailed
from ndani.names import Name
from ndani.store.blobs import Blobs, write_new_file
from ndani.store.disk import make_folder, sync_folder
from ndani.store.layout import Layout, hex_of
from ndani.store.stored_model import Manifest, StoredModel, decode

_DEPTH = 4  # the folders of host, namespace and model, and the file of the tag
_MOUNT_ADVICE = "mount its disk, or remove the link"
_MAX_MANIFEST_SIZE = 1 << 22  # a real one has a few hundred bytes
_MAX_BLOB_SIZE = 1 << 47  # so that the sum over a manifest fits into the 64-bit integer of clients in Go


class Manifests:
    """The names of one store."""

    def __init__(self, layout: Layout, blobs: Blobs) -> None:
        self._layout, self._blobs = layout, blobs

    def locate(self, name: Name) -> tuple[Name, Path] | None:
        """The name as it is spelled in the store, and its file; None when there is none. Raises OSError."""
        exact = self._layout.manifest(name)
        if _exists(exact):
            return name, exact
        path = next(self._find_ignoring_case(self._layout.manifests, (name.host, name.namespace, name.model, name.tag)), None)
        if not path:
            self._require_mounted(exact)
        return (Name(*path.parts[-4:]), path) if path else None

    def walk(self, unreadable: dict[str, str]) -> Iterator[tuple[Name, Path, os.stat_result]]:
        """Every name in the store, its file and that file's stat result; other files are skipped. Raises OSError, StoreFailed.

        A folder that cannot be read is skipped too, and added to `unreadable` with a sentence.
        """
        self._require_mounted(self._layout.manifests / "-")
        for path, status in _files(str(self._layout.manifests), _DEPTH, unreadable):
            parts = path.rsplit(os.sep, 4)[1:]
            with contextlib.suppress(BadName):
                names.parse("{}/{}/{}:{}".format(*parts))
                yield Name(*parts), Path(path), status

    def read(self, name: Name, path: Path) -> StoredModel:
        """The model of a name. Raises StoreFailed when its manifest is damaged, FileNotFoundError when it is gone."""
        try:
            with path.open("rb") as file:
                content = file.read(_MAX_MANIFEST_SIZE)
                modified = os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            if not path.is_symlink():
                raise
            raise StoreFailed(f"the model {name} is a link to a place that is not there ({path}); {_MOUNT_ADVICE}") from None
        except OSError as error:
            raise StoreFailed(f"the model {name} cannot be read ({path}: {error.strerror}); change its owner or mode") from None
        what = f"the manifest of {name}"
        manifest = decode(content, Manifest, what, "remove it with `ndani rm`")
        for layer in (manifest.config, *manifest.layers):
            _check_layer(layer.digest, layer.size, what)
        return StoredModel(name, hashlib.sha256(content).hexdigest(), modified, manifest, self._layout, self._blobs)

    def write(self, name: Name, content: bytes) -> None:
        """Write the manifest of a name, atomically. Raises OSError, and the old manifest stays."""
        existing = self.locate(name)
        path = existing[1] if existing else self._layout.manifest(name)
        make_folder(path.parent)
        # Not in the same folder: Ollama would take the temporary file for another tag.
        temporary = self._layout.manifests / f".{uuid.uuid4().hex}"
        write_new_file(temporary, content)
        try:
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)

    def remove(self, path: Path) -> None:
        """Remove a name's file, and the folders that are empty afterwards. Raises OSError."""
        path.unlink()
        for folder in list(path.parents)[:3]:
            try:
                folder.rmdir()
            except OSError:
                break

    def _find_ignoring_case(self, folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
        name = parts[0].lower()
        try:
            with os.scandir(folder) as entries:  # names alone: there may be thousands
                matches = sorted(folder / entry.name for entry in entries if entry.name.lower() == name)
        except (FileNotFoundError, NotADirectoryError):
            return
        for path in matches:
            if len(parts) > 1:
                yield from self._find_ignoring_case(path, parts[1:])
            elif _exists(path):
                yield path

    def _require_mounted(self, path: Path) -> None:
        """Raise StoreFailed if a folder above `path` is a broken link: its models are not mounted, rather than removed."""
        above = [self._layout.root, *(folder for folder in reversed(path.parents) if folder.is_relative_to(self._layout.manifests))]
        for folder in above:
            if folder.is_symlink() and not folder.exists():
                raise StoreFailed(f"the folder {folder} of the model store is a link to a place that is not there; {_MOUNT_ADVICE}")


def _exists(path: Path) -> bool:
    """Whether a name has this file; a broken link counts. Raises OSError."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return path.is_symlink()
    except OSError:
        if path.is_symlink():
            return True
        raise


def _files(folder: str, depth: int, unreadable: dict[str, str]) -> Iterator[tuple[str, os.stat_result]]:
    """The files exactly `depth` levels down, without hidden ones. Paths are strings, because Path objects make listings slow.

    A folder that cannot be read is skipped and added to `unreadable`; for the topmost one, raises OSError.
    """
    try:
        items = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):  # removed in the meantime, or the store does not exist yet
        return
    except OSError as error:
        if depth == _DEPTH:
            raise
        unreadable[folder] = _unreadable_folder(folder, error)
        return
    with items:
        for item in items:
            if item.name.startswith("."):
                continue
            try:
                status = _status(item)
            except FileNotFoundError:
                continue
            except OSError as error:  # the folder may be listed, but its files may not be read
                unreadable[folder] = _unreadable_folder(folder, error)
                continue
            if depth > 1 and stat.S_ISDIR(status.st_mode):
                yield from _files(item.path, depth - 1, unreadable)
            elif depth > 1 and stat.S_ISLNK(status.st_mode):
                unreadable[item.path] = (
                    f"the folder {item.path} of the model store is a link to a place that cannot be reached; {_MOUNT_ADVICE}"
                )
            elif depth == 1 and (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
                yield item.path, status


def _status(item: os.DirEntry[str]) -> os.stat_result:
    """The stat result of a file or folder; for a broken link, that of the link. Raises OSError."""
    try:
        return item.stat()
    except OSError:
        if item.is_symlink():
            return item.stat(follow_symlinks=False)
        raise


def _unreadable_folder(folder: str, error: OSError) -> str:
    return f"the folder {folder} of the model store cannot be read ({error.strerror}); change its owner or mode"


def _check_layer(digest: str, size: int, what: str) -> None:
    try:
        hex_of(digest)
    except BadRequest:
        size = -1
    if not 0 <= size < _MAX_BLOB_SIZE:
        raise StoreFailed(f"{what} is damaged in the store; run `ndani verify --repair`, or remove it with `ndani rm`")
