"""The server's life: bind, compose the rooms, serve, end. The one place where the rooms are put together."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import FrameType

import uvicorn

from ndani import __version__, jail
from ndani.api.app import build
from ndani.api.edge.connection import Connection
from ndani.api.edge.faults import fault
from ndani.api.edge.library_log import capture_library_logs
from ndani.api.edge.listening import addresses_of, hung_up, listening, loopback_addresses
from ndani.engines import Launch
from ndani.engines.stream import Coalescer
from ndani.ledger.counts import Counts
from ndani.ledger.log import Log, open_log
from ndani.runtime import hardware
from ndani.runtime.clock import SystemClock
from ndani.runtime.folder import runtime_folder
from ndani.runtime.pool import Pool
from ndani.runtime.runner import Runner
from ndani.service import Service
from ndani.service.resolver import abilities
from ndani.settings import Settings, make_home, without_effect
from ndani.sources.fetcher import Fetcher
from ndani.store import Store
from ndani.store.handover import sweep

#: Seconds that open answers get to say their last line when the server stops.
GRACE = 3


def serve(settings: Settings) -> int:
    """Run the server until SIGTERM, SIGINT, SIGHUP or SIGQUIT; returns the exit code. Raises Misconfigured when it cannot listen."""
    jail.make_undumpable()
    make_home()
    log = open_log(settings.log_file, settings.debug)
    with listening(settings) as listeners, runtime_folder() as folder, capture_library_logs(log):
        _allow_many_connections()
        for sentence in without_effect():
            log.warn(sentence)
        # uvloop is a fifth of the front's cost per token; it is not made for Windows.
        runner = asyncio.Runner(loop_factory=_loop_factory())
        with runner:
            runner.run(_serve(settings, listeners, folder, log))
    return 0


async def _serve(settings: Settings, listeners: list[socket.socket], folder: Path, log: Log) -> None:
    counts = Counts()
    store = Store(settings.models, abilities)

    async def spawn(launch: Launch, weights: int) -> Runner:
        child = await Runner.spawn(launch, weights if weights >= 0 else None, folder, require_jail=settings.require_jail)
        await child.ready()
        if child.confinement.status != "confined":
            log.warn("a runner is unconfined", pid=child.pid, why=" ".join(child.confinement.missing))
        return child

    def pool_failed(error: Exception) -> None:
        # Better no server than one that lets everybody wait.
        log.warn(str(fault(error)))
        server.end()

    pool = Pool(settings, spawn, Coalescer(), log, hardware.detect, SystemClock(), pool_failed)
    service = Service(settings, store, pool, Fetcher(settings), log, counts)
    config = uvicorn.Config(
        build(service, loopback_addresses(listeners)), lifespan="off", log_config=None, access_log=False, server_header=False,
        timeout_graceful_shutdown=GRACE, http=Connection, ws="none", timeout_keep_alive=75, date_header=True, proxy_headers=False,
    )  # fmt: skip
    server = Server(config, service)
    tidying = asyncio.create_task(asyncio.to_thread(_tidy, store, settings, log))
    idle = asyncio.create_task(_leave_when_idle(settings.idle_exit, counts, server.end))
    log.info(f"listening on {addresses_of(listeners)}", version=__version__, models=str(settings.models))
    gc.freeze()  # what was imported is never garbage; collections stay short
    try:
        await server.serve(sockets=listeners)
    finally:
        store.close()
        await asyncio.gather(pool.close(), service.fetcher.close(), service.supervisor.close())
        idle.cancel()
        await asyncio.gather(idle, tidying, return_exceptions=True)
        log.info("stopped")


class Server(uvicorn.Server):
    """uvicorn, with our way of ending: answers get their last line, runners end, then the connections close."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._ending: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """uvicorn's signals, and those of a terminal that goes."""
        with super().capture_signals(), hung_up(self.handle_exit):
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: the first one ends well, the second one at once."""
        if self._ending is not None:
            self.force_exit = self.should_exit = True
        self._loop.call_soon_threadsafe(self.end)

    def end(self) -> None:
        """Begin to end; may be called again."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end())

    async def _end(self) -> None:
        self._service.store.close()
        try:
            await asyncio.gather(self._service.pool.close(), self._service.fetcher.close(), self._service.supervisor.close())
        finally:
            self.should_exit = True


async def _leave_when_idle(limit: float, counts: Counts, end: Callable[[], None]) -> None:
    """End a server that was started in the background and that nobody has asked anything for a while."""
    if limit <= 0:
        return
    while counts.in_flight or time.monotonic() - counts.last_end < limit:  # noqa: ASYNC110 - quiet makes no event
        await asyncio.sleep(min(1.0, limit / 4))
    end()


def _tidy(store: Store, settings: Settings, log: Log) -> None:
    """Blobs that nothing refers to go, as when Ollama starts; a read-only store is nobody's fault.

    Before that every model is looked at once, so that the first listing is as quick as the others.
    """
    try:
        sweep(store.layout)
        store.list()
        removed = () if settings.noprune else store.prune()
    except Exception as error:  # tidying must never stop a server
        log.debug("not tidied", why=type(error).__name__)
        return
    if removed:
        log.info("removed unused blobs", count=len(removed))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


def _allow_many_connections() -> None:
    """An idle client costs a descriptor: take as many as the system lets us."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    del soft
