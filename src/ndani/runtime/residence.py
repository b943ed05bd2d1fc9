"""What the pool keeps account of: the models in memory, and the leases of their slots. Values only."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import Protocol

from ndani.engines import Launch
from ndani.engines.client import Engine
from ndani.jail import Confinement
from ndani.runtime.clock import Timer
from ndani.runtime.eviction import Held
from ndani.runtime.spec import RunnerSpec
from ndani.types import Resident


class RunnerProcess(Protocol):
    """A runner's process, as the pool needs it (`runtime.runner.Runner`)."""

    pid: int
    socket: str
    confinement: Confinement
    exited: asyncio.Event

    async def stop(self) -> None:
        """End it and reap it; may be called more than once."""
        ...


@dataclass(slots=True, eq=False)
class LoadedModel:
    """A model in memory, or on its way in or out. Only the pool changes one."""

    spec: RunnerSpec  # of the request that it was loaded for
    launch: Launch
    size: int
    keep_alive: float  # seconds; negative: for ever
    runner: RunnerProcess | None = None  # None while it loads
    engine: Engine | None = None
    leases: int = 0
    last_used: float = 0.0
    expires: float | None = None  # by the pool's clock; None: never, or in use
    timer: Timer | None = None
    draining: bool = False  # no new leases; leaves when the last one returns
    stopping: bool = False  # its process is being ended, or has ended

    @property
    def ready(self) -> bool:
        """It takes new leases, as far as it has slots."""
        return self.runner is not None and not self.draining and not self.stopping

    @property
    def idle(self) -> bool:
        """In memory, and nobody uses it."""
        return self.runner is not None and self.leases == 0 and not self.stopping

    def leaves_at(self, now: float) -> float:
        """The moment at which it leaves if nothing more is asked; in use: if its last answer ended now."""
        if self.expires is not None:
            return self.expires
        return now + self.keep_alive if self.keep_alive >= 0 else math.inf

    def stay(self) -> None:
        """Let its keep-alive not run out."""
        if self.timer:
            self.timer.cancel()
        self.timer = self.expires = None

    def held(self) -> Held:
        """What a decision has to know of it."""
        return Held(self.spec.key, self.size, self.idle, math.inf if self.expires is None else self.expires, self.last_used)

    def describe(self, now: float, wall: float) -> Resident:
        """What is listed of it; `now` and `wall` are this moment by the pool's clock and by the wall's."""
        assert self.runner is not None
        leaves_at, spec, launch = self.leaves_at(now), self.spec, self.launch
        expires = None if leaves_at == math.inf else wall + leaves_at - now
        leaving, confined = self.stopping or self.draining, self.runner.confinement.status
        return Resident(
            spec.name, spec.digest, self.size, 0, spec.details, launch.num_ctx, launch.slots, expires, leaving, self.runner.pid, confined
        )


@dataclass(slots=True, eq=False)
class Lease:
    """The right to use one slot of one runner until the block is left."""

    engine: Engine
    num_ctx: int  # of the slot
    model: LoadedModel = field(repr=False)
    waited_ns: int = 0
