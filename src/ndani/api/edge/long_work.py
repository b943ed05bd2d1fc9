"""Long work as an answer: a line for each step that it reports, or the last step alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.responses import Response

from ndani.api.edge.json_response import JSON, encode
from ndani.api.edge.streaming import Lines
from ndani.store.threads import Backlog, wait_until_done
from ndani.types import Progress

Step = TypeVar("Step")

#: What lasts, and says to the function that it is given how far it is.
Work = Callable[[Callable[[Step], None]], Coroutine[Any, Any, None]]


async def respond(work: Work[Step], stream: bool, line: Callable[[Step], bytes]) -> Response:
    """The response to long work. Its first step is awaited here: what fails before it has its own status."""
    steps = steps_of(work)
    try:
        step = await anext(steps)
        if stream:
            return Lines(line(step), steps, line)
        async for later in steps:
            step = later
        return Response(line(step)[:-1], 200, None, JSON)
    except BaseException:
        await steps.aclose()
        raise


async def steps_of(work: Work[Step]) -> AsyncGenerator[Step]:
    """Do `work` as a task: what it reports, then what it raises.

    Consume it under aclosing: closing it cancels the task, and waits for its end. The task does not wait for a slow
    reader, who misses numbers then, never a status.
    """
    backlog: Backlog[Step] = Backlog()
    changed = asyncio.Event()

    def report(step: Step) -> None:
        backlog.add(step)
        changed.set()

    task = asyncio.create_task(work(report))
    task.add_done_callback(lambda _: changed.set())
    try:
        done = False
        while not done:
            await changed.wait()
            changed.clear()
            done = task.done()  # asked first: then everything that it has reported is in the backlog
            for step in backlog.drain():
                yield step
        task.result()
    finally:
        task.cancel()
        await wait_until_done(task)


def step_line(step: Progress) -> bytes:
    """A line for a step of a pull, a push or a create."""
    fields = {"status": step.status, "digest": step.digest, "total": step.total, "completed": step.completed}
    return encode({key: value for key, value in fields.items() if value is not None}) + b"\n"
