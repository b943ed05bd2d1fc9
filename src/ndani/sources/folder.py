"""Models in a folder on this machine: a removable disk, a share, a folder of downloads. It opens no connection.

The folder is a store in Ollama's layout (or has one as `models`), or it has GGUF files: `model-tag.gguf` for `model:tag`.
Bytes are verified as those of every source: by the manifest's digests, by a list of checksums beside the files
(`SHA256SUMS`, or `FILE.sha256`), else by a checksum that is computed before they are copied.
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
from ndani.store.layout import MODEL, Layout
from ndani.types import Progress, Report

_CHUNK = 8 << 20
_MAX_TEXT = 4 << 20  # bytes of a manifest, or of a list of checksums
_CHECKSUM_LINE = re.compile(r"^\\?([0-9a-fA-F]{64})(?: [ *](.+))?$", re.MULTILINE)


class FolderSource:
    """The model of one name in one folder."""

    def __init__(self, name: Name, folder: Path) -> None:
        self._name, self._folder = name, folder
        self._paths: dict[str, Path] = {}  # by sha256
        self._checksums: dict[Path, str] = {}

    async def scan(self, report: Report) -> None:
        """Compute the checksums of GGUF files that have none in a list. Raises NotFound, SourceFailed."""
        if await asyncio.to_thread(self._find_manifest):
            return
        for path in await asyncio.to_thread(self._model_files):
            listed = await asyncio.to_thread(_listed_checksum, path)
            if listed:
                self._checksums[path] = listed
                continue
            hasher, done = hashlib.sha256(), 0
            try:
                total = path.stat().st_size
                with _open_regular_file(path) as file:
                    while chunk := await asyncio.to_thread(file.read, _CHUNK):
                        await asyncio.to_thread(hasher.update, chunk)
                        done += len(chunk)
                        report(Progress(f"reading {path.name}", None, total, done))
            except OSError as error:
                raise self._unreadable(path, error) from None
            self._checksums[path] = hasher.hexdigest()

    async def plan(self) -> PullPlan:
        """The plan of the manifest, or of the GGUF files. Raises NotFound, SourceFailed."""
        if manifest := await asyncio.to_thread(self._find_manifest):
            path, layout = manifest
            try:
                with _open_regular_file(path) as file:
                    content = file.read(_MAX_TEXT)
            except OSError as error:
                raise self._unreadable(path, error) from None
            plan = read_manifest(content, self._name, str(self._folder))
            self._paths = {layer.digest.removeprefix("sha256:"): layout.blob(layer.digest) for layer in plan.layers}
            return plan
        layers, digests = [], {}
        for path, sha256 in self._checksums.items():
            try:
                size = path.stat().st_size
            except OSError as error:
                raise self._unreadable(path, error) from None
            self._paths[sha256] = path
            part = Part(File(self._name.model, path.name, sha256, size), 0, size, size, sha256)
            layers.append(PlannedLayer(MODEL, f"sha256:{sha256}", size, (part,)))
            digests[path.name] = f"sha256:{sha256}"
        return PullPlan(b"", tuple(layers), Assembly(digests))

    async def open(self, part: Part, start: int) -> AsyncGenerator[bytes, None]:
        """The bytes of a file from `start` on. Raises NotFound, SourceFailed."""
        path = self._paths[part.file.sha256]
        try:
            with _open_regular_file(path) as file:
                if path.stat().st_size != part.size:
                    raise SourceFailed(f"{path} has {path.stat().st_size} bytes, and {part.size} were expected; copy it there again")
                file.seek(start)
                while chunk := await asyncio.to_thread(file.read, _CHUNK):
                    yield chunk
        except FileNotFoundError:
            raise NotFound(f"{self._folder} lacks {path.name}, which {self._name} needs; copy it there again") from None
        except OSError as error:
            raise self._unreadable(path, error) from None

    async def close(self) -> None:
        """Do nothing: no file stays open."""

    def _find_manifest(self) -> tuple[Path, Layout] | None:
        """The manifest of this name in a store here, in any letter case."""
        for root in (self._folder, self._folder / "models"):
            layout = Layout(root)
            folder = layout.manifests
            for part in (self._name.host, self._name.namespace, self._name.model, self._name.tag):
                try:
                    entries = [path for path in folder.iterdir() if path.name.lower() == part.lower()]
                except OSError:
                    entries = []
                if not entries:
                    break
                folder = entries[0]
            else:
                return folder, layout
        return None

    def _model_files(self) -> tuple[Path, ...]:
        """The GGUF files of this name: their stem is the model's name, then its tag. Raises NotFound, SourceFailed."""
        not_found = NotFound("pull model manifest: file does not exist")
        try:
            paths = sorted(str(path.relative_to(self._folder)) for path in self._folder.rglob("*.[gG][gG][uU][fF]") if path.is_file())
        except OSError as error:
            raise self._unreadable(self._folder, error) from None
        # A tag may leave the quantisation out, and `latest` everything.
        wanted = _normalised(self._name.model if self._name.tag == DEFAULT_TAG else f"{self._name.model}-{self._name.tag}")
        # Exclude other names first: one model's name may look like that of a draft model of another.
        stems = group(path for path in paths if f"{_normalised(stem_of(path))}-".startswith(f"{wanted}-"))
        exact = [stem for stem in stems if _normalised(stem) == wanted]
        candidates = [path for stem in stems if stem not in exact for path in stems[stem]]
        if not exact and not candidates:
            raise not_found
        picked = pick(stems[exact[0]], exact[0], str(self._folder)) if exact else pick(candidates, DEFAULT_TAG, str(self._folder))
        root = self._folder.resolve()
        for path in (self._folder / path for path in picked):
            if not path.resolve().is_relative_to(root):  # a foreign disk could link to any file of this machine
                advice = "name a folder in NDANI_SOURCES that holds both, or copy the file there"
                raise SourceFailed(f"{path} is a link out of {self._folder}; {advice}")
        return tuple(self._folder / path for path in picked)

    def _unreadable(self, path: Path, error: OSError) -> NdaniError:
        return SourceFailed(f"{path} cannot be read ({error.strerror}); look at the folders of NDANI_SOURCES")


def _open_regular_file(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises OSError for anything else: reading from a pipe could block forever."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no file")
    return os.fdopen(handle, "rb")


def _normalised(text: str) -> str:
    return re.sub(r"[-_.:]+", "-", text.lower())


def _listed_checksum(path: Path) -> str:
    """The sha256 of a file in a list of checksums beside it, or ""."""
    own_list = path.with_name(f"{path.name}.sha256")
    for list_path in (own_list, path.with_name("SHA256SUMS"), path.with_name("sha256sums.txt")):
        try:
            with _open_regular_file(list_path) as file:
                text = file.read(_MAX_TEXT).decode("utf-8", "replace")
        except OSError:
            continue
        for digest, name in _CHECKSUM_LINE.findall(text):
            if name.strip() in (path.name, f"./{path.name}") or (list_path == own_list and not name):
                return str(digest).lower()
    return ""
