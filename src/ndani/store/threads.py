"""Work beside the event loop: done in threads, never left behind by it, and what it reports brought back in order.

Who works, and on what, is not known here.
"""

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

#: Steps that may wait before any of them is replaced by a newer one.
_KEPT = 16


class Backlog(Generic[Step]):
    """Steps that were reported and not yet read, in order; any thread may add to it.

    Who reads as fast as they come gets every one. Where many wait, one that only counts further takes the place of the
    one before it: so what waits is bounded by how many different steps the work has, and the last of each arrives.
    """

    def __init__(self) -> None:
        self._steps: deque[Step] = deque()
        self._lock = Lock()

    def add(self, step: Step) -> bool:
        """Put it behind the others; whether it is the only one."""
        with self._lock:
            if len(self._steps) >= _KEPT and _counts_further(self._steps[-1], step):
                self._steps.pop()
            self._steps.append(step)
            return len(self._steps) == 1

    def drain(self) -> Iterator[Step]:
        """Take out what waits, one after the other, until nothing does."""
        while True:
            with self._lock:
                if not self._steps:
                    return
                step = self._steps.popleft()
            yield step


def _counts_further(old: object, new: object) -> bool:
    if not isinstance(old, Progress) or not isinstance(new, Progress) or None in (old.completed, new.completed):
        return False
    return (old.status, old.digest) == (new.status, new.digest)


class _Stopped(BaseException):
    """Ends work in a thread at its next report. Like a GeneratorExit it is no Exception, so that no handler takes it for one."""


async def run_in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do `work` in a thread. Cancelled, it waits for the thread first: what comes after may then clean up in peace."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await wait_until_done(task)
        raise


async def run_in_thread_reporting(work: Callable[[Callable[[Step], None]], T], report: Callable[[Step], None]) -> T:
    """Do `work(report)` in a thread of its own, for it may last; here, in the loop, `report` is called with what it reports.

    Cancelled, or when `report` raises, `work` is stopped at its next report, and waited for.
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
            await changed.wait()
            changed.clear()
            done = task.done()  # asked first: then everything that it has reported is in the backlog
            for step in backlog.drain():
                report(step)
        return task.result()
    except BaseException:
        stopped.set()
        await wait_until_done(task)
        raise


async def wait_until_done(task: asyncio.Future[Any]) -> None:
    """Wait until it has ended, whatever comes of it, and however often this is cancelled meanwhile; only then say that it was.

    A web server's task group cancels again and again until its tasks have left.
    """
    cancelled = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if not task.cancelled():
        task.exception()  # seen: nobody is there to be told
    if cancelled:
        raise cancelled
