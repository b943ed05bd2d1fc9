"""A pool whose runners, memory and clock a test controls: no process is started, and no time passes by itself."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from ndani.engines import LaunchOptions
from ndani.engines.stream import Coalescer
from ndani.errors import NdaniError
from ndani.jail import Confinement
from ndani.ledger.log import Log
from ndani.runtime.clock import Timer
from ndani.runtime.hardware import Hardware
from ndani.runtime.pool import Pool
from ndani.runtime.residence import Lease
from ndani.runtime.spec import RunnerSpec
from ndani.settings import Settings
from ndani.types import Details

ONE = RunnerSpec("one", "one", "d1", Details(), None, 10**8, 10**4, 8192, engine="echo", num_ctx=1024)
OTHER = replace(ONE, key="other", name="other", digest="d2")
THIRD = replace(ONE, key="third", name="third", digest="d3")
MORE = replace(ONE, num_ctx=2000)
PLENTY = 10**12


async def turns(count: int = 12) -> None:
    """Let every task run until none has anything left to do."""
    for _ in range(count):
        await asyncio.sleep(0)


class FakeClock:
    """A clock that stands still until `advance` is called."""

    def __init__(self) -> None:
        self.time = 1000.0
        self._timers: list[tuple[float, FakeTimer]] = []

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.time + 1e9

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        timer = FakeTimer(callback)
        self._timers.append((self.time + seconds, timer))
        return timer

    def timeout(self, seconds: float | None) -> asyncio.Timeout:
        limit = asyncio.timeout(None)

        def end() -> None:
            with contextlib.suppress(RuntimeError):  # the limited block has ended before
                limit.reschedule(0)

        if seconds is not None:
            self.call_later(seconds, end)
        return limit

    def advance(self, seconds: float) -> None:
        self.time += seconds
        due = [timer for at, timer in self._timers if at <= self.time]
        self._timers = [(at, timer) for at, timer in self._timers if at > self.time]
        for timer in due:
            timer.fire()


class FakeTimer:
    def __init__(self, callback: Callable[[], object]) -> None:
        self._callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self._callback = None

    def fire(self) -> None:
        if self._callback:
            self._callback()


class FakeRunner:
    """A runner without a process. `exit` stands for the end of the process, after `stop` or by itself."""

    def __init__(self, pid: int, launch: LaunchOptions, quick: bool) -> None:
        self.pid = pid
        self.socket = f"/run/{pid}.sock"
        self.without_template = False
        self.media_marker = ""
        self.confinement = Confinement()
        self.exited = asyncio.Event()
        self.launch = launch
        self.told = 0
        self._quick = quick

    async def stop(self) -> None:
        self.told += 1
        if self._quick:
            self.exit()
        await self.exited.wait()

    def exit(self) -> None:
        self.exited.set()


class Load:
    """A load under way: the test lets it `succeed` or `fail`."""

    def __init__(self, launch: LaunchOptions, weights: int, adapter: int, projector: int) -> None:
        self.launch = launch
        self.weights = weights
        self.adapter = adapter
        self.projector = projector
        self.result: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def succeed(self) -> None:
        self.result.set_result(None)

    def fail(self, error: Exception) -> None:
        self.result.set_exception(error)


class Client:
    """A client that asks for a slot and keeps it until `done`."""

    def __init__(self, bench: Bench, spec: RunnerSpec, keep_alive: float | None) -> None:
        self.lease: Lease | None = None
        self.error: NdaniError | None = None
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._bench = bench
        self.task = asyncio.create_task(self._run(spec, keep_alive))

    async def _run(self, spec: RunnerSpec, keep_alive: float | None) -> None:
        try:
            async with self._bench.pool.lease(spec, keep_alive) as self.lease:
                self._bench.served.append(self)
                await self._over
        except NdaniError as error:
            self.error = error

    @property
    def waits(self) -> bool:
        return self.lease is None and not self.task.done()

    async def done(self) -> None:
        self._over.set_result(None)
        await turns()

    async def broken(self, error: Exception) -> None:
        self._over.set_exception(error)
        await turns()

    async def leave(self) -> None:
        self.task.cancel()
        await turns()


class Bench:
    """A pool and what it depends on. `quick`: runners stop at once when told to; `ready`: loads succeed at once."""

    def __init__(self, *, quick: bool = True, ready: bool = True, available: int = PLENTY, **settings: Any) -> None:
        self.quick, self.ready, self.available = quick, ready, available
        self.clock = FakeClock()
        self.loads: list[Load] = []
        self.runners: list[FakeRunner] = []
        self.served: list[Client] = []  # in the order in which they got their slots
        self.clients: list[Client] = []
        self.failures: list[Exception] = []
        self.log = io.StringIO()
        made = Settings(models=Path("/nowhere"), **settings)
        self.pool = Pool(made, self._spawn, Coalescer(), Log(1, self.log), self.look, self.clock, self.failures.append)

    def look(self) -> Hardware:
        return Hardware(2, PLENTY, self.available)

    async def _spawn(self, launch: LaunchOptions, weights: int, adapter: int, projector: int) -> FakeRunner:
        load = Load(launch, weights, adapter, projector)
        self.loads.append(load)
        if not self.ready:
            await load.result
        self.runners.append(FakeRunner(len(self.runners) + 1, launch, self.quick))
        return self.runners[-1]

    def ask_at_once(self, spec: RunnerSpec = ONE, keep_alive: float | None = 60.0) -> Client:
        self.clients.append(Client(self, spec, keep_alive))
        return self.clients[-1]

    async def ask(self, spec: RunnerSpec = ONE, keep_alive: float | None = 60.0) -> Client:
        client = self.ask_at_once(spec, keep_alive)
        await turns()
        return client

    async def use(self, spec: RunnerSpec = ONE, keep_alive: float | None = 60.0) -> None:
        """Get a slot at once and give it back."""
        client = await self.ask(spec, keep_alive)
        assert client.lease, client.error
        await client.done()

    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await turns()

    def names(self) -> list[str]:
        """The models in memory that accept requests, the one that stays longest first."""
        return [resident.name for resident in self.pool.residents() if not resident.stopping]

    def stays(self, name: str = "one") -> float | None:
        """Seconds that a model will stay in memory; None: for ever."""
        expires = next(resident.expires for resident in self.pool.residents() if resident.name == name)
        return None if expires is None else round(expires - self.clock.wall(), 3)

    async def end(self) -> None:
        """Close the pool; no request, no model and no failure may be left."""
        self.quick = True
        closing = asyncio.create_task(self.pool.close())
        await turns()
        for runner in self.runners:
            runner.exit()
        async with asyncio.timeout(10):
            await closing
        for client in self.clients:
            client.task.cancel()
        await turns()
        assert all(client.task.done() for client in self.clients)
        assert self.pool.waiting == 0
        assert self.pool.residents() == []
        assert self.failures == []


class Begin(Protocol):
    """The fixture `bench`: makes a bench with these settings."""

    def __call__(self, *, quick: bool = ..., ready: bool = ..., available: int = ..., **settings: Any) -> Bench: ...


@asynccontextmanager
async def benches() -> AsyncIterator[Begin]:
    """Benches that end with the test. No task may be left, and no exception that nothing has handled."""
    made: list[Bench] = []
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, complaint: complaints.append(complaint))

    def begin(**settings: Any) -> Bench:
        made.append(Bench(**settings))
        return made[-1]

    yield begin
    for one in made:
        await one.end()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    gc.collect(1)  # exceptions of collected tasks are reported now
    assert complaints == []
