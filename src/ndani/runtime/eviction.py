"""Who must leave memory so that a model can come: a pure decision over values, with its reason in words.

The pool acts on it; nothing here waits, reads a clock or touches a process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Of the memory that is available, what a new model may take: the rest is for the machine.
SHARE = 0.9

#: What a runner takes beside weights and context: the library, compute buffers, threads.
OVERHEAD = 96 * 2**20


@dataclass(frozen=True, slots=True)
class Need:
    """A model that wants in: bytes of its weights, bytes of one slot's context, and how many slots it would like."""

    weights: int
    slot: int
    slots: int

    def size(self, slots: int) -> int:
        """Bytes with so many slots."""
        return self.weights + slots * self.slot + OVERHEAD


@dataclass(frozen=True, slots=True)
class Held:
    """A model in memory. `expires` and `used` are times (infinite: kept for ever)."""

    key: str
    size: int
    idle: bool
    expires: float
    used: float


@dataclass(frozen=True, slots=True)
class Decision:
    """`load` with so many slots once `evict` have left; `wait` until `evict` are idle and gone; or `refuse`."""

    action: Literal["load", "wait", "refuse"]
    reason: str
    slots: int = 0
    evict: tuple[str, ...] = ()


def decide(need: Need, held: list[Held], available: int, max_models: int) -> Decision:
    """What to do so that `need` gets in, with `available` bytes free now and at most `max_models` in memory.

    1. Idle models leave first, the one that would have expired soonest before the others.
    2. Only then is the new model given fewer slots.
    3. Only then are busy models asked to leave: no new work for them, and the need waits.
    4. What does not fit even alone, with one slot, is refused.
    """
    room = int(available * SHARE)
    leaving = sorted(held, key=lambda h: (not h.idle, h.expires, h.used))
    idle = [h for h in leaving if h.idle]
    busy = [h for h in leaving if not h.idle]
    surplus = max(0, len(held) - max_models + 1)

    # 1. As few idle models as are needed.
    for count in range(surplus, len(idle) + 1):
        if need.size(need.slots) <= room + sum(h.size for h in idle[:count]):
            evict = tuple(h.key for h in idle[:count])
            return Decision("load", _because(evict), need.slots, evict)

    # 2. All idle ones gone: as many slots as fit.
    freed = room + sum(h.size for h in idle)
    if surplus <= len(idle):
        for slots in range(need.slots - 1, 0, -1):
            if need.size(slots) <= freed:
                evict = tuple(h.key for h in idle)
                return Decision("load", f"memory has room for {slots} of {need.slots} slots; {_because(evict)}", slots, evict)

    # 3. Busy ones drain, as few as are needed.
    for count in range(1, len(busy) + 1):
        if count + len(idle) >= surplus and need.size(1) <= freed + sum(h.size for h in busy[:count]):
            evict = tuple(h.key for h in (*idle, *busy[:count]))
            return Decision("wait", f"waiting for {count} busy model(s) to finish", 0, evict)

    # 4.
    short = need.size(1) - freed - sum(h.size for h in busy)
    return Decision(
        "refuse",
        f"this model needs {_gb(need.size(1))} of memory with one slot, {_gb(max(short, 0))} more than this machine can free",
    )


def _because(evict: tuple[str, ...]) -> str:
    return f"{len(evict)} idle model(s) leave" if evict else "there is room"


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
