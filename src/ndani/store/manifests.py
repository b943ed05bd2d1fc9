"""Names on the disk: one file each, in four folders deep. Read, walk, write, remove.

A name is looked up without regard to case, and keeps the spelling it was first given. Writing is temporary file,
fsync, rename: a reader sees the old manifest or the new one, never half of one.
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

_DEPTH = 4  # folders: host, namespace and model, and the tag's file
_MOUNT = "mount its disk, or remove the link"
_LARGEST = 1 << 22  # a manifest is a few hundred bytes; four megabytes is not one
_MOST_BYTES = 1 << 47  # of one file: all that a manifest can name stay a number of 64 bits together, and Go's clients have no other


class Manifests:
    """The names of one store."""

    def __init__(self, layout: Layout, blobs: Blobs) -> None:
        self._layout, self._blobs = layout, blobs

    def locate(self, name: Name) -> tuple[Name, Path] | None:
        """The name as it is spelt here, and its file; None when there is none. Raises OSError."""
        exact = self._layout.manifest(name)
        if _is_named(exact):
            return name, exact
        found = next(self._spelt(self._layout.manifests, (name.host, name.namespace, name.model, name.tag)), None)
        if not found:
            self._require_mounted(exact)
        return (Name(*found.parts[-4:]), found) if found else None

    def walk(self, closed: dict[str, str]) -> Iterator[tuple[Name, Path, os.stat_result]]:
        """Every name here, its file and what the disk says of that file; other files are passed over. Raises OSError, StoreFailed.

        A folder that cannot be read is passed over too, and noted in `closed` with a sentence.
        """
        self._require_mounted(self._layout.manifests / "-")
        for path, status in _files(str(self._layout.manifests), _DEPTH, closed):
            parts = path.rsplit(os.sep, 4)[1:]
            with contextlib.suppress(BadName):
                names.parse("{}/{}/{}:{}".format(*parts))
                yield Name(*parts), Path(path), status

    def read(self, name: Name, path: Path) -> StoredModel:
        """The entry of a name. Raises StoreFailed when its file is damaged, FileNotFoundError when it is gone."""
        try:
            with path.open("rb") as file:
                content = file.read(_LARGEST)
                modified = os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            if not path.is_symlink():
                raise
            raise StoreFailed(f"the model {name} is a link to a place that is not there ({path}); {_MOUNT}") from None
        except OSError as error:
            raise StoreFailed(f"the model {name} cannot be read ({path}: {error.strerror}); change its owner or mode") from None
        what = f"the manifest of {name}"
        manifest = decode(content, Manifest, what, "remove it with `ndani rm`")
        for layer in (manifest.config, *manifest.layers):
            _check(layer.digest, layer.size, what)
        return StoredModel(name, hashlib.sha256(content).hexdigest(), modified, manifest, self._layout, self._blobs)

    def write(self, name: Name, content: bytes) -> None:
        """Make `name` stand for this manifest, from now on and at once. Raises OSError; the old one then stays."""
        found = self.locate(name)
        path = found[1] if found else self._layout.manifest(name)
        make_folder(path.parent)
        # Not beside the name: Ollama would read the temporary file as one more tag.
        fresh = self._layout.manifests / f".{uuid.uuid4().hex}"
        write_new_file(fresh, content)
        try:
            fresh.replace(path)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)

    def remove(self, path: Path) -> None:
        """Remove a name, and the folders that it leaves empty. Raises OSError."""
        path.unlink()
        for folder in list(path.parents)[:3]:
            try:
                folder.rmdir()
            except OSError:
                break

    def _spelt(self, folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
        wanted = parts[0].lower()
        try:
            found = sorted(path for path in folder.iterdir() if path.name.lower() == wanted)
        except (FileNotFoundError, NotADirectoryError):
            return
        for path in found:
            if len(parts) > 1:
                yield from self._spelt(path, parts[1:])
            elif _is_named(path):
                yield path

    def _require_mounted(self, path: Path) -> None:
        """Raise StoreFailed where a folder above `path` is a link to what is not there: its models are away, and not gone."""
        above = [self._layout.root, *(folder for folder in reversed(path.parents) if folder.is_relative_to(self._layout.manifests))]
        for folder in above:
            if folder.is_symlink() and not folder.exists():
                raise StoreFailed(f"the folder {folder} of the model store is a link to a place that is not there; {_MOUNT}")


def _is_named(path: Path) -> bool:
    """Whether a name has this file; a link to one that cannot be reached counts. Raises OSError."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return path.is_symlink()
    except OSError:
        if path.is_symlink():
            return True
        raise


def _files(folder: str, depth: int, closed: dict[str, str]) -> Iterator[tuple[str, os.stat_result]]:
    """Files exactly `depth` folders down, hidden ones left out; strings, because listings are many and Paths are slow.

    A folder that cannot be read is passed over and noted in `closed`, but for the topmost. Raises OSError.
    """
    try:
        found = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):  # removed while we walked, or a store that does not exist yet
        return
    except OSError as error:
        if depth == _DEPTH:
            raise
        closed[folder] = _unread(folder, error)
        return
    with found:
        for item in found:
            if item.name.startswith("."):
                continue
            try:
                status = _status(item)
            except FileNotFoundError:
                continue
            except OSError as error:  # a folder whose files may be listed and not looked at
                closed[folder] = _unread(folder, error)
                continue
            if depth > 1 and stat.S_ISDIR(status.st_mode):
                yield from _files(item.path, depth - 1, closed)
            elif depth > 1 and stat.S_ISLNK(status.st_mode):
                closed[item.path] = f"the folder {item.path} of the model store is a link to a place that cannot be reached; {_MOUNT}"
            elif depth == 1 and (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
                yield item.path, status


def _status(item: os.DirEntry[str]) -> os.stat_result:
    """What the disk says of a file or folder; of the link itself where what it leads to cannot be reached. Raises OSError."""
    try:
        return item.stat()
    except OSError:
        if item.is_symlink():
            return item.stat(follow_symlinks=False)
        raise


def _unread(folder: str, error: OSError) -> str:
    return f"the folder {folder} of the model store cannot be read ({error.strerror}); change its owner or mode"


def _check(digest: str, size: int, what: str) -> None:
    try:
        hex_of(digest)
    except BadRequest:
        size = -1
    if not 0 <= size < _MOST_BYTES:
        raise StoreFailed(f"{what} is damaged in the store; run `ndani verify --repair`, or remove it with `ndani rm`")
