"""Runs blocking work in threads beside the event loop: the loop waits for its end, and its progress reports arrive in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock
from typing import Any, Generic, ParamSpec, TypeVar

from ndani.types import Progress

P = ParamSpec("P")
T = TypeVar("T")
Step = TypeVar("Step")

#: Unread steps from which on a newer step may replace the last one.
_MAX_UNMERGED = 16


class Backlog(Generic[Step]):
    """Progress steps that are reported and not yet read, in order; any thread may add to it.

    A fast reader gets every step. For a slow one, a step that only raises the count of the last one replaces it. So the
    number of unread steps is bounded by the number of different steps, and the last of each always arrives.
    """

    def __init__(self) -> None:
        self._steps: deque[Step] = deque()
        self._lock = Lock()

    def add(self, step: Step) -> bool:
        """Append a step. True if it is now the only one."""
        with self._lock:
            if len(self._steps) >= _MAX_UNMERGED and _only_advances(self._steps[-1], step):
                self._steps.pop()
            self._steps.append(step)
            return len(self._steps) == 1

    def drain(self) -> Iterator[Step]:
        """Remove and yield the steps until none is left."""
        while True:
            with self._lock:
                if not self._steps:
                    return
                step = self._steps.popleft()
            yield step


def _only_advances(old: object, new: object) -> bool:
    if not isinstance(old, Progress) or not isinstance(new, Progress) or None in (old.completed, new.completed):
        return False
    return (old.status, old.digest) == (new.status, new.digest)


class _Stopped(BaseException):
    """Ends work in a thread at its next report. A BaseException, like GeneratorExit, so that no `except Exception` catches it."""


async def run_in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work` in a thread. When cancelled, waits for the thread first, so that the caller can clean up safely."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await wait_until_done(task)
        raise


async def run_in_thread_reporting(work: Callable[[Callable[[Step], None]], T], report: Callable[[Step], None]) -> T:
    """Run `work(report)` in a separate thread, as it may take long. Each step that it reports goes to `report`, in the event loop.

    On cancellation, or when `report` raises, `work` is stopped at its next report, and waited for.
    """
    loop, changed, stopped = asyncio.get_running_loop(), asyncio.Event(), Event()
    backlog: Backlog[Step] = Backlog()

    def report_from_thread(step: Step) -> None:
        if stopped.is_set():
            raise _Stopped
        if backlog.add(step):
            loop.call_soon_threadsafe(changed.set)

    executor = ThreadPoolExecutor(1, "reporting")
    task = loop.run_in_executor(executor, work, report_from_thread)
    executor.shutdown(wait=False)
    task.add_done_callback(lambda _: changed.set())
    try:
        done = False
        while not done:
            done = await is_done_after_change(task, changed)
            for step in backlog.drain():
                report(step)
        return task.result()
    except BaseException:
        stopped.set()
        await wait_until_done(task)
        raise


async def is_done_after_change(task: asyncio.Future[Any], changed: asyncio.Event) -> bool:
    """Wait for `changed`, and tell whether the task had ended by then: if so, all its steps are in its backlog already."""
    await changed.wait()
    changed.clear()
    return task.done()


async def wait_until_done(task: asyncio.Future[Any]) -> None:
    """Wait for the task's end, whatever its result. A cancellation in the meantime, or several, is raised only then.

    A web server's task group cancels repeatedly until its tasks have ended.
    """
    cancelled = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if not task.cancelled():
        task.exception()  # marks it as retrieved, so that asyncio does not log it
    if cancelled:
        raise cancelled
