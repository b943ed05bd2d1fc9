"""Which models are in memory, and which request gets a slot next.

Everything here runs on the event loop's thread. The set of loaded models changes in one place, `_reconcile`. Each event is
posted to it as a call of one of these methods: `_returned` (a lease), `_loaded`, `_load_failed`, `_exited` (a process),
`_expired` (a keep-alive), `_unload_requested`. In the loop's next turn, `_reconcile` makes these calls in order and then goes
through the queue from its front. So all events of one turn are taken into account together. The rules, by the numbers in the
code:

1. If the model is loaded, its runner can serve the request, and a slot is free, the request gets the slot. It does not
   queue behind loads.
2. If all slots are taken, or the model is loading or unloading, the request waits.
3. If the runner must restart with other options (more context, another batch), it is drained first: no new leases, and it
   stops when the last lease is returned. A request that would not fit even then is refused, and the runner keeps running.
4. If the model is not loaded, `eviction.decide` decides: load it, wait until others have stopped, or refuse.
5. Only one model loads at a time, none while a process is stopping, and none before the load of an earlier request.
6. The queue has a limit. Only requests that really wait count: of the requests for one model, those beyond the slots that
   its runner has free, or that its next load brings.
7. An idle model stays loaded for its keep-alive, and as long as a request waits for it.
8. When a load fails, the requests that need as much context or more fail with it. Those that need less may still succeed.

`eviction.py` decides what to evict, `spec.py` compares requests with runners, `starting.py` starts runners, `queue.py` and
`residence.py` hold the state.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from ndani.engines import LaunchOptions
from ndani.engines.client import RunnerClient
from ndani.engines.stream import Coalescer
from ndani.errors import Busy, EngineFailed, Failed, NdaniError, OutOfMemory
from ndani.ledger.log import Log
from ndani.runtime import eviction
from ndani.runtime.clock import Clock
from ndani.runtime.hardware import Hardware
from ndani.runtime.queue import PendingRequest, Queue
from ndani.runtime.residence import Lease, LoadedModel, RunnerProcess, without_end_of_time
from ndani.runtime.spec import EMBEDDING_KEY_SUFFIX, RunnerSpec, default_options
from ndani.runtime.starting import Spawn, start
from ndani.settings import Settings
from ndani.types import Resident

#: Ollama's own sentence, with its two spaces: clients look for it.
QUEUE_FULL = "server busy, please try again.  maximum pending requests exceeded"


class Pool:
    """The models in memory: `lease` gives a slot, `close` stops everything. Create it and call it on the event loop's thread.

    `on_failure` is called when `_reconcile` raises: every request would wait forever after that.
    """

    def __init__(
        self,
        settings: Settings,
        spawn: Spawn,
        coalescer: Coalescer,
        log: Log,
        detect_hardware: Callable[[], Hardware],
        clock: Clock,
        on_failure: Callable[[Exception], object],
    ) -> None:
        self._settings = settings
        self._spawn = spawn
        self._coalescer = coalescer
        self._log = log
        self._detect_hardware = detect_hardware
        self._clock = clock
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._models: dict[str, LoadedModel] = {}
        self._queue = Queue(settings.max_queue)
        self._pending_calls: deque[Callable[[], None]] = deque()
        self._reconcile_scheduled = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._loading: asyncio.Task[None] | None = None
        self._closing = False
        self._max_models = settings.max_loaded_models if settings.max_loaded_models > 0 else 3
        self._slots = settings.num_parallel if settings.num_parallel > 0 else 4

    # The public methods.

    @asynccontextmanager
    async def lease(self, spec: RunnerSpec, keep_alive: float | None) -> AsyncIterator[Lease]:
        """A slot of a runner for this model; waits for it, and loads the model if needed.

        Raises Busy when the queue is full, LoadFailed, OutOfMemory, Misconfigured, Unconfined. The keep-alive starts when the
        last lease of the model is returned. The last lease's `keep_alive` counts; None leaves the value unchanged.
        """
        if self._closing:
            raise Failed("the server is stopping")
        if self._queue.is_full(spec.key, self._available_slots):  # 6. only requests that really wait count
            self._log.debug("the queue is full", model=spec.name, waiting=self.waiting)
            raise Busy(QUEUE_FULL)
        request = self._queue.enqueue(spec, self._clock.now())
        self._schedule_reconcile()
        broken = False
        try:
            lease = await request.outcome
            lease.waited_ns = int((self._clock.now() - request.enqueued_at) * 1e9)
            self._log.debug("a slot is given", model=spec.name, waited_ms=lease.waited_ns // 1_000_000, waiting=self.waiting)
            yield lease
        except EngineFailed:
            broken = True
            raise
        finally:
            if granted := request.close():
                self._post(partial(self._returned, granted.model, keep_alive, broken))
            self._schedule_reconcile()

    def residents(self) -> list[Resident]:
        """The models in memory, the one that expires last first."""
        now, wall = self._clock.now(), self._clock.wall()
        return [model.describe(now, wall) for model in self._by_expiry() if model.runner]

    def last_to_expire(self) -> RunnerSpec | None:
        """The spec of the loaded model that expires last; None when no model is loaded."""
        return next((model.spec for model in self._by_expiry() if model.ready), None)

    def runner(self, key: str) -> RunnerProcess | None:
        """The runner of a model in memory."""
        model = self._models.get(key)
        return model.runner if model else None

    def is_ready(self, key: str) -> bool:
        """Whether a model is in memory for text or for vectors, and is not leaving."""
        return any(model.ready for runner_key in (key, key + EMBEDDING_KEY_SUFFIX) if (model := self._models.get(runner_key)))

    def unload(self, key: str) -> None:
        """Unload a model as soon as it is idle; does nothing when it is not loaded."""
        for runner_key in (key, key + EMBEDDING_KEY_SUFFIX):
            self._post(partial(self._unload_requested, runner_key))

    def unload_by_name(self, name: str) -> None:
        """Unload all that was loaded under this name, for callers that cannot resolve the name to a key any more."""
        for key, model in self._models.items():
            if model.spec.name.lower() == name.lower():
                self._post(partial(self._unload_requested, key))

    @property
    def waiting(self) -> int:
        """How many requests wait for a slot."""
        return len(self._queue)

    @property
    def closing(self) -> bool:
        """Whether the server is stopping: then answers break for this reason."""
        return self._closing

    async def close(self) -> None:
        """Stop every runner and fail every waiting request; returns when no child process is left."""
        self._closing = True
        for request in self._queue:
            request.outcome.set_exception(Failed("the server is stopping"))
        runners = [model.runner for model in self._models.values() if model.runner]
        if self._loading:
            self._loading.cancel()
        await asyncio.gather(*(runner.stop() for runner in runners), return_exceptions=True)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # The events, called by `_reconcile` only.

    def _returned(self, model: LoadedModel, keep_alive: float | None, broken: bool) -> None:
        model.leases -= 1
        # The answer breaks before the exit of the process is noticed: send no other request there in the meantime.
        model.draining = model.draining or broken
        model.last_used = self._clock.now()
        if keep_alive is not None:
            model.keep_alive = keep_alive
        if model.leases == 0:
            self._keep_or_stop(model)

    def _loaded(self, model: LoadedModel, runner: RunnerProcess) -> None:
        model.runner = runner
        model.engine = RunnerClient(
            runner.socket, self._coalescer, without_template=runner.without_template, media_marker=runner.media_marker
        )
        self._start_task(self._watch(model, runner))
        if self._closing:
            self._stop(model)
        self._keep_or_stop(model)

    def _load_failed(self, model: LoadedModel, error: NdaniError) -> None:
        del self._models[model.spec.key]
        # 8. The requests that need as much context or more fail with it; those that need less may still succeed.
        for request in self._queue:
            if request.spec.key == model.spec.key and not model.spec.needs_more_context_than(request.spec):
                request.outcome.set_exception(type(error)(str(error)))

    def _exited(self, model: LoadedModel, runner: RunnerProcess) -> None:
        model.cancel_keep_alive()
        del self._models[model.spec.key]
        if not model.stopping and not self._closing:
            self._log.warn("a runner died", model=model.spec.name, pid=runner.pid)
        model.stopping = True  # its last leases are still to be returned

    def _expired(self, model: LoadedModel) -> None:
        model.timer = None
        if not self._queue.has_request_for(model.spec.key):  # 7. a model stays for a request that waits
            self._log.debug("a keep-alive ran out", model=model.spec.name, seconds=model.keep_alive)
            self._stop(model)

    def _unload_requested(self, key: str) -> None:
        if model := self._models.get(key):
            model.keep_alive = 0.0
            model.draining = model.leases > 0
            if model.idle:
                self._stop(model)

    # The reaction to events.

    def _post(self, event: Callable[[], None]) -> None:
        self._pending_calls.append(event)
        self._schedule_reconcile()

    def _schedule_reconcile(self) -> None:
        if not self._reconcile_scheduled:
            self._reconcile_scheduled = True
            self._loop.call_soon(self._reconcile)

    def _reconcile(self) -> None:
        self._reconcile_scheduled = False
        try:
            while self._pending_calls:
                self._pending_calls.popleft()()
            self._serve_queue()
            for model in self._models.values():
                if model.idle and model.timer is None and model.keep_alive >= 0 and not self._queue.has_request_for(model.spec.key):
                    self._keep_or_stop(model)  # it was kept for a request that was then cancelled
        except Exception as error:
            self._on_failure(error)

    def _keep_or_stop(self, model: LoadedModel) -> None:
        """Start the keep-alive of an idle model, or stop it."""
        model.cancel_keep_alive()
        if model.draining or (model.keep_alive == 0 and not self._queue.has_request_for(model.spec.key)):  # 7. as in `_expired`
            self._stop(model)
        elif model.keep_alive > 0 and not model.stopping:
            model.expires = self._clock.now() + model.keep_alive
            model.timer = self._clock.call_later(model.keep_alive, lambda: self._post(partial(self._expired, model)))

    def _serve_queue(self) -> None:
        """Go through the requests from the front of the queue: each gets a slot, has its model loaded or restarted, or waits."""
        # 5. No load while another model loads or a process is stopping, and none before the load of an earlier request.
        blocked = any(model.runner is None or model.stopping for model in self._models.values())
        for request in self._queue:
            model = self._models.get(request.spec.key)
            if model and model.ready and request.spec.can_use(model.options):
                # 1. A free slot is given, whatever loads. 2. If there is none, the request waits.
                if model.leases < model.options.slots:
                    self._grant(request, model)
            elif model and model.ready and not blocked:
                # 3. The runner must restart with other options.
                blocked = self._restart(request, model)
            elif model is None and not blocked:
                # 4. The model is loaded, or the request waits until others have stopped, or it is refused.
                blocked = self._admit(request)
            # 2. A model that loads or unloads is waited for.

    def _grant(self, request: PendingRequest, model: LoadedModel) -> None:
        assert model.engine is not None
        model.leases += 1
        model.cancel_keep_alive()
        request.outcome.set_result(Lease(model.engine, model.options.num_ctx, model))

    def _admit(self, request: PendingRequest) -> bool:
        """Act on the eviction decision; True when later requests must not load before this one."""
        spec = request.spec
        options, need, decision = self._decide(spec, request.replaced)
        if decision.action == "refuse":
            return self._refuse(request, decision)
        for key in decision.evict:
            evicted = self._models[key]
            if not evicted.draining and not evicted.stopping:
                self._log.debug(
                    "a model leaves for another",
                    model=evicted.spec.name, size=evicted.size, idle=evicted.idle, to=spec.name, why=decision.reason,
                )  # fmt: skip
            self._drain(evicted)
        if decision.action == "load" and not decision.evict:
            keep_alive = without_end_of_time(self._settings.keep_alive)
            model = LoadedModel(spec, replace(options, slots=decision.slots), need.size(decision.slots), keep_alive)
            self._log.info("loading a model", model=spec.name, why=decision.reason, slots=decision.slots, num_ctx=options.num_ctx)
            self._log.debug(
                "how it loads", model=spec.name, size=model.size, weights=spec.size, slot=need.slot, waiting=self.waiting,
                num_batch=options.num_batch, num_thread=options.num_thread, num_gpu=options.num_gpu, adapter=spec.adapter is not None,
                projector=spec.projector is not None,
            )  # fmt: skip
            self._models[spec.key] = model
            self._loading = self._start_task(self._load(model))
        return True

    def _restart(self, request: PendingRequest, model: LoadedModel) -> bool:
        """Drain a runner so that it restarts with other options; False when these would not fit and the request was refused."""
        _, _, decision = self._decide(request.spec, model.options)
        if decision.action == "refuse":
            return self._refuse(request, decision)
        slots, num_ctx = model.options.slots, model.options.num_ctx
        self._log.debug("a runner must start otherwise", model=request.spec.name, slots=slots, num_ctx=num_ctx)
        for other in self._queue:
            if other.spec.key == request.spec.key:
                other.replaced = model.options  # requests that wait now start from these options; later requests do not
        self._drain(model)
        return True

    def _decide(self, spec: RunnerSpec, replaced: LaunchOptions | None) -> tuple[LaunchOptions, eviction.MemoryNeed, eviction.Decision]:
        """How a runner for this spec would start, what memory that needs, and the eviction decision. Changes nothing."""
        hardware = self._detect_hardware()
        options = spec.launch_options(replaced, default_options(spec.engine, self._settings, hardware.cores, self._slots))
        need = eviction.MemoryNeed(spec.size, options.num_ctx * spec.kv_bytes, options.slots)
        candidates = [model.eviction_candidate() for model in self._models.values()]
        available = hardware.available
        if limit := self._settings.max_memory:
            available = min(available, eviction.available_within(limit, candidates))
        return options, need, eviction.decide(need, candidates, available, self._max_models)

    def _refuse(self, request: PendingRequest, decision: eviction.Decision) -> bool:
        self._log.debug("no room for a model", model=request.spec.name, why=decision.reason)
        limit = " or set a higher NDANI_MAX_MEMORY," if self._settings.max_memory else ""
        request.outcome.set_exception(OutOfMemory(f"{decision.reason}; unload other models,{limit} or ask for a smaller num_ctx"))
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
        self._start_task(model.runner.stop())

    # The tasks.

    async def _load(self, model: LoadedModel) -> None:
        started = self._clock.now()
        try:
            runner = await start(model, self._spawn, self._clock, self._settings.load_timeout)
        except NdaniError as error:
            self._post(partial(self._load_failed, model, error))
        else:
            seconds = f"{self._clock.now() - started:.2f}"
            self._log.debug("a model is loaded", model=model.spec.name, pid=runner.pid, seconds=seconds)
            self._post(partial(self._loaded, model, runner))

    async def _watch(self, model: LoadedModel, runner: RunnerProcess) -> None:
        await runner.exited.wait()
        self._post(partial(self._exited, model, runner))

    def _start_task(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # The queries.

    def _available_slots(self, key: str) -> int:
        """The free slots of a model's runner, or those that its next load brings."""
        model = self._models.get(key)
        if model is None or model.draining or model.stopping:
            return self._slots
        return model.options.slots - model.leases

    def _by_expiry(self) -> list[LoadedModel]:
        now = self._clock.now()
        return sorted(self._models.values(), key=lambda model: model.expiry(now), reverse=True)
