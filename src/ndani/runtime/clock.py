"""The pool's clock. A protocol, so that a test can let an hour pass at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A scheduled call."""

    def cancel(self) -> None:
        """Cancel the call."""
        ...


class Clock(Protocol):
    """The time in seconds, and calls after a delay."""

    def now(self) -> float:
        """The time of a monotonic clock."""
        ...

    def wall(self) -> float:
        """The time of day, in POSIX seconds."""
        ...

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call `callback` on the event loop's thread after a delay."""
        ...

    def timeout(self, seconds: float | None) -> asyncio.Timeout:
        """A timeout as `asyncio.timeout` makes it; None: no limit."""
        ...


class SystemClock:
    """The system's clocks."""

    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        return asyncio.get_running_loop().call_later(seconds, callback)

    def timeout(self, seconds: float | None) -> asyncio.Timeout:
        return asyncio.timeout(seconds)
