"""`ndani serve` with a ticker on its event loop: run as a program it is the server, imported it asks for the longest pause.

A pause is what the whole process computes between two ticks: other programs on the machine do not count, and a thread
that keeps the interpreter to itself does.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from server import until

_PLACE = "PAUSES_OF_THE_LOOP"


class Pauses:
    """The longest pause so far and the number of ticks, in a file that two processes share."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 16)

    @property
    def longest(self) -> float:
        """Seconds."""
        return float(struct.unpack("d", self._shared[:8])[0])

    @longest.setter
    def longest(self, seconds: float) -> None:
        self._shared[:8] = struct.pack("d", seconds)

    @property
    def ticks(self) -> int:
        """How many there were."""
        return int(struct.unpack("q", self._shared[8:])[0])

    def tick(self) -> None:
        """One more."""
        self._shared[8:] = struct.pack("q", self.ticks + 1)

    def of(self, act: Callable[[], object], tries: int = 3) -> float:
        """The longest pause that comes with an act each time it is tried."""
        found = []
        for _ in range(tries):
            self.longest = 0.0
            act()
            seen = self.ticks  # an answer may come before the tick that follows on it
            until(lambda seen=seen: self.ticks > seen + 2, "the loop goes on")  # type: ignore[misc]
            found.append(self.longest)
        return min(found)


@contextmanager
def watched(folder: Path) -> Iterator[tuple[Pauses, dict[str, str]]]:
    """The pauses of a server that is started with this environment and this file as its program."""
    path = folder / "pauses"
    path.write_bytes(bytes(16))
    yield Pauses(path), {_PLACE: str(path)}


def main() -> int:
    """Serve, and tick."""
    from ndani import settings
    from ndani.api import server

    pauses, make = Pauses(Path(os.environ[_PLACE])), server._loop_factory()
    assert make

    def ticking() -> asyncio.AbstractEventLoop:
        loop = make()
        last = time.process_time()

        def tick() -> None:
            nonlocal last
            now = time.process_time()
            if now - last > pauses.longest:
                pauses.longest = now - last
            last = now
            pauses.tick()
            loop.call_later(0.001, tick)

        loop.call_soon(tick)
        return loop

    server._loop_factory = lambda: ticking
    return server.serve(settings.load())


if __name__ == "__main__":
    sys.exit(main())
