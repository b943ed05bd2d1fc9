"""The steps that long work reports: of coroutines through the adapter that the HTTP edge uses, of functions as a list."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from ndani.api.edge.long_work import steps_of


class Left(BaseException):
    """Raised by a test's report function to end the work."""


def following(work: Callable[..., Any], *given: Any, **more: Any) -> aclosing[AsyncGenerator[Any]]:
    """The steps that a coroutine reports; leaving the block cancels it and waits until it has ended."""
    return aclosing(steps_of(lambda report: work(*given, report=report, **more)))


async def all_steps(work: Callable[..., Any], *given: Any, **more: Any) -> list[Any]:
    """Every step that a coroutine reports until it ends."""
    async with following(work, *given, **more) as steps:
        return [step async for step in steps]


def listed(work: Callable[..., Any], *given: Any, **more: Any) -> list[Any]:
    """The steps that a function reports, followed by its result unless that is None."""
    steps: list[Any] = []
    end = work(*given, report=steps.append, **more)
    return steps if end is None else [*steps, end]


def at_first(act: Callable[[], Any]) -> Callable[[Any], None]:
    """A report function that calls `act` at the first step."""
    acts = [act]
    return lambda step: acts.pop()() if acts else None
