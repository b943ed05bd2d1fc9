"""Who is in memory, seen from inside: the real pool over real runners (the echo engine)."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ndani.engines import LaunchOptions
from ndani.engines.stream import Coalescer
from ndani.errors import Busy
from ndani.ledger.log import Log
from ndani.runtime import hardware
from ndani.runtime.clock import SystemClock
from ndani.runtime.folder import runtime_folder
from ndani.runtime.pool import Pool
from ndani.runtime.runner import Runner
from ndani.runtime.spec import RunnerSpec
from ndani.settings import Settings
from ndani.types import Details
from server import slowness

pytestmark = pytest.mark.slow

ONE = RunnerSpec("one", "one", "d1", Details(), None, 100, 10, 8192, engine="echo", num_ctx=1024)
OTHER = replace(ONE, key="other", name="other", digest="d2")


@asynccontextmanager
async def pool(tmp_path: Path, **settings: Any) -> AsyncIterator[tuple[Pool, list[LaunchOptions]]]:
    """A pool at work, and how its runners were launched."""
    launched: list[LaunchOptions] = []
    with runtime_folder() as folder:

        async def spawn(options: LaunchOptions, weights: int, adapter: int, projector: int) -> Runner:
            launched.append(options)
            child = await Runner.spawn(options, -1, folder)
            await child.ready()
            return child

        broken: list[Exception] = []
        log = Log(stream=io.StringIO())
        made = Pool(Settings(models=tmp_path, **settings), spawn, Coalescer(), log, hardware.detect, SystemClock(), broken.append)
        try:
            async with asyncio.timeout(60 * slowness()):
                yield made, launched
        finally:
            await made.close()
        assert broken == []


async def hold(pool: Pool, spec: RunnerSpec, done: asyncio.Event, keep_alive: float | None = 60.0) -> RunnerSpec:
    async with pool.lease(spec, keep_alive) as lease:
        await done.wait()
        found = lease.model.spec
    await asyncio.sleep(0.005)  # the pool settles
    return found


async def granted(pool: Pool, task: asyncio.Task[RunnerSpec]) -> None:
    """Wait until nobody waits any more: this one, too, has its slot."""
    while pool.waiting and not task.done():
        await asyncio.sleep(0.005)
    if task.done():
        task.result()


async def loading(launched: list[LaunchOptions], count: int) -> None:
    while len(launched) < count:
        await asyncio.sleep(0)


async def test_whose_slot_is_coming_does_not_count_as_waiting(tmp_path: Path) -> None:
    async with pool(tmp_path, max_queue=0, num_parallel=2) as (owned, launched):
        done = asyncio.Event()
        first = asyncio.create_task(hold(owned, ONE, done))
        await loading(launched, 1)
        second = asyncio.create_task(hold(owned, ONE, done))
        await asyncio.sleep(0)
        with pytest.raises(Busy):  # the two slots that are coming are taken: this one would really wait
            async with owned.lease(ONE, 0.0):
                pass
        await granted(owned, second)
        with pytest.raises(Busy):
            async with owned.lease(ONE, 0.0):
                pass
        done.set()
        assert await first == await second == ONE
        assert len(launched) == 1


async def test_whose_model_has_a_free_slot_does_not_stand_in_anothers_queue(tmp_path: Path) -> None:
    async with pool(tmp_path, max_queue=0, num_parallel=2) as (owned, launched):
        done, over = asyncio.Event(), asyncio.Event()
        over.set()
        busy = asyncio.create_task(hold(owned, OTHER, done))
        await loading(launched, 1)
        await granted(owned, busy)
        both = [asyncio.create_task(hold(owned, ONE, done)) for _ in range(2)]
        await loading(launched, 2)
        assert owned.waiting == 2
        with pytest.raises(Busy):
            await hold(owned, ONE, done)
        assert await hold(owned, OTHER, over) == OTHER
        done.set()
        await asyncio.gather(busy, *both)


async def test_a_model_that_is_being_replaced_has_slots_coming(tmp_path: Path) -> None:
    async with pool(tmp_path, max_queue=0, num_parallel=2) as (owned, launched):
        over = asyncio.Event()
        over.set()
        await hold(owned, ONE, over)
        bigger = asyncio.create_task(hold(owned, replace(ONE, num_ctx=2048), over))
        while not owned.residents()[0].stopping:
            await asyncio.sleep(0)
        await hold(owned, ONE, over)
        await bigger
        assert [launch.num_ctx for launch in launched] == [1024, 2048]


async def test_a_keep_alive_that_runs_out_in_the_tick_of_a_request_does_not_unload(tmp_path: Path) -> None:
    async with pool(tmp_path) as (owned, launched):
        over = asyncio.Event()
        over.set()
        await hold(owned, ONE, over, 0.2)
        while owned.residents()[0].expires is None:
            await asyncio.sleep(0)
        asked = asyncio.create_task(hold(owned, ONE, over, 0.2))
        time.sleep(0.3)  # the loop stands still: the request and the end of the keep-alive are read together
        assert await asked == ONE
        assert len(launched) == 1
        while owned.residents():
            await asyncio.sleep(0.01)


async def test_a_reload_whose_asker_left_leaves_nothing_for_later(tmp_path: Path) -> None:
    async with pool(tmp_path, num_thread=1) as (owned, launched):
        over = asyncio.Event()
        over.set()
        await hold(owned, replace(ONE, num_thread=3), over)
        asked = asyncio.create_task(hold(owned, replace(ONE, num_ctx=4096), over))
        while not owned.residents()[0].stopping:
            await asyncio.sleep(0)
        asked.cancel()
        while owned.residents():
            await asyncio.sleep(0.005)
        await hold(owned, replace(ONE, num_ctx=512), over)
        assert [(launch.num_ctx, launch.num_thread) for launch in launched] == [(1024, 3), (512, 1)]
        # What was asked for does outlive a reload that somebody waited for.
        await hold(owned, replace(ONE, num_ctx=512, num_thread=2), over)
        await hold(owned, ONE, over)
        assert [(launch.num_ctx, launch.num_thread) for launch in launched[2:]] == [(512, 2), (1024, 2)]


async def test_the_model_that_stays_longest_is_the_one_to_probe_and_stays_as_long(tmp_path: Path) -> None:
    async with pool(tmp_path) as (owned, _):
        over = asyncio.Event()
        over.set()
        assert owned.last_to_expire() is None
        await hold(owned, ONE, over, 60.0)
        await hold(owned, OTHER, over, -1.0)
        assert owned.last_to_expire() == OTHER
        await hold(owned, OTHER, over, None)
        await asyncio.sleep(0)
        assert [(r.name, r.expires is None) for r in owned.residents()] == [("other", True), ("one", False)]
        await hold(owned, ONE, over, 30.0)
        await hold(owned, OTHER, over, 10.0)
        assert owned.last_to_expire() == ONE
