"""Which models must be evicted so that another can load: a pure decision over values, with its reason as text.

The pool carries it out; nothing here waits, reads a clock or touches a process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: The share of the available memory that a new model may take: the rest is for the system.
USABLE_SHARE = 0.9

#: Bytes that a runner needs besides weights and context: the library, compute buffers, threads.
RUNNER_OVERHEAD = 96 * 2**20


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What a model needs to load: bytes of its weights, bytes of one slot's context, and how many slots it should have."""

    weights: int
    slot: int
    slots: int

    def size(self, slots: int) -> int:
        """Bytes of memory with this number of slots."""
        return self.weights + slots * self.slot + RUNNER_OVERHEAD


@dataclass(frozen=True, slots=True)
class EvictionCandidate:
    """A model in memory. `expires` and `last_used` are times (infinite: kept forever)."""

    key: str
    size: int
    idle: bool
    expires: float
    last_used: float


@dataclass(frozen=True, slots=True)
class Decision:
    """`load` with `slots` slots once `evict` are unloaded; `wait` until `evict` are idle and unloaded; or `refuse`."""

    action: Literal["load", "wait", "refuse"]
    reason: str
    slots: int = 0
    evict: tuple[str, ...] = ()


def decide(need: MemoryNeed, candidates: list[EvictionCandidate], available: int, max_models: int) -> Decision:
    """What to do so that a model with this `need` can load, with `available` bytes free now and at most `max_models` in memory.

    1. Idle models are evicted first, those that expire soonest before the others.
    2. If that is not enough, the new model gets fewer slots.
    3. If that is not enough, busy models are drained: they take no new requests, and the new model waits.
    4. A model that would not fit even alone, with one slot, is refused.
    """
    room = int(available * USABLE_SHARE)
    by_priority = sorted(candidates, key=lambda candidate: (not candidate.idle, candidate.expires, candidate.last_used))
    idle = [candidate for candidate in by_priority if candidate.idle]
    busy = [candidate for candidate in by_priority if not candidate.idle]
    excess = max(0, len(candidates) - max_models + 1)

    # 1. Evict as few idle models as possible.
    for count in range(excess, len(idle) + 1):
        if need.size(need.slots) <= room + sum(candidate.size for candidate in idle[:count]):
            evict = tuple(candidate.key for candidate in idle[:count])
            return Decision("load", _evict_reason(evict), need.slots, evict)

    # 2. Evict all idle models, and use as many slots as fit.
    freed = room + sum(candidate.size for candidate in idle)
    if excess <= len(idle):
        for slots in range(need.slots - 1, 0, -1):
            if need.size(slots) <= freed:
                evict = tuple(candidate.key for candidate in idle)
                return Decision("load", f"memory has room for {slots} of {need.slots} slots; {_evict_reason(evict)}", slots, evict)

    # 3. Drain as few busy models as possible.
    for count in range(1, len(busy) + 1):
        if count + len(idle) >= excess and need.size(1) <= freed + sum(candidate.size for candidate in busy[:count]):
            evict = tuple(candidate.key for candidate in (*idle, *busy[:count]))
            return Decision("wait", f"waiting for {count} busy model(s) to finish", 0, evict)

    # 4. Refuse.
    missing = need.size(1) - freed - sum(candidate.size for candidate in busy)
    return Decision(
        "refuse",
        f"this model needs {_gb(need.size(1))} of memory with one slot, {_gb(max(missing, 0))} more than this machine can free",
    )


def available_within(limit: int, candidates: list[EvictionCandidate]) -> int:
    """The free memory of a machine that would leave just this much for all models: what `decide` takes its share of.

    It is below 0 where those in memory take more than that.
    """
    return int((limit - sum(candidate.size for candidate in candidates)) / USABLE_SHARE)


def _evict_reason(evict: tuple[str, ...]) -> str:
    return f"{len(evict)} idle model(s) leave" if evict else "there is room"


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
