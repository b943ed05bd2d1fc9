"""Who is in memory, and whose turn it is. One task owns that state; everybody else leaves it a note and waits.

Notes: Asked, Left (a client gave up waiting), Returned (a lease), Loaded, Broke (a load), Gone (a process), Expired
(a keep-alive), Unloaded (somebody said so). After each note the owner settles: it walks the waiting list from its
front and, for each request,

1. grants a slot, where the model is in memory, fits and has a slot free (such requests do not queue behind loads);
2. waits, where the model is in memory and its slots are taken, or where it is being loaded;
3. drains the runner, where the model is in memory but must be started otherwise (more context, another batch), if
   what is asked for can fit at all;
4. else asks `eviction.decide`: load it, wait for busy models to drain, or refuse. One load at a time.

The queue has a limit, and only who really waits counts: of the requests for one model, those beyond the slots that its
runner has free, or that its next load brings. The numbers are repeated at the code. `eviction.py` decides, `residence.py` holds the values.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from ndani.engines import Launch
from ndani.engines.client import Engine
from ndani.engines.stream import Coalescer
from ndani.errors import Busy, EngineFailed, Failed, LoadFailed, NdaniError, OutOfMemory
from ndani.ledger.log import Log
from ndani.runtime import eviction, machine
from ndani.runtime.notes import Asked, Broke, Expired, Gone, Loaded, Note, Returned, Unloaded
from ndani.runtime.residence import DEFAULT_CTX, VECTORS, Child, Lease, Place, Want, batch
from ndani.settings import Settings
from ndani.types import Resident

#: Ollama's own sentence, two spaces and all: clients look for it.
FULL = "server busy, please try again.  maximum pending requests exceeded"

#: Start a runner: the launch, with the descriptor of its adapter, and that of its weights (-1: none).
Spawn = Callable[[Launch, int], Awaitable[Child]]


class Pool:
    """The models in memory. `run` it as a task; `lease` a slot; `close` it."""

    def __init__(
        self, settings: Settings, spawn: Spawn, mailroom: Coalescer, log: Log, look: Callable[[], machine.Machine] = machine.look
    ) -> None:
        self._settings = settings
        self._spawn = spawn
        self._log = log
        self._look = look
        self._places: dict[str, Place] = {}
        self._waiting: list[Asked] = []
        self._notes: deque[Note] = deque()
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._mailroom = mailroom
        self._most = settings.max_loaded_models if settings.max_loaded_models > 0 else 3
        self._slots = settings.num_parallel if settings.num_parallel > 0 else 4

    # What everybody may call.

    @asynccontextmanager
    async def lease(self, want: Want, keep_alive: float | None) -> AsyncIterator[Lease]:
        """A slot of a runner for this model: join, wait or load.

        Raises Busy when the queue is full, LoadFailed, OutOfMemory, Misconfigured, Unconfined. `keep_alive` starts
        to run when the last lease of the model has returned, and the last one's value counts; None leaves it as it was.
        """
        if self._closing:
            raise Failed("the server is stopping")
        if self._is_full(want):
            self._log.debug("the queue is full", model=want.name, waiting=self.waiting)
            raise Busy(FULL)
        asked = Asked(want, asyncio.get_running_loop().create_future(), time.monotonic_ns())
        self._waiting.append(asked)
        self._note(None)
        lease: Lease | None = None
        broken = False
        try:
            lease = await asked.granted
            lease.waited_ns = time.monotonic_ns() - asked.since
            self._log.debug("a slot is given", model=want.name, waited_ms=lease.waited_ns // 1_000_000, waiting=self.waiting)
            yield lease
        except EngineFailed:
            broken = True
            raise
        finally:
            if lease is None and asked.granted.done() and not asked.granted.cancelled() and asked.granted.exception() is None:
                lease = asked.granted.result()  # granted in the very moment the client left
            asked.granted.cancel()
            self._note(Returned(lease.place, keep_alive, broken) if lease else None)

    def residents(self) -> list[Resident]:
        """The models in memory, the one that stays longest first."""
        now, wall = asyncio.get_running_loop().time(), time.time()
        return [place.shown(now, wall) for place in self._by_stay(now) if place.child]

    def unload(self, key: str) -> None:
        """Let a model go as soon as nobody uses it; nothing happens when it is not there."""
        self._note(Unloaded(key))
        self._note(Unloaded(key + VECTORS))

    def unload_named(self, name: str) -> None:
        """The same for whatever was loaded by this name, for whoever cannot find out what it stands for any more."""
        for key in [key for key, place in self._places.items() if place.want.name.lower() == name.lower()]:
            self._note(Unloaded(key))

    def resident(self) -> Want | None:
        """What the model in memory that stays longest is wanted as; None where there is none."""
        places = self._by_stay(asyncio.get_running_loop().time())
        return next((place.want for place in places if place.child and not place.stopping and not place.draining), None)

    def child(self, key: str) -> Child | None:
        """The runner of a model in memory."""
        place = self._places.get(key)
        return place.child if place else None

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len([a for a in self._waiting if not a.granted.done()])

    async def run(self) -> None:
        """The owner: the only task that changes who is in memory. Runs until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._notes:
                self._read(self._notes.popleft())
            self._settle()

    async def close(self) -> None:
        """End every runner and every wait; returns when no child is left."""
        self._closing = True
        for asked in self._waiting:
            if not asked.granted.done():
                asked.granted.set_exception(Failed("the server is stopping"))
        places = list(self._places.values())
        for task in [t for t in self._tasks if t.get_name() == "load"]:
            task.cancel()
        await asyncio.gather(*(p.child.stop() for p in places if p.child), return_exceptions=True)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def closing(self) -> bool:
        """Whether answers that break now break because the server stops."""
        return self._closing

    # What only the owner does.

    def _note(self, note: Note) -> None:
        self._notes.append(note)
        self._news.set()

    def _by_stay(self, now: float) -> list[Place]:
        return sorted(self._places.values(), key=lambda place: place.until(now), reverse=True)

    def _is_full(self, want: Want) -> bool:
        """Whether this request would really wait, and as many as may do already."""
        if len(self._waiting) < self._settings.max_queue:
            return False
        asked = Counter(a.want.key for a in self._waiting if not a.granted.done())
        if asked[want.key] < self._coming(want.key):
            return False
        return sum(max(count - self._coming(key), 0) for key, count in asked.items()) >= self._settings.max_queue

    def _coming(self, key: str) -> int:
        """The slots that a model's runner has free, or that its next load brings."""
        place = self._places.get(key)
        if place is None or place.draining or place.stopping:
            return self._slots
        return place.launch.slots - place.leases

    def _read(self, note: Note) -> None:
        match note:
            case Returned(place, keep_alive, broken):
                place.leases -= 1
                # The answer breaks before the process is seen to be gone: nobody else shall be sent there meanwhile.
                place.draining = place.draining or broken
                place.used = asyncio.get_running_loop().time()
                if keep_alive is not None:
                    place.keep_alive = keep_alive
                if place.leases == 0:
                    self._rest(place)
            case Loaded(place, child):
                place.child, place.engine = child, Engine(child.socket, self._mailroom)
                self._task(self._watch(place, child), "watch")
                if self._closing:
                    self._stop(place)
                self._rest(place)
            case Broke(place, error):
                self._places.pop(place.want.key, None)
                for asked in self._waiting:
                    # Who wants less of the same model may still get it: only those who asked for this much are told.
                    if asked.want.key == place.want.key and not asked.granted.done() and not place.want.outdoes(asked.want):
                        asked.granted.set_exception(type(error)(str(error)))
            case Gone(place):
                if place.timer:
                    place.timer.cancel()
                if self._places.get(place.want.key) is place:
                    del self._places[place.want.key]
                if not place.stopping and not self._closing:
                    self._log.warn("a runner died", model=place.want.name, pid=place.child.pid if place.child else 0)
                place.stopping = True  # its last leases still come back
            case Expired(place):
                place.timer = None
                if place.leases == 0 and not self._wanted(place):
                    self._log.debug("a keep-alive ran out", model=place.want.name, seconds=place.keep_alive)
                    self._stop(place)
            case Unloaded(key):
                if found := self._places.get(key):
                    found.keep_alive = 0.0
                    found.draining = found.leases > 0
                    if found.idle:
                        self._stop(found)
            case _:
                pass

    def _rest(self, place: Place) -> None:
        """Nobody uses it: its keep-alive begins, or it leaves."""
        if place.timer:
            place.timer.cancel()
            place.timer = None
        place.expires = None
        if place.child is None or place.stopping:
            return
        if place.draining or place.keep_alive == 0:
            if not self._wanted(place) or place.draining:
                self._stop(place)
            return
        if place.keep_alive > 0:
            loop = asyncio.get_running_loop()
            place.expires = loop.time() + place.keep_alive
            place.timer = loop.call_later(place.keep_alive, self._note, Expired(place))

    def _wanted(self, place: Place) -> bool:
        return any(a.want.key == place.want.key and not a.granted.done() for a in self._waiting)

    def _settle(self) -> None:
        loading = any(p.child is None or p.stopping for p in self._places.values())
        still: list[Asked] = []
        blocked = loading  # one load at a time, and none while a process is on its way out
        for asked in self._waiting:
            if asked.granted.done():
                continue
            place = self._places.get(asked.want.key)
            if place and place.child and not place.draining and not place.stopping and asked.want.fits(place.launch):
                if place.leases < place.launch.slots:
                    self._grant(asked, place)  # 1.
                else:
                    still.append(asked)  # 2.
                continue
            still.append(asked)
            if place and place.child and not place.stopping and not place.draining and not blocked:
                blocked = self._replace(asked, place)  # 3.
            elif place is None and not blocked:
                blocked = self._admit(asked)  # 4.
        self._waiting = [a for a in still if not a.granted.done()]
        for place in list(self._places.values()):
            if place.idle and place.timer is None and place.keep_alive >= 0 and not self._wanted(place):
                self._rest(place)  # it stayed for somebody who then left

    def _grant(self, asked: Asked, place: Place) -> None:
        assert place.engine is not None and place.child is not None
        place.leases += 1
        if place.timer:
            place.timer.cancel()
            place.timer = None
        place.expires = None
        asked.granted.set_result(Lease(place.engine, place.launch.num_ctx, place.child.pid, place))

    def _drain(self, place: Place) -> None:
        place.draining = True
        if place.idle:
            self._stop(place)

    def _replace(self, asked: Asked, place: Place) -> bool:
        """Let a runner go that must be started otherwise, unless that could not be; True when it goes."""
        _, _, decision = self._decide(asked.want, place.launch)
        if decision.action == "refuse":
            return self._refuse(asked, decision)
        self._log.debug("a runner must start otherwise", model=asked.want.name, slots=place.launch.slots, num_ctx=place.launch.num_ctx)
        for one in self._waiting:
            if one.want.key == asked.want.key:
                one.before = place.launch  # whoever waits goes on from there; who comes when they have left does not
        self._drain(place)
        return True

    def _admit(self, asked: Asked) -> bool:
        """Act on the decision; True when later requests must not load before this one."""
        want = asked.want
        launch, need, decision = self._decide(want, asked.before)
        if decision.action == "refuse":
            return self._refuse(asked, decision)
        for key in decision.evict:
            if not self._places[key].draining and not self._places[key].stopping:
                held = self._places[key]
                self._log.debug(
                    "a model leaves for another", model=held.want.name, size=held.size, idle=held.idle, to=want.name, why=decision.reason
                )
            self._drain(self._places[key])
        if decision.action == "load" and not decision.evict:
            place = Place(want, replace(launch, slots=decision.slots), need.size(decision.slots), keep_alive=self._settings.keep_alive)
            self._log.info("loading a model", model=want.name, why=decision.reason, slots=decision.slots, num_ctx=launch.num_ctx)
            self._log.debug(
                "how it loads", model=want.name, size=place.size, weights=want.size, slot=need.slot, waiting=self.waiting,
                num_batch=launch.num_batch, num_thread=launch.num_thread, num_gpu=launch.num_gpu, adapter=want.adapter is not None,
            )  # fmt: skip
            self._places[want.key] = place
            self._task(self._load(place), "load")
        return True

    def _decide(self, want: Want, before: Launch | None) -> tuple[Launch, eviction.Need, eviction.Decision]:
        """How a runner for this would start, what that takes, and whether it may. Changes nothing."""
        launch = want.launch(before, self._defaults(want))
        need = eviction.Need(want.size, launch.num_ctx * want.kv_bytes, launch.slots)
        held = [
            eviction.Held(p.want.key, p.size, p.idle, math.inf if p.expires is None else p.expires, p.used) for p in self._places.values()
        ]
        return launch, need, eviction.decide(need, held, self._look().available, self._most)

    def _refuse(self, asked: Asked, decision: eviction.Decision) -> bool:
        self._log.debug("no room for a model", model=asked.want.name, why=decision.reason)
        asked.granted.set_exception(OutOfMemory(f"{decision.reason}; unload other models, or ask for a smaller num_ctx"))
        return False

    def _defaults(self, want: Want) -> Launch:
        s = self._settings
        cores = self._look().cores
        return Launch(
            engine=want.engine,
            socket="",
            weights=-1,
            slots=self._slots,
            num_ctx=s.context_length if s.context_length > 0 else DEFAULT_CTX,
            num_batch=batch(cores, self._slots),
            num_thread=s.num_thread if s.num_thread > 0 else cores,
            num_gpu=s.num_gpu,
            flash_attention=s.flash_attention,
            kv_cache_type=s.kv_cache_type,
        )

    def _stop(self, place: Place) -> None:
        if place.stopping or place.child is None:
            return
        place.stopping = True
        self._log.debug("a model leaves", model=place.want.name, pid=place.child.pid, size=place.size, waiting=self.waiting)
        self._task(place.child.stop(), "stop")

    async def _load(self, place: Place) -> None:
        weights = adapter = -1
        limit, began = self._settings.load_timeout, time.monotonic()
        try:
            if place.want.weights is not None:
                weights = os.open(place.want.weights, os.O_RDONLY | os.O_CLOEXEC)
            if place.want.adapter is not None:
                adapter = os.open(place.want.adapter, os.O_RDONLY | os.O_CLOEXEC)
            async with asyncio.timeout(limit if limit > 0 else None):
                child = await self._spawn(replace(place.launch, adapter=adapter), weights)
            self._log.debug("a model is loaded", model=place.want.name, pid=child.pid, seconds=f"{time.monotonic() - began:.2f}")
            self._note(Loaded(place, child))
        except TimeoutError:
            self._note(Broke(place, LoadFailed(f"timed out waiting for the runner to start - the model did not load within {limit:.0f} s")))
        except NdaniError as error:
            self._note(Broke(place, error))
        except OSError as error:
            self._note(Broke(place, LoadFailed(f"the model could not be started: {error.strerror}")))
        except Exception as error:  # whatever it was, nobody may wait for this load for ever
            self._note(Broke(place, LoadFailed(f"the model could not be started ({type(error).__name__}); please report it")))
        finally:
            for held in (weights, adapter):
                if held >= 0:
                    os.close(held)

    async def _watch(self, place: Place, child: Child) -> None:
        await child.exited.wait()
        self._note(Gone(place))

    def _task(self, work: Awaitable[None], name: str) -> None:
        async def run() -> None:
            await work

        task = asyncio.create_task(run(), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
