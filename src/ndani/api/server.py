"""The server's lifecycle: bind, connect the packages, serve, shut down. The one place where all packages are put together.

Its URLs are in `app`, its sockets in `edge/listening`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn

from ndani import __version__, jail
from ndani.api.app import build
from ndani.api.edge.connection import Connection
from ndani.api.edge.faults import fault
from ndani.api.edge.library_log import capture_library_logs
from ndani.api.edge.listening import addresses_of, listening, loopback_addresses
from ndani.api.edge.signals import HangupServer
from ndani.engines import LaunchOptions
from ndani.engines.stream import Coalescer
from ndani.ledger.counts import Counts
from ndani.ledger.log import Log, open_log
from ndani.runtime import hardware
from ndani.runtime.clock import SystemClock
from ndani.runtime.folder import runtime_folder
from ndani.runtime.pool import Pool
from ndani.runtime.runner import Runner
from ndani.service import Service
from ndani.service.resolver import template_capabilities
from ndani.settings import Settings, make_home, unsupported_variable_warnings
from ndani.sources.fetcher import Fetcher
from ndani.store import Store
from ndani.store.handover import remove_stale_slots

#: Seconds that responses in progress get to send their last line when the server stops.
SHUTDOWN_GRACE = 3


def serve(settings: Settings) -> int:
    """Run the server until SIGTERM, SIGINT, SIGHUP or SIGQUIT; returns the exit code. Raises Misconfigured when it cannot listen."""
    jail.make_undumpable()
    make_home()
    log = open_log(settings.log_file, settings.debug)
    with listening(settings) as listeners, runtime_folder() as folder, capture_library_logs(log):
        _raise_descriptor_limit()
        for sentence in unsupported_variable_warnings():
            log.warn(sentence)
        # With uvloop the front's cost per token is a fifth lower; uvloop does not support Windows.
        with asyncio.Runner(loop_factory=_loop_factory()) as event_loop:
            event_loop.run(_serve(settings, listeners, folder, log))
    return 0


async def _serve(settings: Settings, listeners: list[socket.socket], folder: Path, log: Log) -> None:
    counts = Counts()
    store = Store(settings.models, template_capabilities)

    async def spawn(options: LaunchOptions, weights: int, adapter: int, projector: int) -> Runner:
        child = await Runner.spawn(options, weights, folder, adapter=adapter, projector=projector, require_jail=settings.require_jail)
        await child.ready()
        if child.confinement.status != "confined":
            log.warn("a runner is unconfined", pid=child.pid, why=" ".join(child.confinement.missing))
        return child

    def pool_failed(error: Exception) -> None:
        # A server without a pool would let every request wait for ever, so it stops. The pool calls this in a later turn
        # of the event loop, when the `server` below exists.
        log.warn(str(fault(error)))
        server.end()

    pool = Pool(settings, spawn, Coalescer(), log, hardware.detect, SystemClock(), pool_failed)
    service = Service(settings, store, pool, Fetcher(settings), log, counts)
    config = uvicorn.Config(
        build(service, loopback_addresses(listeners), lambda: server.end()), lifespan="off", log_config=None,
        access_log=False, server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_GRACE, http=Connection, ws="none", timeout_keep_alive=75, date_header=True, proxy_headers=False,
    )  # fmt: skip
    server = Server(config, service)
    cleanup = asyncio.create_task(asyncio.to_thread(_remove_unused_blobs, store, settings, log))
    idle = asyncio.create_task(_stop_when_idle(settings.idle_exit, counts, server.end))
    log.info(f"listening on {addresses_of(listeners)}", version=__version__, models=str(settings.models))
    gc.freeze()  # imported modules are never garbage; without them collections are short
    try:
        await server.serve(sockets=listeners)
    finally:
        await service.close()  # again: after an exception `Server._end` has not run, after a second signal it may not be done
        idle.cancel()
        await asyncio.gather(idle, cleanup, return_exceptions=True)
        log.info("stopped")


class Server(HangupServer):
    """uvicorn with our shutdown: responses get their last line, runners stop, then the connections close."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._ending: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On the first signal shut down gracefully, on the second one at once."""
        if self._ending is not None:
            self.force_exit = self.should_exit = True
        self._loop.call_soon_threadsafe(self.end)

    def end(self) -> None:
        """Start the shutdown; calling it again does nothing."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end())

    async def _end(self) -> None:
        try:
            await self._service.close()
        finally:
            self.should_exit = True


async def _stop_when_idle(idle_seconds: float, counts: Counts, end: Callable[[], None]) -> None:
    """Stop a server that was started in the background, when no request has come for `idle_seconds`."""
    if idle_seconds <= 0:
        return
    while counts.in_flight or time.monotonic() - counts.last_end < idle_seconds:  # noqa: ASYNC110 - no event marks the absence of requests
        await asyncio.sleep(min(1.0, idle_seconds / 4))
    end()


def _remove_unused_blobs(store: Store, settings: Settings, log: Log) -> None:
    """Remove blobs that no model uses, as Ollama does at its start. A read-only store is not an error.

    Before that every model is read once, which fills the cache: the first listing is as fast as later ones.
    """
    try:
        remove_stale_slots(store.layout)
        store.list_models()
        removed = () if settings.noprune else store.prune()
    except Exception as error:  # a failed cleanup must not stop the server
        log.debug("not tidied", why=type(error).__name__)
        return
    if removed:
        log.info("removed unused blobs", count=len(removed))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


def _raise_descriptor_limit() -> None:
    """Raise the soft limit of file descriptors to the hard limit: every idle client needs one."""
    if sys.platform == "win32":
        return
    import resource

    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
