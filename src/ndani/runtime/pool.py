"""Which models are in memory, and whose turn it is.

Everything here runs on the event loop's thread, and who is in memory changes in one place, `_settle`. What happens is
reported to it as a call of one of these: `_returned` (a lease), `_loaded`, `_load_failed`, `_exited` (a process), `_expired`
(a keep-alive), `_dismissed` (somebody wants a model gone). In the loop's next turn it makes these calls in their order,
then walks the queue from its front. So all that happens in one turn is weighed together. The rules, by the numbers in
the code:

1. Where the model is in memory, fits and has a slot free, a request gets the slot. It does not queue behind loads.
2. Where all its slots are taken, or it is on its way in or out, a request waits.
3. Where the runner must be started otherwise (more context, another batch), it is drained first: no new leases, and it
   leaves when the last one is back. A request that could not fit even then is refused, and the runner stays.
4. Where the model is not there, `eviction.decide` says: load it, wait until others have left, or refuse.
5. One load at a time, none while a process is on its way out, and none before that of an earlier request.
6. The queue is bounded, and only who really waits counts: of the requests for one model, those beyond the slots that its
   runner has free, or that its next load brings.
7. A model that nobody uses stays for its keep-alive, and as long as somebody waits for it.
8. A load that fails is the answer to those who wanted as much or more. Who wants less context may still get it.

`eviction.py` decides, `spec.py` says what fits, `starting.py` starts, `queue.py` and `residence.py` hold the
state.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from ndani.engines import Launch
from ndani.engines.client import Engine
from ndani.engines.stream import Coalescer
from ndani.errors import Busy, EngineFailed, Failed, NdaniError, OutOfMemory
from ndani.ledger.log import Log
from ndani.runtime import eviction
from ndani.runtime.clock import Clock
from ndani.runtime.hardware import Hardware
from ndani.runtime.queue import PendingRequest, Queue
from ndani.runtime.residence import Lease, LoadedModel, RunnerProcess
from ndani.runtime.spec import VECTORS, RunnerSpec, default_launch
from ndani.runtime.starting import Spawn, start
from ndani.settings import Settings
from ndani.types import Resident

#: Ollama's own sentence, two spaces and all: clients look for it.
FULL = "server busy, please try again.  maximum pending requests exceeded"


class Pool:
    """The models in memory. `lease` a slot; `close` it. Made on the event loop, and called on its thread only.

    `failed` is told when settling breaks down, which leaves everybody waiting.
    """

    def __init__(
        self,
        settings: Settings,
        spawn: Spawn,
        coalescer: Coalescer,
        log: Log,
        look: Callable[[], Hardware],
        clock: Clock,
        failed: Callable[[Exception], object],
    ) -> None:
        self._settings = settings
        self._spawn = spawn
        self._coalescer = coalescer
        self._log = log
        self._look = look
        self._clock = clock
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._models: dict[str, LoadedModel] = {}
        self._queue = Queue(settings.max_queue)
        self._reports: deque[Callable[[], None]] = deque()
        self._settling = False  # in the next turn
        self._tasks: set[asyncio.Task[None]] = set()
        self._loading: asyncio.Task[None] | None = None
        self._closing = False
        self._max_models = settings.max_loaded_models if settings.max_loaded_models > 0 else 3
        self._slots = settings.num_parallel if settings.num_parallel > 0 else 4

    # What everybody may call.

    @asynccontextmanager
    async def lease(self, spec: RunnerSpec, keep_alive: float | None) -> AsyncIterator[Lease]:
        """A slot of a runner for this model: join, wait or load.

        Raises Busy when the queue is full, LoadFailed, OutOfMemory, Misconfigured, Unconfined. `keep_alive` starts
        to run when the last lease of the model has returned, and the last one's value counts; None leaves it as it was.
        """
        if self._closing:
            raise Failed("the server is stopping")
        if self._queue.is_full(spec.key, self._slots_coming):  # 6.
            self._log.debug("the queue is full", model=spec.name, waiting=self.waiting)
            raise Busy(FULL)
        request = self._queue.join(spec, self._clock.now())
        self._settle_soon()
        broken = False
        try:
            lease = await request.outcome
            if isinstance(lease, NdaniError):
                raise lease
            lease.waited_ns = int((self._clock.now() - request.since) * 1e9)
            self._log.debug("a slot is given", model=spec.name, waited_ms=lease.waited_ns // 1_000_000, waiting=self.waiting)
            yield lease
        except EngineFailed:
            broken = True
            raise
        finally:
            request.outcome.cancel()  # without effect where there is one: a client can leave in the very moment of its grant
            if not request.outcome.cancelled() and isinstance(given := request.outcome.result(), Lease):
                self._report(partial(self._returned, given.model, keep_alive, broken))
            self._settle_soon()

    def residents(self) -> list[Resident]:
        """The models in memory, the one that stays longest first."""
        now, wall = self._clock.now(), self._clock.wall()
        return [model.describe(now, wall) for model in self._by_stay() if model.runner]

    def longest_staying(self) -> RunnerSpec | None:
        """What the model in memory that stays longest was loaded for; None where there is none."""
        return next((model.spec for model in self._by_stay() if model.ready), None)

    def runner(self, key: str) -> RunnerProcess | None:
        """The runner of a model in memory."""
        model = self._models.get(key)
        return model.runner if model else None

    def unload(self, key: str) -> None:
        """Let a model go as soon as nobody uses it; nothing happens when it is not there."""
        for each in (key, key + VECTORS):
            self._report(partial(self._dismissed, each))

    def unload_named(self, name: str) -> None:
        """The same for whatever was loaded by this name, for whoever cannot find out what it stands for any more."""
        for key, model in self._models.items():
            if model.spec.name.lower() == name.lower():
                self._report(partial(self._dismissed, key))

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._queue)

    @property
    def closing(self) -> bool:
        """Whether answers that break now break because the server stops."""
        return self._closing

    async def close(self) -> None:
        """End every runner and every wait; returns when no child is left."""
        self._closing = True
        for request in self._queue:
            request.outcome.set_result(Failed("the server is stopping"))
        runners = [model.runner for model in self._models.values() if model.runner]
        if self._loading:
            self._loading.cancel()
        await asyncio.gather(*(runner.stop() for runner in runners), return_exceptions=True)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # What happens, and is reported.

    def _returned(self, model: LoadedModel, keep_alive: float | None, broken: bool) -> None:
        model.leases -= 1
        # The answer breaks before the process is seen to be gone: nobody else shall be sent there meanwhile.
        model.draining = model.draining or broken
        model.last_used = self._clock.now()
        if keep_alive is not None:
            model.keep_alive = keep_alive
        if model.leases == 0:
            self._keep_or_stop(model)

    def _loaded(self, model: LoadedModel, runner: RunnerProcess) -> None:
        model.runner, model.engine = runner, Engine(runner.socket, self._coalescer)
        self._do(self._watch(model, runner))
        if self._closing:
            self._stop(model)
        self._keep_or_stop(model)

    def _load_failed(self, model: LoadedModel, error: NdaniError) -> None:
        del self._models[model.spec.key]
        for request in self._queue:
            if request.spec.key == model.spec.key and not model.spec.asks_for_more_than(request.spec):  # 8.
                request.outcome.set_result(type(error)(str(error)))

    def _exited(self, model: LoadedModel, runner: RunnerProcess) -> None:
        model.stay()
        del self._models[model.spec.key]
        if not model.stopping and not self._closing:
            self._log.warn("a runner died", model=model.spec.name, pid=runner.pid)
        model.stopping = True  # its last leases still come back

    def _expired(self, model: LoadedModel) -> None:
        model.timer = None
        if not self._queue.wants(model.spec.key):  # 7.
            self._log.debug("a keep-alive ran out", model=model.spec.name, seconds=model.keep_alive)
            self._stop(model)

    def _dismissed(self, key: str) -> None:
        if model := self._models.get(key):
            model.keep_alive = 0.0
            model.draining = model.leases > 0
            if model.idle:
                self._stop(model)

    # What follows.

    def _report(self, happened: Callable[[], None]) -> None:
        self._reports.append(happened)
        self._settle_soon()

    def _settle_soon(self) -> None:
        if not self._settling:
            self._settling = True
            self._loop.call_soon(self._settle)

    def _settle(self) -> None:
        self._settling = False
        try:
            while self._reports:
                self._reports.popleft()()
            self._serve_queue()
            for model in self._models.values():
                if model.idle and model.timer is None and model.keep_alive >= 0 and not self._queue.wants(model.spec.key):
                    self._keep_or_stop(model)  # it stayed for somebody who then left
        except Exception as error:
            self._failed(error)

    def _keep_or_stop(self, model: LoadedModel) -> None:
        """Nobody uses it: its keep-alive begins, or it leaves."""
        model.stay()
        if model.draining or (model.keep_alive == 0 and not self._queue.wants(model.spec.key)):  # 7.
            self._stop(model)
        elif model.keep_alive > 0 and not model.stopping:
            model.expires = self._clock.now() + model.keep_alive
            model.timer = self._clock.call_later(model.keep_alive, lambda: self._report(partial(self._expired, model)))

    def _serve_queue(self) -> None:
        blocked = any(model.runner is None or model.stopping for model in self._models.values())  # 5.
        for request in self._queue:
            model = self._models.get(request.spec.key)
            if model is None:
                blocked = blocked or self._admit(request)  # 4.
            elif model.ready and request.spec.fits(model.launch):
                if model.leases < model.launch.slots:  # else 2.
                    self._grant(request, model)  # 1.
            elif model.ready:
                blocked = blocked or self._replace(request, model)  # 3.

    def _grant(self, request: PendingRequest, model: LoadedModel) -> None:
        assert model.engine is not None
        model.leases += 1
        model.stay()
        request.outcome.set_result(Lease(model.engine, model.launch.num_ctx, model))

    def _admit(self, request: PendingRequest) -> bool:
        """Act on the decision; True when later requests must not load before this one."""
        spec = request.spec
        launch, need, decision = self._decide(spec, request.replaced)
        if decision.action == "refuse":
            return self._refuse(request, decision)
        for key in decision.evict:
            leaving = self._models[key]
            if not leaving.draining and not leaving.stopping:
                self._log.debug(
                    "a model leaves for another",
                    model=leaving.spec.name, size=leaving.size, idle=leaving.idle, to=spec.name, why=decision.reason,
                )  # fmt: skip
            self._drain(leaving)
        if decision.action == "load" and not decision.evict:
            model = LoadedModel(spec, replace(launch, slots=decision.slots), need.size(decision.slots), self._settings.keep_alive)
            self._log.info("loading a model", model=spec.name, why=decision.reason, slots=decision.slots, num_ctx=launch.num_ctx)
            self._log.debug(
                "how it loads", model=spec.name, size=model.size, weights=spec.size, slot=need.slot, waiting=self.waiting,
                num_batch=launch.num_batch, num_thread=launch.num_thread, num_gpu=launch.num_gpu, adapter=spec.adapter is not None,
            )  # fmt: skip
            self._models[spec.key] = model
            self._loading = self._do(self._load(model))
        return True

    def _replace(self, request: PendingRequest, model: LoadedModel) -> bool:
        """Let a runner go that must be started otherwise, unless that could not be; True when it goes."""
        _, _, decision = self._decide(request.spec, model.launch)
        if decision.action == "refuse":
            return self._refuse(request, decision)
        slots, num_ctx = model.launch.slots, model.launch.num_ctx
        self._log.debug("a runner must start otherwise", model=request.spec.name, slots=slots, num_ctx=num_ctx)
        for other in self._queue:
            if other.spec.key == request.spec.key:
                other.replaced = model.launch  # whoever waits goes on from there; who comes when they have left does not
        self._drain(model)
        return True

    def _decide(self, spec: RunnerSpec, replaced: Launch | None) -> tuple[Launch, eviction.Need, eviction.Decision]:
        """How a runner for this would start, what that takes, and whether it may. Changes nothing."""
        machine = self._look()
        launch = spec.launch(replaced, default_launch(self._settings, machine.cores, self._slots))
        need = eviction.Need(spec.size, launch.num_ctx * spec.kv_bytes, launch.slots)
        held = [model.held() for model in self._models.values()]
        return launch, need, eviction.decide(need, held, machine.available, self._max_models)

    def _refuse(self, request: PendingRequest, decision: eviction.Decision) -> bool:
        self._log.debug("no room for a model", model=request.spec.name, why=decision.reason)
        request.outcome.set_result(OutOfMemory(f"{decision.reason}; unload other models, or ask for a smaller num_ctx"))
        return False

    def _drain(self, model: LoadedModel) -> None:
        model.draining = True
        if model.idle:
            self._stop(model)

    def _stop(self, model: LoadedModel) -> None:
        if model.stopping or model.runner is None:
            return
        model.stopping = True
        self._log.debug("a model leaves", model=model.spec.name, pid=model.runner.pid, size=model.size, waiting=self.waiting)
        self._do(model.runner.stop())

    # What takes its time.

    async def _load(self, model: LoadedModel) -> None:
        began = self._clock.now()
        try:
            runner = await start(model, self._spawn, self._clock, self._settings.load_timeout)
        except NdaniError as error:
            self._report(partial(self._load_failed, model, error))
        else:
            seconds = f"{self._clock.now() - began:.2f}"
            self._log.debug("a model is loaded", model=model.spec.name, pid=runner.pid, seconds=seconds)
            self._report(partial(self._loaded, model, runner))

    async def _watch(self, model: LoadedModel, runner: RunnerProcess) -> None:
        await runner.exited.wait()
        self._report(partial(self._exited, model, runner))

    def _do(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # What it looks up.

    def _slots_coming(self, key: str) -> int:
        """The slots that a model's runner has free, or that its next load brings."""
        model = self._models.get(key)
        if model is None or model.draining or model.stopping:
            return self._slots
        return model.launch.slots - model.leases

    def _by_stay(self) -> list[LoadedModel]:
        now = self._clock.now()
        return sorted(self._models.values(), key=lambda model: model.leaves_at(now), reverse=True)
