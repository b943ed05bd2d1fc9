"""Several segments of one file fetched in parallel and delivered in order, as if there were one connection.

So a blob is hashed and written as it arrives, and a partial file is always the beginning of the blob: resuming needs no
list of holes. A `kill -9` loses only what had arrived ahead of its turn, a few segments at most.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from functools import partial

#: Bytes of one request, and the number of parallel requests; their product is the memory that this takes.
SEGMENT_SIZE = 8 << 20
STREAMS = 4


class Segment:
    """The bytes from `first` up to `end` of a file while they arrive. A request puts them in, one reader takes them out."""

    def __init__(self, first: int, end: int) -> None:
        self.first, self.end = first, end
        self.received = 0
        self._chunks: deque[bytes] = deque()
        self._changed = asyncio.Event()

    @property
    def next_offset(self) -> int:
        """The offset of the next missing byte."""
        return self.first + self.received

    def put(self, chunk: bytes) -> None:
        """Add a chunk; bytes past the end are dropped."""
        chunk = chunk[: self.end - self.next_offset]
        self.received += len(chunk)
        self._chunks.append(chunk)
        self._changed.set()

    def wake(self) -> None:
        """Wake the reader."""
        self._changed.set()

    async def take(self, task: asyncio.Task[None]) -> bytes | None:
        """The next chunk, or None at the end. Raises what the fetching task raised."""
        while not self._chunks:
            if task.done():
                task.result()
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._chunks.popleft()


def split(first: int, end: int, segment: int) -> Iterable[Segment]:
    """The segments from `first` up to `end`, in order."""
    return (Segment(at, min(at + segment, end)) for at in range(first, end, segment))


async def in_order(segments: Iterable[Segment], fetch: Callable[[Segment], Awaitable[None]], streams: int) -> AsyncGenerator[bytes, None]:
    """The bytes of `segments`, in order, while up to `streams` calls of `fetch` run. Callers consume it under `aclosing`.

    Raises what a `fetch` raised when the turn of its segment comes; the others are then cancelled.
    """
    remaining = iter(segments)
    running: deque[tuple[Segment, asyncio.Task[None]]] = deque()

    def start() -> None:
        for segment in remaining:
            task = asyncio.create_task(_fetch(segment, fetch))
            task.add_done_callback(partial(_wake, segment))
            running.append((segment, task))
            return

    try:
        for _ in range(streams):
            start()
        while running:
            segment, task = running[0]
            while (chunk := await segment.take(task)) is not None:
                yield chunk
            running.popleft()
            start()
    finally:
        for _, task in running:
            task.cancel()
        for _, task in running:
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await task


def _wake(segment: Segment, _: asyncio.Task[None]) -> None:
    segment.wake()


async def _fetch(segment: Segment, fetch: Callable[[Segment], Awaitable[None]]) -> None:
    await fetch(segment)
