"""Models in repositories of files, as Hugging Face keeps them: `hf.co/user/repo:quant`.

A hub's registry API is tried first (`registry`), as Ollama does. Where that finds nothing (a sharded model, or a hub without
such an API), the repository's list of files is read: it has the GGUF files that the tag means, or safetensors, and their
digests. Files are fetched by the route `resolve`, with its redirects.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

import msgspec

from ndani.errors import BadRequest, NotFound, SourceFailed
from ndani.names import DEFAULT_TAG
from ndani.sources import HUGGING_FACE_HOSTS, Assembly, File, Part, PlannedLayer, PullPlan
from ndani.sources.gguf_files import group, pick
from ndani.sources.read_ahead import SEGMENT_SIZE, STREAMS
from ndani.sources.registry import Registry, RegistrySource
from ndani.sources.retry import retry
from ndani.sources.urls import count_of
from ndani.store.layout import MODEL, digest_of
from ndani.untrusted_json import InvalidJson, decode

#: Statuses after which the list of files is tried. With every other one (busy, interrupted), the registry's error is final.
_NO_REGISTRY_STATUSES = {400, 401, 403, 404, 405, 406, 410, 415, 501}
_BRANCH = "main"
_MAX_LIST = 16 << 20
_MAX_SMALL_FILE = 64 << 20  # bytes of a file that is in git itself, and not in large file storage
_MAX_PAGES = 100
_MAX_FILES = 200_000
#: The files that a conversion needs beside the weights.
_CONFIG_SUFFIXES = (".json", ".txt", ".jinja")
_POOLING = re.compile(r"[^/]*Pooling/config\.json")
_LICENCE_NAMES = ("license", "license.txt", "license.md")


class _LfsInfo(msgspec.Struct):
    """A file in large file storage. The lists have its sha256 under one of two names."""

    size: int | None = None
    sha256: str | None = None
    oid: str | None = None


class _Sibling(msgspec.Struct):
    """A file in the list of a revision."""

    rfilename: str
    size: int | None = None
    blobId: str | None = None  # noqa: N815 - the hub's own word
    lfs: _LfsInfo | None = None


class _Revision(msgspec.Struct):
    siblings: tuple[_Sibling, ...]
    sha: str | None = None


class _TreeEntry(msgspec.Struct):
    """A file or a folder in the tree."""

    type: str
    path: str
    size: int | None = None
    oid: str | None = None
    lfs: _LfsInfo | None = None


@dataclass(frozen=True, slots=True)
class RepositoryFile:
    """A file of a repository: its size, and the sha256 of its content or its git object id (both hex), where known."""

    path: str
    size: int
    sha256: str = ""
    oid: str = ""


class HubSource(RegistrySource):
    """One model of a host: by its registry API first, then by its list of files. The host's responses show which of them it has."""

    def __init__(self, registry: Registry, segment_size: int = SEGMENT_SIZE, streams: int = STREAMS) -> None:
        super().__init__(registry, segment_size, streams)
        name = registry.name
        self._repository = f"{name.namespace}/{name.model}"
        self._revision = _BRANCH
        self._is_hugging_face = name.host.lower() in HUGGING_FACE_HOSTS
        self._paths: dict[str, str] = {}  # of a repository's files, by sha256

    async def plan(self) -> PullPlan:
        """The plan of the manifest, else of the list of files. Raises what `Registry.manifest` raises."""
        try:
            return await super().plan()
        except (NotFound, SourceFailed) as error:
            if self._registry.last_status not in _NO_REGISTRY_STATUSES:
                raise
            registry_error = error
        try:
            files = await self._list()
        except (NotFound, SourceFailed):
            if not self._is_hugging_face:  # a plain registry has no list of files, so its own error is the right one
                raise registry_error from None
            if self._registry.last_status == 401 and not self._registry.token_refused:
                raise self._refusal() from None
            raise
        return await self._plan(files)

    def _url(self, part: Part) -> str:
        path = self._paths.get(part.file.sha256)
        return self._resolve_url(path) if path else super()._url(part)

    def _resolve_url(self, path: str) -> str:
        return self._registry.hub_url(self._repository, "resolve", quote(self._revision, safe=""), quote(path))

    # The list of files.

    async def _list(self) -> list[RepositoryFile]:
        """Every file of the repository. Raises NotFound, SourceFailed."""
        response = await self._get_json(self._registry.hub_url("api/models", self._repository, "revision", f"{_BRANCH}?blobs=true"))
        if response is not None:
            content, _ = response
            try:
                body = decode(content, _Revision)
            except InvalidJson:
                raise self._invalid_list() from None
            files = [self._file_of(entry.rfilename, entry, entry.blobId) for entry in body.siblings]
            self._revision = body.sha or _BRANCH
            if all(file.size >= 0 for file in files):
                return files
        return await self._tree()

    async def _tree(self) -> list[RepositoryFile]:
        """As `_list`, by the other route, which has pages."""
        url = self._registry.hub_url("api/models", self._repository, "tree", f"{quote(self._revision, safe='')}?recursive=true")
        files: list[RepositoryFile] = []
        for _ in range(_MAX_PAGES):
            response = await self._get_json(url)
            if response is None:
                raise NotFound(f"pull model manifest: {self._registry.host} has no repository {self._repository}; check its name")
            content, link = response
            try:
                entries = decode(content, tuple[_TreeEntry, ...])
            except InvalidJson:
                raise self._invalid_list() from None
            files += [self._file_of(entry.path, entry, entry.oid) for entry in entries if entry.type == "file"]
            if len(files) > _MAX_FILES:
                break
            next_link = re.search(r'<([^>]+)>;\s*rel="next"', link)
            if not next_link:
                return files
            url = self._registry.follow(url, next_link[1])
        raise self._invalid_list()

    def _file_of(self, path: str, entry: _Sibling | _TreeEntry, oid: str | None) -> RepositoryFile:
        """A file of a list; size -1 means that the list has no size. Raises SourceFailed when a digest is invalid."""
        lfs = entry.lfs or _LfsInfo()
        size, sha256 = entry.size if lfs.size is None else lfs.size, lfs.sha256 or lfs.oid or ""
        if not re.fullmatch(r"([0-9a-f]{64})?", sha256) or not re.fullmatch(r"([0-9a-f]{40})?", oid or ""):
            raise self._invalid_list()
        return RepositoryFile(path, -1 if size is None else size, sha256, oid or "")

    async def _get_json(self, url: str) -> tuple[bytes, str] | None:
        """A response body and its Link header; None when the hub has no such resource."""
        return await retry(self._registry.retries, lambda: self._get_json_once(url))

    async def _get_json_once(self, url: str) -> tuple[bytes, str] | None:
        async with self._registry.request("GET", url, {"Accept": "application/json"}) as response:
            content = await response.read(_MAX_LIST)
            if response.status == 404:
                return None
            if response.status in (401, 403):
                raise self._refusal()
            if response.status != 200:
                raise SourceFailed(f"{self._registry.host} answered {response.status} for its list of files; try again later")
            return content, response.headers.get("Link", "")

    def _refusal(self) -> SourceFailed:
        host = self._registry.host
        if self._registry.has_token:
            return SourceFailed(
                f"{host} refused {self._repository} to the token of HF_TOKEN: check the token and what it may read, "
                f"and accept the model's terms at {host} with the account that it belongs to"
            )
        return SourceFailed(
            f"{host} refused {self._repository}: it is not there, or private, or its terms must be accepted at {host} first; "
            "then put a token of yours into HF_TOKEN"
        )

    def _invalid_list(self) -> SourceFailed:
        return SourceFailed(f"{self._registry.host} answered with something that is no list of files; check the name of the host")

    # The files of the model.

    async def _plan(self, files: list[RepositoryFile]) -> PullPlan:
        by_path = {file.path: file for file in files}
        tag, repository = self._registry.name.tag, f"{self._registry.host}/{self._repository}"
        has_gguf = group(by_path)
        paths = pick(by_path, tag, repository) if has_gguf else await self._checkpoint(by_path, tag, repository)
        layers, digests = [], {}
        for path in paths:
            layer = await self._layer(by_path[path])
            layers.append(layer)
            digests[PurePosixPath(path).name if has_gguf else path] = layer.digest
        texts = {name: await self._text(by_path[name]) for name in ("template", "system", "params") if name in by_path}
        licences = [await self._text(by_path[path]) for path in by_path if path.lower() in _LICENCE_NAMES]
        try:
            params = decode(texts.get("params", "{}").encode(), dict[str, Any] | None) or {}  # type: ignore[arg-type]
        except InvalidJson:
            raise SourceFailed(f"{repository} has a file params that is no JSON object; tell whoever made it") from None
        parameters = {name: value for name, value in params.items() if value is not None}
        assembly = Assembly(digests, texts.get("template", ""), texts.get("system", ""), parameters, tuple(licences))
        return PullPlan(b"", tuple(layers), assembly)

    async def _checkpoint(self, files: dict[str, RepositoryFile], tag: str, repository: str) -> list[str]:
        """The files that a conversion needs, of a repository without GGUF. Raises before the weights are fetched.

        `model*.safetensors` takes precedence: some publishers have the same weights in other files beside it.
        """
        weights = [path for path in files if path.endswith(".safetensors") and "/" not in path]
        weights = [path for path in weights if path.startswith("model")] or weights
        if not weights or "config.json" not in files:
            raise NotFound(f"{repository} has neither a GGUF file nor safetensors with a config.json: it is no model that can run here")
        if tag != DEFAULT_TAG:
            raise NotFound(f"{repository} has no {tag}; it has safetensors only, which are pulled without a tag")
        from ndani.convert.checkpoint import require_known  # it imports numpy, which most pulls do not need

        try:
            require_known(decode(await self._content(files["config.json"]), dict[str, Any]))
        except (InvalidJson, BadRequest) as error:
            reason = error if isinstance(error, BadRequest) else "its config.json is not JSON"
            raise SourceFailed(f"{repository} has safetensors and no GGUF file, and they cannot be converted: {reason}") from None
        configs = [
            path for path in files if path.lower().endswith(_CONFIG_SUFFIXES) and "/" not in path and path.lower() not in _LICENCE_NAMES
        ]
        return [*weights, *configs, *(path for path in files if _POOLING.fullmatch(path))]

    async def _layer(self, file: RepositoryFile) -> PlannedLayer:
        """The layer of a file. Without a sha256, the file is fetched at once and checked by its git object id."""
        if not file.sha256:
            file = await self._with_resolve_headers(file)
        if file.size < 0:
            raise self._invalid_list()
        if file.sha256:
            self._paths[file.sha256] = file.path
            source_file = File(self._registry.name.model, PurePosixPath(file.path).name, file.sha256, file.size)
            part = Part(source_file, 0, file.size, file.size, file.sha256)
            return PlannedLayer(MODEL, f"sha256:{file.sha256}", file.size, (part,))
        content = await self._content(file)
        return PlannedLayer(MODEL, digest_of(content), len(content), content=content)

    async def _with_resolve_headers(self, file: RepositoryFile) -> RepositoryFile:
        """The same file with the digest and size in the headers of `resolve`, before its redirect."""

        async def head() -> RepositoryFile:
            async with self._registry.request("HEAD", self._resolve_url(file.path), follow=False) as response:
                etag = response.headers.get("X-Linked-Etag") or response.headers.get("ETag") or ""
                size_header = response.headers.get("X-Linked-Size") or response.headers.get("Content-Length") or ""
                etag = etag.removeprefix("W/").strip('"').lower()
                file_size = count_of(size_header) or file.size
                if re.fullmatch(r"[0-9a-f]{64}", etag):
                    return RepositoryFile(file.path, file_size, sha256=etag)
                return RepositoryFile(file.path, file_size, oid=etag if re.fullmatch(r"[0-9a-f]{40}", etag) else file.oid)

        return await retry(self._registry.retries, head)

    async def _text(self, file: RepositoryFile) -> str:
        return (await self._content(file)).decode("utf-8", "replace")

    async def _content(self, file: RepositoryFile) -> bytes:
        """A small file's bytes, verified. Raises SourceFailed when they differ, or there is no digest."""
        if not file.sha256 and not file.oid:
            file = await self._with_resolve_headers(file)
        if file.size > _MAX_SMALL_FILE or not (file.sha256 or file.oid):
            raise SourceFailed(f"{self._registry.host} gives no digest for {file.path}, so it cannot be checked; choose another file")
        content = await retry(self._registry.retries, lambda: self._read(file.path))
        header = f"blob {len(content)}\0".encode()
        got = hashlib.sha256(content).hexdigest() if file.sha256 else hashlib.sha1(header + content, usedforsecurity=False).hexdigest()
        if got != (want := file.sha256 or file.oid):
            raise SourceFailed(f"digest mismatch, {file.path} must be downloaded again: want {want}, got {got}; pull once more")
        return content

    async def _read(self, path: str) -> bytes:
        async with self._registry.request("GET", self._resolve_url(path)) as response:
            if response.status in (401, 403):
                raise self._refusal()
            if response.status != 200:
                raise SourceFailed(f"{self._registry.host} answered {response.status} for {path}; try again later")
            return await response.read(_MAX_SMALL_FILE + 1)
