"""The time that the pool goes by. A protocol, so that a test can let an hour pass at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call that is still to come."""

    def cancel(self) -> None:
        """Make it not come."""
        ...


class Clock(Protocol):
    """Seconds, and what happens after so many of them."""

    def now(self) -> float:
        """This moment, on a clock that nobody sets."""
        ...

    def wall(self) -> float:
        """This moment, in POSIX seconds."""
        ...

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call back on the event loop's thread."""
        ...

    def timeout(self, seconds: float | None) -> asyncio.Timeout:
        """What `asyncio.timeout` gives; None: no limit."""
        ...


class SystemClock:
    """The machine's own time."""

    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        return asyncio.get_running_loop().call_later(seconds, callback)

    def timeout(self, seconds: float | None) -> asyncio.Timeout:
        return asyncio.timeout(seconds)
