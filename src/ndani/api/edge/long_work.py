"""Long work (pull, push, create, verify, …) as a response: a line for each step that it reports, or the last step alone.

Answers of a model are in `streaming`. The route says how a step is written; each is one JSON value on a line (NDJSON).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.responses import Response

from ndani.api.edge.faults import ErrorFormat
from ndani.api.edge.json_response import JSON
from ndani.api.edge.media_types import NDJSON
from ndani.api.edge.streaming import StreamedResponse
from ndani.background import Backlog, is_done_after_change, wait_until_done

Step = TypeVar("Step")

#: A coroutine function that takes a callback and calls it with each step.
Work = Callable[[Callable[[Step], None]], Coroutine[Any, Any, None]]


async def respond(work: Work[Step], stream: bool, format_step: Callable[[Step], bytes], error_format: ErrorFormat) -> Response:
    """The response to long work. Its first step is awaited here, so that what fails before it has its own status.

    `format_step` returns the JSON of a step, without a line end.
    """
    steps = steps_of(work)
    try:
        step = await anext(steps)
        if stream:
            return StreamedResponse(step, steps, lambda step: format_step(step) + b"\n", NDJSON, error_format)
        async for later in steps:
            step = later
        return Response(format_step(step), 200, None, JSON)
    except BaseException:
        await steps.aclose()
        raise


async def steps_of(work: Work[Step]) -> AsyncGenerator[Step]:
    """Run `work` as a task: yield what it reports, then raise what it raises.

    Consume it under aclosing: closing it cancels the task and waits for its end. The task does not wait for a slow reader,
    who then misses some progress numbers, but never a status.
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
            done = await is_done_after_change(task, changed)
            for step in backlog.drain():
                yield step
        task.result()
    finally:
        task.cancel()
        await wait_until_done(task)
