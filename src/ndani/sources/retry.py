"""Trying again: how often, with what pauses, and when to give up. The same for a pull and for a push."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from ndani.errors import SourceFailed
from ndani.sources.http import Interrupted

T = TypeVar("T")

#: A pause that the other side asks for and that is longer than this (seconds) is the user's to wait for.
LONGEST = 120.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a broken transfer is taken up again without a byte having come, and how long the first pause is (s)."""

    tries: int = 5
    pause: float = 0.5
    poll: float = 0.1  # between two looks at another process's progress

    def delay(self, error: Interrupted, failures: int, *, goes_on: str = "pull") -> float:
        """Seconds to wait after so many tries in a row that brought nothing. Raises SourceFailed where no further try is due.

        `goes_on`: what the next one of goes on from where this one stopped; nothing where there is no beginning.
        """
        if error.retry_after is not None and error.retry_after > LONGEST:
            raise SourceFailed(f"{error}; it asks to be left alone for {error.retry_after:.0f} seconds: try again then") from None
        if failures >= self.tries:
            then = f"{goes_on} again when it can be reached: it goes on where it stopped" if goes_on else "try again when it can be reached"
            raise SourceFailed(f"{error}; {then}") from None
        return error.retry_after if error.retry_after is not None else self.pause * 2**failures


async def retry(
    policy: RetryPolicy, attempt: Callable[[], Awaitable[T]], progress: Callable[[], int] | None = None, *, verb: str = "pull"
) -> T:
    """Make an attempt until it succeeds; one that moved `progress` on, where there is such a thing, was not in vain.

    Raises SourceFailed when `policy` is exhausted, and everything but Interrupted at once.
    """
    failures = 0
    count = progress or int
    while True:
        before = count()
        try:
            return await attempt()
        except Interrupted as error:
            failures = 0 if count() > before else failures + 1
            pause = policy.delay(error, failures, goes_on=verb if progress else "")
        await asyncio.sleep(pause)
