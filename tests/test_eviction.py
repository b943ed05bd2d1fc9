"""Who leaves memory: a pure decision."""

from __future__ import annotations

import pytest

from ndani.runtime.eviction import RUNNER_OVERHEAD, USABLE_SHARE, Decision, EvictionCandidate, MemoryNeed, available_within, decide

MB = 2**20
NEED = MemoryNeed(weights=100 * MB, slot=10 * MB, slots=4)


def free(size: int) -> int:
    """So much is available that exactly `size` bytes may be taken."""
    return int(size / USABLE_SHARE) + 2


def held(key: str, megabytes: int = 200, *, idle: bool = True, expires: float = 100, used: float = 0) -> EvictionCandidate:
    return EvictionCandidate(key, megabytes * MB, idle, expires, used)


def action(decision: Decision) -> tuple[str, int, tuple[str, ...]]:
    assert decision.reason
    return decision.action, decision.slots, decision.evict


def test_where_there_is_room_nobody_leaves() -> None:
    assert action(decide(NEED, [held("a")], free(NEED.size(4)), 3)) == ("load", 4, ())
    assert NEED.size(4) == 140 * MB + RUNNER_OVERHEAD


def test_one_byte_short_costs_a_slot_when_nobody_can_leave() -> None:
    assert action(decide(NEED, [], free(NEED.size(4)) - 3, 3)) == ("load", 3, ())
    assert action(decide(NEED, [], free(NEED.size(1)), 3)) == ("load", 1, ())


def test_idle_models_leave_before_slots_are_lost() -> None:
    assert action(decide(NEED, [held("a", 10)], free(NEED.size(4)) - 3, 3)) == ("load", 4, ("a",))


def test_the_one_that_would_expire_first_leaves_and_no_more_than_needed() -> None:
    here = [held("late", expires=900), held("soon", expires=5), held("never", expires=float("inf")), held("busy", idle=False, expires=0)]
    decision = decide(NEED, here, free(NEED.size(4) - 200 * MB), 9)
    assert action(decision) == ("load", 4, ("soon",))


def test_of_equals_the_one_used_longest_ago_leaves() -> None:
    here = [held("new", used=2), held("old", used=1)]
    assert decide(NEED, here, 2**40, 2).evict == ("old",)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_no_more_models_than_allowed(most: int) -> None:
    here = [held(str(n), expires=n) for n in range(most)]
    assert decide(NEED, here, 2**40, most).evict == ("0",)
    assert decide(NEED, here[1:], 2**40, most).evict == ()


def test_busy_models_are_waited_for_only_when_idle_ones_do_not_do() -> None:
    assert action(decide(NEED, [held("busy", 300, idle=False)], 0, 3)) == ("wait", 0, ("busy",))
    assert action(decide(NEED, [held("busy", 300, idle=False), held("idle", 300)], 0, 3)) == ("load", 4, ("idle",))
    assert action(decide(NEED, [held("busy", idle=False)], 2**40, 1)) == ("wait", 0, ("busy",))


def test_the_soonest_of_the_busy_drains() -> None:
    here = [held("b", idle=False, used=2), held("a", idle=False, used=1)]
    assert decide(NEED, here, 2**40, 2).evict == ("a",)


def test_what_can_never_fit_is_refused_with_figures() -> None:
    decision = decide(MemoryNeed(8 * 10**9, 10**9, 4), [held("a"), held("b", idle=False)], 10**9, 3)
    assert action(decision) == ("refuse", 0, ())
    assert "needs 9.1 GB of memory with one slot, 7.8 GB more than this machine can free" in decision.reason


def test_a_limit_of_our_own_holds_for_all_models_together() -> None:
    held_now = [held("a", 200), held("b", 200, expires=200)]

    def within(megabytes: int) -> tuple[str, int, tuple[str, ...]]:
        limit = megabytes * MB + RUNNER_OVERHEAD + 2
        return action(decide(NEED, held_now, available_within(limit, held_now), 9))

    assert within(540) == ("load", 4, ())
    assert within(539) == ("load", 4, ("a",))
    assert within(139) == ("load", 3, ("a", "b")), "both leave, and one slot is lost"
    assert within(109)[0] == "refuse", "also where those in memory take more than it"
