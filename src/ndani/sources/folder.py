"""Models in a folder on this machine: a removable disk, a share, a folder of downloads. Nothing is dialled.

Either it is a store in Ollama's layout (or holds one as `models`), or it has GGUF files, `model-tag.gguf` for
`model:tag`. Bytes are checked as from anywhere: by the manifest's digests, by a list of sums beside the files
(`SHA256SUMS`, or `FILE.sha256`), else by a sum that is taken before they are copied.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import stat
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import BinaryIO

from ndani.errors import NdaniError, NotFound, SourceFailed
from ndani.names import DEFAULT_TAG, Name
from ndani.sources import Assembly, File, Part, PlannedLayer, PullPlan
from ndani.sources.gguf_files import group, pick, stem_of
from ndani.sources.manifest import read_manifest
from ndani.store import layout as kinds
from ndani.store.layout import Layout
from ndani.types import Progress, Report

_PIECE = 8 << 20
_LARGEST = 4 << 20  # of a manifest, or of a list of sums
_SUM = re.compile(r"^\\?([0-9a-fA-F]{64})(?: [ *](.+))?$", re.MULTILINE)


class FolderSource:
    """What one folder has of one name."""

    def __init__(self, name: Name, folder: Path) -> None:
        self._name, self._folder = name, folder
        self._places: dict[str, Path] = {}  # by sha256
        self._sums: dict[Path, str] = {}

    async def scan(self, report: Report) -> None:
        """Take the sums of GGUF files that come without any. Raises NotFound, SourceFailed."""
        if await asyncio.to_thread(self._manifest):
            return
        for path in await asyncio.to_thread(self._files):
            listed = await asyncio.to_thread(_listed_sum, path)
            if listed:
                self._sums[path] = listed
                continue
            found, done = hashlib.sha256(), 0
            try:
                total = path.stat().st_size
                with _opened(path) as file:
                    while piece := await asyncio.to_thread(file.read, _PIECE):
                        await asyncio.to_thread(found.update, piece)
                        done += len(piece)
                        report(Progress(f"reading {path.name}", None, total, done))
            except OSError as error:
                raise self._unreadable(path, error) from None
            self._sums[path] = found.hexdigest()

    async def plan(self) -> PullPlan:
        """What the model is made of. Raises NotFound, SourceFailed."""
        if manifest := await asyncio.to_thread(self._manifest):
            path, layout = manifest
            try:
                with _opened(path) as file:
                    content = file.read(_LARGEST)
            except OSError as error:
                raise self._unreadable(path, error) from None
            plan = read_manifest(content, self._name, str(self._folder))
            self._places = {layer.digest.removeprefix("sha256:"): layout.blob(layer.digest) for layer in plan.layers}
            return plan
        layers, digests = [], {}
        for path, sha256 in self._sums.items():
            try:
                size = path.stat().st_size
            except OSError as error:
                raise self._unreadable(path, error) from None
            self._places[sha256] = path
            part = Part(File(self._name.model, path.name, sha256, size), 0, size, size, sha256)
            layers.append(PlannedLayer(kinds.MODEL, f"sha256:{sha256}", size, (part,)))
            digests[path.name] = f"sha256:{sha256}"
        return PullPlan(b"", tuple(layers), Assembly(digests))

    async def open(self, part: Part, start: int) -> AsyncGenerator[bytes, None]:
        """The bytes of a file from `start` on. Raises NotFound, SourceFailed."""
        path = self._places[part.file.sha256]
        try:
            with _opened(path) as file:
                if path.stat().st_size != part.size:
                    raise SourceFailed(f"{path} has {path.stat().st_size} bytes, and {part.size} were expected; copy it there again")
                file.seek(start)
                while piece := await asyncio.to_thread(file.read, _PIECE):
                    yield piece
        except FileNotFoundError:
            raise NotFound(f"{self._folder} lacks {path.name}, which {self._name} needs; copy it there again") from None
        except OSError as error:
            raise self._unreadable(path, error) from None

    async def close(self) -> None:
        """Nothing is left open."""

    def _manifest(self) -> tuple[Path, Layout] | None:
        """The manifest of this name in a store here, however its letters are cased."""
        for root in (self._folder, self._folder / "models"):
            layout = Layout(root)
            place = layout.manifests
            for part in (self._name.host, self._name.namespace, self._name.model, self._name.tag):
                try:
                    found = [path for path in place.iterdir() if path.name.lower() == part.lower()]
                except OSError:
                    found = []
                if not found:
                    break
                place = found[0]
            else:
                return place, layout
        return None

    def _files(self) -> tuple[Path, ...]:
        """The GGUF files of this name: their stem is the model's, its tag behind it. Raises NotFound, SourceFailed."""
        missing = NotFound("pull model manifest: file does not exist")
        try:
            paths = sorted(str(path.relative_to(self._folder)) for path in self._folder.rglob("*.[gG][gG][uU][fF]") if path.is_file())
        except OSError as error:
            raise self._unreadable(self._folder, error) from None
        # A tag may leave the quantisation out, and `latest` everything.
        wanted = _plain(self._name.model if self._name.tag == DEFAULT_TAG else f"{self._name.model}-{self._name.tag}")
        # What is of other names is left out first: of two models one may be called as what drafts for the other.
        stems = group(path for path in paths if f"{_plain(stem_of(path))}-".startswith(f"{wanted}-"))
        exact = [stem for stem in stems if _plain(stem) == wanted]
        ours = [path for stem in stems if stem not in exact for path in stems[stem]]
        if not exact and not ours:
            raise missing
        found = pick(stems[exact[0]], exact[0], str(self._folder)) if exact else pick(ours, DEFAULT_TAG, str(self._folder))
        home = self._folder.resolve()
        for path in (self._folder / path for path in found):
            if not path.resolve().is_relative_to(home):  # a disk of somebody else's could name any file of this machine
                advice = "name a folder in NDANI_SOURCES that holds both, or copy the file there"
                raise SourceFailed(f"{path} is a link out of {self._folder}; {advice}")
        return tuple(self._folder / path for path in found)

    def _unreadable(self, path: Path, error: OSError) -> NdaniError:
        return SourceFailed(f"{path} cannot be read ({error.strerror}); look at the folders of NDANI_SOURCES")


def _opened(path: Path) -> BinaryIO:
    """A file to be read. Raises OSError, also for what only looks like one: nobody writes to the other end of a pipe."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no file")
    return os.fdopen(handle, "rb")


def _plain(text: str) -> str:
    return re.sub(r"[-_.:]+", "-", text.lower())


def _listed_sum(path: Path) -> str:
    """The sha256 that a file beside this one says it has, or nothing."""
    beside = path.with_name(f"{path.name}.sha256")
    for place in (beside, path.with_name("SHA256SUMS"), path.with_name("sha256sums.txt")):
        try:
            with _opened(place) as file:
                text = file.read(_LARGEST).decode("utf-8", "replace")
        except OSError:
            continue
        for digest, name in _SUM.findall(text):
            if name.strip() in (path.name, f"./{path.name}") or (place == beside and not name):
                return str(digest).lower()
    return ""
