"""Work on the disk beside the event loop, and never left behind by it. Who works, and on what, is not known here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Generator
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do `work` in a thread. Cancelled, it waits for the thread first: what comes after may then clean up in peace.

    However often it is cancelled: a web server's task group says it again and again until its tasks have left.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen: nobody is there to be told
        raise


async def stepped(work: Generator[T]) -> AsyncGenerator[T]:
    """The steps of `work`, each made in a thread. Consume it under aclosing: closing it closes `work`, once its thread is out of it."""
    try:
        while (step := await in_thread(next, work, None)) is not None:
            yield step
    finally:
        await in_thread(work.close)
