"""Names on the disk: one file each, in four folders deep. Read, walk, write, remove.

A name is looked up without regard to case, and keeps the spelling it was first given. Writing is temporary file,
fsync, rename: a reader sees the old manifest or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from ndani import names
from ndani.errors import BadName, BadRequest, StoreFailed
from ndani.names import Name
from ndani.store.blobs import Blobs, write_new
from ndani.store.disk import make_folder, settle
from ndani.store.entry import Entry, Manifest, decode
from ndani.store.layout import Layout, hex_of

_LARGEST = 1 << 22  # a manifest is a few hundred bytes; four megabytes is not one


class Manifests:
    """The names of one store."""

    def __init__(self, layout: Layout, blobs: Blobs) -> None:
        self._layout, self._blobs = layout, blobs

    def locate(self, name: Name) -> tuple[Name, Path] | None:
        """The name as it is spelt here, and its file; None when there is none. Raises OSError."""
        exact = self._layout.manifest(name)
        if exact.is_file():
            return name, exact
        found = next(self._spelt(self._layout.manifests, (name.host, name.namespace, name.model, name.tag)), None)
        return (Name(*found.parts[-4:]), found) if found else None

    def walk(self) -> Iterator[tuple[Name, Path, os.stat_result]]:
        """Every name here, its file and what the disk says of that file; other files are passed over. Raises OSError."""
        for path, status in _files(str(self._layout.manifests), 4):
            parts = path.rsplit(os.sep, 4)[1:]
            with contextlib.suppress(BadName):
                names.parse("{}/{}/{}:{}".format(*parts))
                yield Name(*parts), Path(path), status

    def read(self, name: Name, path: Path) -> Entry:
        """The entry of a name. Raises StoreFailed when its file is damaged, FileNotFoundError when it is gone."""
        try:
            with path.open("rb") as file:
                content = file.read(_LARGEST)
                modified = os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StoreFailed(f"the model {name} cannot be read ({path}: {error.strerror}); change its owner or mode") from None
        what = f"the manifest of {name}"
        manifest = decode(content, Manifest, what)
        for layer in (manifest.config, *manifest.layers):
            _check(layer.digest, layer.size, what)
        return Entry(name, hashlib.sha256(content).hexdigest(), modified, manifest, self._layout, self._blobs)

    def write(self, name: Name, content: bytes) -> None:
        """Make `name` stand for this manifest, from now on and at once. Raises OSError; the old one then stays."""
        found = self.locate(name)
        path = found[1] if found else self._layout.manifest(name)
        make_folder(path.parent)
        # Not beside the name: Ollama would read the temporary file as one more tag.
        fresh = self._layout.manifests / f".{uuid.uuid4().hex}"
        write_new(fresh, content)
        try:
            fresh.replace(path)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
        settle(path.parent)

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
            elif path.is_file():
                yield path


def _files(folder: str, depth: int) -> Iterator[tuple[str, os.stat_result]]:
    """Files exactly `depth` folders down, hidden ones left out; strings, because listings are many and Paths are slow."""
    try:
        with os.scandir(folder) as found:
            for item in found:
                if item.name.startswith("."):
                    continue
                if depth > 1:
                    if item.is_dir():
                        yield from _files(item.path, depth - 1)
                elif item.is_file():
                    yield item.path, item.stat()
    except FileNotFoundError:  # removed while we walked, or a store that does not exist yet
        return


def _check(digest: str, size: int, what: str) -> None:
    try:
        hex_of(digest)
    except BadRequest:
        size = -1
    if size < 0:
        raise StoreFailed(f"{what} is damaged in the store; run `ndani verify --repair`, or create the model again")
