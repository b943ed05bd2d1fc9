"""Models in repositories of files, as Hugging Face keeps them: `hf.co/user/repo:quant`.

A hub that speaks the registry's protocol is asked by it first (`registry`), which is all that Ollama does. Where that
finds nothing, for a sharded model or on a hub without that door, the repository's list of files is read: the GGUF that
the tag means, or safetensors, with the digests that the list gives. Files come by `resolve`, wherever that redirects.
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
from ndani.store import layout as kinds
from ndani.untrusted_json import InvalidJson, decode

#: Answers that say: not by this door. Everything else (busy, broken off) is the answer.
_NOT_HERE = {400, 401, 403, 404, 405, 406, 410, 415, 501}
_BRANCH = "main"
_LIST_LIMIT = 16 << 20
_SMALL = 64 << 20  # bytes of a file that is kept in git itself, and not in large file storage
_MOST_PAGES = 100
_MOST_FILES = 200_000
#: What a converter wants beside the weights.
_BESIDE = (".json", ".txt", ".jinja")
_POOLING = re.compile(r"[^/]*Pooling/config\.json")
_LICENCES = ("license", "license.txt", "license.md")


class _Large(msgspec.Struct):
    """What a list says of a file in large file storage: its sha256 by one of two names."""

    size: int | None = None
    sha256: str | None = None
    oid: str | None = None


class _Sibling(msgspec.Struct):
    """A file as the list of a revision has it."""

    rfilename: str
    size: int | None = None
    blobId: str | None = None  # noqa: N815 - the hub's own word
    lfs: _Large | None = None


class _Revision(msgspec.Struct):
    siblings: tuple[_Sibling, ...]
    sha: str | None = None


class _Leaf(msgspec.Struct):
    """A file or a folder as the tree has it."""

    type: str
    path: str
    size: int | None = None
    oid: str | None = None
    lfs: _Large | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """A file of a repository: bytes, and sha256 (hex, of the content) or git's own id of it (hex), where they are said."""

    path: str
    size: int
    sha256: str = ""
    oid: str = ""


class HubSource(RegistrySource):
    """One model of one hub, or of a registry that turns out to be none."""

    def __init__(self, registry: Registry, segment_size: int = SEGMENT_SIZE, streams: int = STREAMS) -> None:
        super().__init__(registry, segment_size, streams)
        name = registry.name
        self._repository = f"{name.namespace}/{name.model}"
        self._revision = _BRANCH
        self._known = name.host.lower() in HUGGING_FACE_HOSTS
        self._paths: dict[str, str] = {}  # of a repository's files, by sha256

    async def plan(self) -> PullPlan:
        """What the model is made of: by manifest, else by files. Raises as `Registry.manifest` does, and Unsupported."""
        try:
            return await super().plan()
        except (NotFound, SourceFailed) as error:
            if self._registry.last_status not in _NOT_HERE:
                raise
            first = error
        try:
            files = await self._list()
        except (NotFound, SourceFailed) as error:
            if not self._known:  # a plain registry has no list of files: what its own door said is the answer
                raise first from None
            if self._registry.last_status == 401 and "HF_TOKEN" not in str(error):
                raise self._refusal() from None
            raise
        return await self._plan(files)

    def _url(self, part: Part) -> str:
        path = self._paths.get(part.file.sha256)
        return self._resolved(path) if path else super()._url(part)

    def _resolved(self, path: str) -> str:
        return self._registry.hub_url(self._repository, "resolve", quote(self._revision, safe=""), quote(path))

    # The list of files.

    async def _list(self) -> list[Listed]:
        """Every file of the repository. Raises NotFound, SourceFailed."""
        found = await self._json(self._registry.hub_url("api/models", self._repository, "revision", f"{_BRANCH}?blobs=true"))
        if found is not None:
            content, _ = found
            try:
                body = decode(content, _Revision)
            except InvalidJson:
                raise self._odd() from None
            files = [self._listed(one.rfilename, one, one.blobId) for one in body.siblings]
            self._revision = body.sha or _BRANCH
            if all(file.size >= 0 for file in files):
                return files
        return await self._tree()

    async def _tree(self) -> list[Listed]:
        """The same by the other route, which comes in pages."""
        url = self._registry.hub_url("api/models", self._repository, "tree", f"{quote(self._revision, safe='')}?recursive=true")
        files: list[Listed] = []
        for _ in range(_MOST_PAGES):
            found = await self._json(url)
            if found is None:
                raise NotFound(f"pull model manifest: {self._registry.host} has no repository {self._repository}; check its name")
            content, link = found
            try:
                leaves = decode(content, tuple[_Leaf, ...])
            except InvalidJson:
                raise self._odd() from None
            files += [self._listed(one.path, one, one.oid) for one in leaves if one.type == "file"]
            if len(files) > _MOST_FILES:
                break
            following = re.search(r'<([^>]+)>;\s*rel="next"', link)
            if not following:
                return files
            url = self._registry.follow(url, following[1])
        raise self._odd()

    def _listed(self, path: str, one: _Sibling | _Leaf, oid: str | None) -> Listed:
        """A file as a list has it; a size below 0 says that the list has none. Raises SourceFailed when its digests are none."""
        large = one.lfs or _Large()
        size, sha256 = one.size if large.size is None else large.size, large.sha256 or large.oid or ""
        if not re.fullmatch(r"([0-9a-f]{64})?", sha256) or not re.fullmatch(r"([0-9a-f]{40})?", oid or ""):
            raise self._odd()
        return Listed(path, -1 if size is None else size, sha256, oid or "")

    async def _json(self, url: str) -> tuple[bytes, str] | None:
        """An answer and its Link header; None when the hub has no such thing."""
        return await retry(self._registry.retries, lambda: self._asked(url))

    async def _asked(self, url: str) -> tuple[bytes, str] | None:
        async with self._registry.request("GET", url, {"Accept": "application/json"}) as answer:
            content = await answer.read(_LIST_LIMIT)
            if answer.status == 404:
                return None
            if answer.status in (401, 403):
                raise self._refusal()
            if answer.status != 200:
                raise SourceFailed(f"{self._registry.host} answered {answer.status} for its list of files; try again later")
            return content, answer.headers.get("Link", "")

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

    def _odd(self) -> SourceFailed:
        return SourceFailed(f"{self._registry.host} answered with something that is no list of files; check the name of the host")

    # What of it is the model.

    async def _plan(self, files: list[Listed]) -> PullPlan:
        by_path = {file.path: file for file in files}
        tag, place = self._registry.name.tag, f"{self._registry.host}/{self._repository}"
        found = group(by_path)
        paths = pick(by_path, tag, place) if found else await self._checkpoint(by_path, tag, place)
        layers, digests = [], {}
        for path in paths:
            layer = await self._layer(by_path[path])
            layers.append(layer)
            digests[PurePosixPath(path).name if found else path] = layer.digest
        texts = {name: await self._text(by_path[name]) for name in ("template", "system", "params") if name in by_path}
        licences = [await self._text(by_path[path]) for path in by_path if path.lower() in _LICENCES]
        try:
            params = decode(texts.get("params", "{}").encode(), dict[str, Any] | None) or {}  # type: ignore[arg-type]
        except InvalidJson:
            raise SourceFailed(f"{place} has a file params that is no JSON object; tell whoever made it") from None
        parameters = {name: value for name, value in params.items() if value is not None}
        assembly = Assembly(digests, texts.get("template", ""), texts.get("system", ""), parameters, tuple(licences))
        return PullPlan(b"", tuple(layers), assembly)

    async def _checkpoint(self, files: dict[str, Listed], tag: str, place: str) -> list[str]:
        """What a converter needs of a repository without a GGUF file. Raises Unsupported before the weights come.

        `model*.safetensors` counts before others: some publishers put the same weights beside it in another form.
        """
        weights = [path for path in files if path.endswith(".safetensors") and "/" not in path]
        weights = [path for path in weights if path.startswith("model")] or weights
        if not weights or "config.json" not in files:
            raise NotFound(f"{place} has neither a GGUF file nor safetensors with a config.json: it is no model that can run here")
        if tag != DEFAULT_TAG:
            raise NotFound(f"{place} has no {tag}; it has safetensors only, which are pulled without a tag")
        from ndani.convert.checkpoint import require_known  # with numpy, which most pulls do without

        try:
            require_known(decode(await self._content(files["config.json"]), dict[str, Any]))
        except (InvalidJson, BadRequest) as error:
            reason = error if isinstance(error, BadRequest) else "its config.json is not JSON"
            raise SourceFailed(f"{place} has safetensors and no GGUF file, and they cannot be converted: {reason}") from None
        beside = [path for path in files if path.lower().endswith(_BESIDE) and "/" not in path and path.lower() not in _LICENCES]
        return [*weights, *beside, *(path for path in files if _POOLING.fullmatch(path))]

    async def _layer(self, file: Listed) -> PlannedLayer:
        """One file as a blob: by its sha256, or at once where git's id is all there is to check it by."""
        if not file.sha256:
            file = await self._linked(file)
        if file.size < 0:
            raise self._odd()
        if file.sha256:
            self._paths[file.sha256] = file.path
            named = File(self._registry.name.model, PurePosixPath(file.path).name, file.sha256, file.size)
            part = Part(named, 0, file.size, file.size, file.sha256)
            return PlannedLayer(kinds.MODEL, f"sha256:{file.sha256}", file.size, (part,))
        content = await self._content(file)
        return PlannedLayer(kinds.MODEL, kinds.digest_of(content), len(content), content=content)

    async def _linked(self, file: Listed) -> Listed:
        """The same file with what `resolve` says of it before it redirects."""

        async def look() -> Listed:
            async with self._registry.request("HEAD", self._resolved(file.path), follow=False) as answer:
                etag = answer.headers.get("X-Linked-Etag") or answer.headers.get("ETag") or ""
                size = answer.headers.get("X-Linked-Size") or answer.headers.get("Content-Length") or ""
                etag = etag.removeprefix("W/").strip('"').lower()
                length = count_of(size) or file.size
                if re.fullmatch(r"[0-9a-f]{64}", etag):
                    return Listed(file.path, length, sha256=etag)
                return Listed(file.path, length, oid=etag if re.fullmatch(r"[0-9a-f]{40}", etag) else file.oid)

        return await retry(self._registry.retries, look)

    async def _text(self, file: Listed) -> str:
        return (await self._content(file)).decode("utf-8", "replace")

    async def _content(self, file: Listed) -> bytes:
        """A small file's bytes, checked. Raises SourceFailed when they are others, or cannot be checked."""
        if not file.sha256 and not file.oid:
            file = await self._linked(file)
        if file.size > _SMALL or not (file.sha256 or file.oid):
            raise SourceFailed(f"{self._registry.host} gives no digest for {file.path}, so it cannot be checked; choose another file")
        content = await retry(self._registry.retries, lambda: self._read(file.path))
        header = f"blob {len(content)}\0".encode()
        got = hashlib.sha256(content).hexdigest() if file.sha256 else hashlib.sha1(header + content, usedforsecurity=False).hexdigest()
        if got != (want := file.sha256 or file.oid):
            raise SourceFailed(f"digest mismatch, {file.path} must be downloaded again: want {want}, got {got}; pull once more")
        return content

    async def _read(self, path: str) -> bytes:
        async with self._registry.request("GET", self._resolved(path)) as answer:
            if answer.status in (401, 403):
                raise self._refusal()
            if answer.status != 200:
                raise SourceFailed(f"{self._registry.host} answered {answer.status} for {path}; try again later")
            return await answer.read(_SMALL + 1)
