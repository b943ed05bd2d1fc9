"""The pool's records: the models in memory and the leases of their slots. They decide nothing."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import Protocol

from ndani.engines import LaunchOptions
from ndani.engines.client import RunnerClient
from ndani.jail import Confinement
from ndani.runtime.clock import Timer
from ndani.runtime.eviction import EvictionCandidate
from ndani.runtime.spec import RunnerSpec
from ndani.types import Resident

#: A keep-alive above this is for ever: Go's longest duration, in seconds. Its end would be beyond any printable date.
FOREVER = 2**63 / 1e9


def without_end_of_time(keep_alive: float) -> float:
    """A keep-alive in seconds; one that no date can express is negative, as every one for ever."""
    return -1.0 if keep_alive > FOREVER else keep_alive


class RunnerProcess(Protocol):
    """What the pool needs of a runner's process (`runtime.runner.Runner`)."""

    pid: int
    socket: str
    without_template: bool
    media_marker: str
    confinement: Confinement
    exited: asyncio.Event

    async def stop(self) -> None:
        """End the process and reap it; may be called more than once."""
        ...


@dataclass(slots=True, eq=False)
class LoadedModel:
    """A model that is loaded, loading or unloading. Only the pool changes it."""

    spec: RunnerSpec  # of the request for which it was loaded
    options: LaunchOptions
    size: int
    keep_alive: float  # seconds; negative: forever
    runner: RunnerProcess | None = None  # None while it loads
    engine: RunnerClient | None = None
    leases: int = 0
    last_used: float = 0.0
    expires: float | None = None  # by the pool's clock; None: never, or in use
    timer: Timer | None = None
    draining: bool = False  # takes no new leases; stops when the last one is returned
    stopping: bool = False  # its process is being ended, or has ended

    @property
    def ready(self) -> bool:
        """Whether it takes new leases, as far as it has slots."""
        return self.runner is not None and not self.draining and not self.stopping

    @property
    def idle(self) -> bool:
        """Whether it is in memory without a lease."""
        return self.runner is not None and self.leases == 0 and not self.stopping

    def expiry(self, now: float) -> float:
        """When it stops if no other request comes; for a model in use, as if its last answer ended now."""
        if self.expires is not None:
            return self.expires
        return now + self.keep_alive if self.keep_alive >= 0 else math.inf

    def cancel_keep_alive(self) -> None:
        """Stop the timer of the keep-alive."""
        if self.timer:
            self.timer.cancel()
        self.timer = self.expires = None

    def eviction_candidate(self) -> EvictionCandidate:
        """What `eviction.decide` needs to know about this model."""
        return EvictionCandidate(self.spec.key, self.size, self.idle, math.inf if self.expires is None else self.expires, self.last_used)

    def describe(self, now: float, wall: float) -> Resident:
        """This model as listings show it; `now` is the time of the pool's clock, `wall` the time of day."""
        assert self.runner is not None
        expiry, spec, options = self.expiry(now), self.spec, self.options
        expires = None if expiry == math.inf else wall + expiry - now
        leaving, confined = self.stopping or self.draining, self.runner.confinement.status
        return Resident(
            spec.name, spec.digest, self.size, 0, spec.details, options.num_ctx, options.slots, expires, leaving, self.runner.pid, confined
        )


@dataclass(slots=True, eq=False)
class Lease:
    """The right to use one slot of one runner until the block is left."""

    engine: RunnerClient
    num_ctx: int  # of the slot
    model: LoadedModel = field(repr=False)
    waited_ns: int = 0
