"""Steps of long work on their way to who reads them: in order, bounded behind a slow reader, and ended with whoever leaves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ndani.api.edge.long_work import steps_of
from ndani.background import Backlog, run_in_thread_reporting
from ndani.errors import BadRequest
from ndani.types import Progress, Report
from steps import Left, all_steps, following

MANY = 10_000


def pulling(digest: str, completed: int) -> Progress:
    return Progress("pulling", digest, MANY, completed)


async def test_a_slow_reader_misses_numbers_and_neither_a_step_nor_the_last_of_any() -> None:
    async def work(report: Report) -> None:
        report(Progress("pulling manifest"))
        for digest in ("a", "b", "c"):
            for completed in range(MANY + 1):
                report(pulling(digest, completed))
        for _ in range(50):
            report(Progress("parsing GGUF"))  # one for each file, and no number that grows
        report(Progress("success"))

    steps = await all_steps(work)
    assert (steps[0].status, steps[-1].status) == ("pulling manifest", "success")
    assert len(steps) < 100
    assert [step.digest for step in steps if step.completed == MANY] == ["a", "b", "c"]
    numbers = [("abc".index(step.digest), step.completed) for step in steps if step.digest]
    assert numbers == sorted(numbers)
    assert sum(step.status == "parsing GGUF" for step in steps) == 50


def test_who_keeps_up_gets_every_step() -> None:
    backlog: Backlog[Progress] = Backlog()
    found = []
    for completed in range(100):
        assert backlog.add(pulling("a", completed))
        found += backlog.drain()
    assert [step.completed for step in found] == list(range(100))


async def test_the_work_does_not_wait_for_its_reader() -> None:
    done = asyncio.Event()

    async def work(report: Report) -> None:
        for completed in range(100):
            report(pulling("a", completed))
            await asyncio.sleep(0)
        done.set()

    async with following(work) as steps:
        first = await anext(steps)
        await asyncio.wait_for(done.wait(), 60)
        rest = [step async for step in steps]
    assert first.completed == 0
    assert rest[-1].completed == 99
    assert len(rest) < 50


async def test_what_fails_is_raised_behind_what_was_reported() -> None:
    async def work(report: Report) -> None:
        report(Progress("one"))
        report(Progress("two"))
        raise BadRequest("wrong")

    found = []
    with pytest.raises(BadRequest, match=r"^wrong$"):
        async with following(work) as steps:
            async for step in steps:
                found.append(step.status)
    assert found == ["one", "two"]


@pytest.mark.parametrize("cancels", [0, 3])
async def test_who_leaves_ends_the_work_and_waits_for_its_end(cancels: int) -> None:
    go, cleaned = asyncio.Event(), []

    async def work(report: Report) -> None:
        try:
            report(Progress("working"))
            await asyncio.sleep(600)
        finally:
            await go.wait()
            cleaned.append("cleaned")

    async def read() -> None:
        async with following(work) as steps:
            await anext(steps)
            if cancels:
                await anext(steps)

    reading = asyncio.create_task(read())
    await asyncio.sleep(0.05)
    for _ in range(cancels):  # a task group cancels again until its tasks have left
        reading.cancel()
        await asyncio.sleep(0.02)
    assert not reading.done()
    assert not cleaned
    go.set()
    if cancels:
        with pytest.raises(asyncio.CancelledError):
            await reading
    else:
        await reading
    assert cleaned == ["cleaned"]


async def test_a_reader_that_is_cancelled_while_it_leaves_is_cancelled_after_all() -> None:
    """Or a client that hung up would be taken for a fault of ours."""
    go = asyncio.Event()

    async def work(report: Report) -> None:
        try:
            report(Progress("working"))
            await asyncio.sleep(600)
        finally:
            await go.wait()

    async def read() -> None:
        steps = steps_of(work)
        await anext(steps)
        try:
            raise ConnectionResetError
        finally:
            await steps.aclose()

    reading = asyncio.create_task(read())
    await asyncio.sleep(0.05)
    reading.cancel()
    await asyncio.sleep(0.02)
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await reading


class Walk:
    """Work for a thread that reports without end, and has something to clean up."""

    def __init__(self) -> None:
        self.first, self.held, self.thread = threading.Event(), True, 0

    def __call__(self, report: Callable[[Any], None]) -> None:
        self.thread = threading.get_ident()
        try:
            for completed in range(1 << 40):
                report(pulling("a", completed))
                self.first.set()
        finally:
            self.held = False


async def test_a_threads_reports_come_in_the_loop_and_in_order() -> None:
    here, found = threading.get_ident(), []

    def work(report: Report) -> str:
        for completed in range(MANY + 1):
            report(pulling("a", completed))
        report(Progress("done"))
        return "end"

    def report(step: Progress) -> None:
        assert threading.get_ident() == here
        found.append(step)

    assert await run_in_thread_reporting(work, report) == "end"
    assert found[-1].status == "done"
    assert found[-2].completed == MANY
    assert [step.completed for step in found[:-1]] == sorted(step.completed or 0 for step in found[:-1])


async def test_a_thread_is_stopped_at_its_next_report_and_waited_for() -> None:
    walk = Walk()
    task = asyncio.create_task(run_in_thread_reporting(walk, lambda step: None))
    await asyncio.to_thread(walk.first.wait, 60)
    assert walk.held
    assert walk.thread != threading.get_ident()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not walk.held


async def test_a_report_that_fails_stops_the_thread() -> None:
    walk = Walk()

    def leave(step: Progress) -> None:
        raise Left

    with pytest.raises(Left):
        await run_in_thread_reporting(walk, leave)
    assert not walk.held


@pytest.mark.slow
async def test_work_that_lasts_takes_no_thread_from_others() -> None:
    """Those that everybody's short work is done in are few: as many long ones would hold up the server."""
    walks = [Walk() for _ in range(40)]
    tasks = [asyncio.create_task(run_in_thread_reporting(walk, lambda step: None)) for walk in walks[:3]]
    stuck = threading.Event()
    tasks += [asyncio.create_task(run_in_thread_reporting(lambda report: stuck.wait(60), lambda step: None)) for _ in walks[3:]]
    async with asyncio.timeout(60):
        assert await asyncio.to_thread(lambda: "done") == "done"
    stuck.set()
    for task in tasks[:3]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not any(walk.held for walk in walks[:3])
