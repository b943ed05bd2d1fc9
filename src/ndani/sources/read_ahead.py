"""Several pieces of one file fetched at once, handed over in order: the disk sees one growing file, as with one connection.

So a blob is hashed and written as it comes, and a partial file is always a beginning: it needs no list of holes to be
resumed. What is lost by a `kill -9` is what had come ahead of its turn, a few pieces at most.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from functools import partial

#: How much one request asks for, and how many are on their way at once; their product is the memory this takes.
SEGMENT_SIZE = 8 << 20
STREAMS = 4


class Segment:
    """The bytes from `first` up to `end` of a file, on their way. Fetchers `put` them, one reader takes them out."""

    def __init__(self, first: int, end: int) -> None:
        self.first, self.end = first, end
        self.received = 0
        self._chunks: deque[bytes] = deque()
        self._changed = asyncio.Event()

    @property
    def next_offset(self) -> int:
        """The place of the next byte that is missing."""
        return self.first + self.received

    def put(self, chunk: bytes) -> None:
        """Take more of it; bytes past the end are dropped."""
        chunk = chunk[: self.end - self.next_offset]
        self.received += len(chunk)
        self._chunks.append(chunk)
        self._changed.set()

    def wake(self) -> None:
        """Have the reader look again."""
        self._changed.set()

    async def take(self, task: asyncio.Task[None]) -> bytes | None:
        """What has come since, or None at the end. Raises what the fetching task raised."""
        while not self._chunks:
            if task.done():
                task.result()
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._chunks.popleft()


def split(first: int, end: int, segment: int) -> Iterable[Segment]:
    """The pieces of a stretch, in order."""
    return (Segment(at, min(at + segment, end)) for at in range(first, end, segment))


async def in_order(segments: Iterable[Segment], fetch: Callable[[Segment], Awaitable[None]], streams: int) -> AsyncGenerator[bytes, None]:
    """The bytes of `pieces`, in order, while `fetch` brings up to `at_once` of them. Consume it under aclosing.

    Raises what `fetch` raises, when its piece's turn comes; the others are then ended.
    """
    rest = iter(segments)
    running: deque[tuple[Segment, asyncio.Task[None]]] = deque()

    def start() -> None:
        for segment in rest:
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
