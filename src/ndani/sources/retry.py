"""Retries: how many, with which delays, and when to give up. The same for a pull and for a push."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from ndani.errors import SourceFailed
from ndani.sources.http import Interrupted

T = TypeVar("T")

#: A longer Retry-After (seconds) is not waited for: the error tells the user to try again then.
MAX_RETRY_AFTER_S = 120.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How many tries in a row may fail without progress, and how long the first delay is (seconds)."""

    tries: int = 5
    first_delay: float = 0.5
    poll_interval: float = 0.1  # seconds between two checks of another process's progress

    def delay(self, error: Interrupted, failures: int, *, verb: str = "pull") -> float:
        """Seconds to wait after so many tries in a row without progress. Raises SourceFailed when no further try is due.

        `verb` is the user's command that resumes where this one stopped; "" when there is nothing to resume.
        """
        if error.retry_after is not None and error.retry_after > MAX_RETRY_AFTER_S:
            raise SourceFailed(f"{error}; it asks to be left alone for {error.retry_after:.0f} seconds: try again then") from None
        if failures >= self.tries:
            advice = f"{verb} again when it can be reached: it goes on where it stopped" if verb else "try again when it can be reached"
            raise SourceFailed(f"{error}; {advice}") from None
        return error.retry_after if error.retry_after is not None else self.first_delay * 2**failures


async def retry(
    policy: RetryPolicy, attempt: Callable[[], Awaitable[T]], progress: Callable[[], int] | None = None, *, verb: str = "pull"
) -> T:
    """Repeat an attempt until it succeeds. Progress (a larger `progress()`) resets the count of failures.

    Raises SourceFailed when `policy` is exhausted, and every error but Interrupted at once.
    """
    failures = 0
    while True:
        before = progress() if progress else 0
        try:
            return await attempt()
        except Interrupted as error:
            failures = 0 if progress and progress() > before else failures + 1
            delay = policy.delay(error, failures, verb=verb if progress else "")
        await asyncio.sleep(delay)
