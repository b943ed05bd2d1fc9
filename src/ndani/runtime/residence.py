"""What the pool deals in: a Want (a model, and what a request needs of it), a Place (a model in memory), a Lease.

Values and arithmetic only; who gets what and when is `pool.py`.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from ndani.engines import Launch
from ndani.engines.client import Engine
from ndani.jail import Confinement
from ndani.types import Details, Resident

DEFAULT_CTX = 4096
#: Behind the key of a model that speaks, when it is asked for vectors: the engine does one or the other.
VECTORS = "/vectors"
LEAST_CTX = 4


def batch(cores: int, slots: int) -> int:
    """Prompt tokens that an engine reads between two looks at whether its client is still there.

    A small model reads about 120 tokens a second per core, and a hang-up can wait for two batches: 32 per core keep
    that near half a second, for a tenth less prompt speed than 256. llama.cpp aborts with fewer than its slots.
    """
    return max(min(32 * cores, 256), slots)


class Child(Protocol):
    """A runner process, as the pool needs it (`runtime.runner.Runner`)."""

    pid: int
    socket: str
    confinement: Confinement
    exited: asyncio.Event

    async def stop(self) -> None:
        """End it and reap it; may be called more than once."""
        ...


@dataclass(frozen=True, slots=True)
class Want:
    """A model and what one request needs of its runner. `None`: the request does not mind.

    `key` says which runners are the same (the digests of the weights and of the adapter over them), `size` is the bytes
    of those files, `kv_bytes` is one token of context, in bytes.
    """

    key: str
    name: str
    digest: str
    details: Details
    weights: Path | None
    size: int
    kv_bytes: int
    trained_ctx: int
    engine: str = "llama"
    adapter: Path | None = None
    num_ctx: int | None = None
    num_batch: int | None = None
    num_thread: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    use_mmap: bool | None = None
    embedding: bool = False
    pooling: str = ""

    def fits(self, launch: Launch) -> bool:
        """Whether a runner launched so can serve this. One that has more context than is needed can (trap 10)."""
        if self.num_ctx is not None and self._capped(self.num_ctx) > launch.num_ctx:
            return False
        if self.num_batch is not None and not self.embedding and max(self.num_batch, 1) != launch.num_batch:
            return False
        said = ("num_thread", "num_gpu", "main_gpu", "use_mmap")
        return all(getattr(self, option) in (None, getattr(launch, option)) for option in said)

    def outdoes(self, other: Want) -> bool:
        """Whether this asks for more context than another request for the same model does."""
        return self.num_ctx is not None and (other.num_ctx is None or other.num_ctx < self.num_ctx)

    def launch(self, before: Launch | None, defaults: Launch) -> Launch:
        """How its runner should start: as asked, else as `before` (the runner it replaces) had it, else `defaults`."""
        old = before or defaults
        num_ctx = self._capped(self.num_ctx if self.num_ctx is not None else old.num_ctx)
        if before is not None and num_ctx > before.num_ctx:
            num_ctx = self._capped(1 << (num_ctx - 1).bit_length())  # to the next power of two, so that it happens once
        elif before is not None:
            num_ctx = before.num_ctx
        said = {
            option: value
            for option in ("num_thread", "num_gpu", "main_gpu", "use_mmap")
            if (value := getattr(self, option)) is not None and not (option == "num_thread" and value <= 0)
        }
        batch = max(self.num_batch, 1) if self.num_batch is not None else old.num_batch
        if self.embedding and not self.pooling:
            batch = max(batch, num_ctx)  # each token looks at all others: a text is read in one go, or not at all
        old = replace(old, embedding=self.embedding, pooling=self.pooling)
        return replace(old, engine=self.engine, num_ctx=num_ctx, num_batch=batch, slots=defaults.slots, **said)

    def _capped(self, num_ctx: int) -> int:
        return max(LEAST_CTX, min(num_ctx, self.trained_ctx) if self.trained_ctx else num_ctx)


@dataclass(slots=True)
class Place:
    """A model in memory, or on its way in or out. Only the pool's owner changes one."""

    want: Want
    launch: Launch
    size: int
    child: Child | None = None  # None while it loads
    engine: Engine | None = None
    leases: int = 0
    keep_alive: float = 0.0
    used: float = 0.0
    expires: float | None = None  # a loop time; None: never, or in use
    timer: asyncio.TimerHandle | None = None
    draining: bool = False  # no new leases; leaves when the last one returns
    stopping: bool = False

    @property
    def idle(self) -> bool:
        """In memory, and nobody uses it."""
        return self.child is not None and self.leases == 0 and not self.stopping

    def until(self, now: float) -> float:
        """The loop time at which it leaves if nothing more is asked; in use: if its last answer ended now."""
        if self.expires is not None:
            return self.expires
        return now + self.keep_alive if self.keep_alive >= 0 else math.inf

    def shown(self, now: float, wall: float) -> Resident:
        """What is listed of it; `now` and `wall` are this moment by the loop's clock and by the wall's."""
        assert self.child is not None
        until, want, launch = self.until(now), self.want, self.launch
        expires = None if until == math.inf else wall + until - now
        leaving, confined = self.stopping or self.draining, self.child.confinement.word
        return Resident(
            want.name, want.digest, self.size, 0, want.details, launch.num_ctx, launch.slots, expires, leaving, self.child.pid, confined
        )


@dataclass(slots=True, eq=False)
class Lease:
    """The right to use one slot of one runner until the block is left."""

    engine: Engine
    num_ctx: int  # of the slot
    pid: int
    place: Place = field(repr=False)
    waited_ns: int = 0
