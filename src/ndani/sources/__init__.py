"""Where models come from. This is the room's door: what a source promises, and which sources a name has.

A source says what a model is made of (`plan`) and hands over its bytes (`open`); `pull` does the rest, the same for
all of them. Everything here but `fetcher` runs in the fetcher, a child process: the front never dials out. To add a
source, copy `pypi.py` or `registry.py`; `push` is the way back; `http` is the only file with an outbound client.
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


#: The names that Hugging Face answers to.
HUBS = ("hf.co", "huggingface.co")


class File(msgspec.Struct, frozen=True):
    """A file as its source has it: the project it belongs to, its name there, its bytes by digest (hex) and count."""

    project: str
    name: str
    sha256: str
    size: int


class Part(msgspec.Struct, frozen=True):
    """A run of `packed` bytes of a file, from `at` on, that unpack to `size` bytes with this digest (hex).

    A layer is one part, or several joined in order. `deflated` bytes are raw deflate, others are as they will lie.
    """

    file: File
    at: int
    packed: int
    size: int
    sha256: str
    deflated: bool = False


@dataclass(frozen=True, slots=True)
class PlannedLayer:
    """One blob of a model: its bytes are known already (`content`), or come in `parts`, or are `made` here.

    `made` names the files of a checkpoint, each a blob that comes in parts, that this one is converted from.
    """

    media_type: str
    digest: str
    size: int
    parts: tuple[Part, ...] = ()
    content: bytes | None = None
    made: tuple[tuple[str, PlannedLayer], ...] = ()

    @property
    def ingredients(self) -> tuple[PlannedLayer, ...]:
        """The blobs that are needed only to make it."""
        return tuple(layer for _, layer in self.made)

    @property
    def packed(self) -> int:
        """Bytes that travel for it."""
        return sum(part.packed for part in self.parts)

    @property
    def deflated(self) -> bool:
        return any(part.deflated for part in self.parts)


@dataclass(frozen=True, slots=True)
class Assembly:
    """What files become when they have come: digests by file name, and what a model of them is to be given besides.

    One GGUF file is the weights as it is; several are shards of one, to be joined; any others are to be converted.
    """

    files: Mapping[str, str]
    template: str = ""
    system: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    licenses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PullPlan:
    """What a pull will do: bring these blobs, and then write this manifest under the name asked for.

    Where a source has files and no manifest, `assembly` says how one is made of them (`sources.assemble`).
    """

    manifest: bytes
    layers: tuple[PlannedLayer, ...]
    assembly: Assembly | None = None


class Source(Protocol):
    """A place that models come from."""

    async def plan(self) -> PullPlan:
        """What the model is made of. Raises NotFound, SourceFailed, Offline."""
        ...

    def open(self, part: Part, start: int) -> AsyncGenerator[bytes, None]:
        """The packed bytes of a part from `start` on. Consume it under aclosing.

        Raises Interrupted (`sources.http`) when trying again may help, else NotFound, SourceFailed or Offline.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


@runtime_checkable
class Surveyed(Source, Protocol):
    """A source that has to look through its files before it can plan, which may take as long as reading them."""

    async def survey(self, report: Report) -> None:
        """Look, step by step. Raises as `plan`."""
        ...


def choose(
    name: Name,
    offline: bool,
    catalogue: Path | None = None,
    *,
    insecure: bool = False,
    house: str = "",
    folders: tuple[Path, ...] = (),
    own: Path | None = None,
    streams: int = 4,
) -> list[Source]:
    """The sources of a name, in the order to be tried.

    First the user's `folders` (but not the store at `own`). Then, for a name without a host, the registry of the `house`
    when it has one; the pins of the catalogue; the public registry, by the name as typed and as it is spelt there.
    Every other name has its own registry or hub. `insecure` lets those be asked without TLS; `streams` is how many
    pieces of a file are fetched from a registry at once. Raises Misconfigured.
    """
    from ndani.sources.catalogue import load
    from ndani.sources.families import spelt
    from ndani.sources.folder import FolderSource
    from ndani.sources.hub import HubSource
    from ndani.sources.pypi import PypiSource
    from ndani.sources.registry import RegistrySource

    found: list[Source] = [FolderSource(name, folder) for folder in folders if own is None or not _same(folder, own)]
    if name.host.lower() != DEFAULT_HOST:
        return [*found, HubSource(open_registry(name, offline=offline, insecure=insecure), at_once=streams)]
    asked = [
        RegistrySource(open_registry(other, offline=offline, insecure=insecure, house=house), at_once=streams)
        for other in (name, spelt(name))
        if other
    ]
    model = load(catalogue).find(name)
    pinned = [PypiSource(model, origin, offline) for origin in model.sources] if model else []
    if house not in ("", DEFAULT_HOST):
        return [*found, asked[0], *pinned, *asked[1:]]
    return [*found, *(pinned or asked)]


def open_registry(name: Name, *, offline: bool, insecure: bool = False, house: str = "", key: Path | None = None) -> Registry:
    """The registry of a name: its host; for a name without one, that of the `house`; for a name at Hugging Face, HF_ENDPOINT's.

    The token of HF_TOKEN is for Hugging Face, or whoever HF_ENDPOINT names in its place, and for nobody else.
    `key` is the file of this user's own key. Raises BadName when the host has no port that can be, Misconfigured.
    """
    from ndani.sources.registry import Registry
    from ndani.sources.urls import is_fetchable, without_credentials

    if not is_fetchable(f"https://{name.host}"):
        raise BadName(f"{name.host} is no host and port to pull from or push to; write it as registry.example:5000/namespace/model")

    at, token = "", ""
    if name.host.lower() == DEFAULT_HOST:
        at = house
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    if name.host.lower() in HUBS or (endpoint and name.host.lower() == endpoint.rpartition("://")[2].lower()):
        at, token = endpoint, os.environ.get("HF_TOKEN", "").strip()
        whole = at if "://" in at else f"https://{at}"
        if at and not is_fetchable(whole):
            odd = f"HF_ENDPOINT is {without_credentials(whole)!r}, which is no address"
            raise Misconfigured(f"{odd}; set it to one as in https://hub.example, or unset it")
        if "@" in urlsplit(whole).netloc:
            raise Misconfigured("HF_ENDPOINT holds a user or a password; set it to the address alone, and put those into ~/.netrc")
    return Registry(name, insecure=insecure, offline=offline, key=key or home() / "id_ed25519", at=at, token=token)


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
