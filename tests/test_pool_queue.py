"""The pool's rules for a full queue and for a load that fails, each by its number. No process, and nobody waits for a clock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ndani.errors import BadRequest, Busy, LoadFailed, NdaniError, Unconfined
from ndani.runtime.pool import QUEUE_FULL
from pools import MORE, ONE, OTHER, Begin, turns

# ---------------------------------------------------------------- 6. the queue


async def test_rule_6_the_queue_is_bounded_and_says_so(bench: Begin) -> None:
    b = bench(max_queue=2, num_parallel=1)
    first, *waiting, refused = [await b.ask() for _ in range(4)]
    assert isinstance(refused.error, Busy)
    assert str(refused.error) == QUEUE_FULL
    assert b.pool.waiting == 2
    assert "the queue is full model=one waiting=2" in b.log.getvalue()
    await waiting[0].leave()
    assert (await b.ask()).waits, "who has left makes room"
    await first.done()
    assert b.served == [first, waiting[1]]
    assert (await b.ask()).error is None


@pytest.mark.parametrize("ready", [True, False])
async def test_rule_6_whose_slot_is_coming_does_not_count(bench: Begin, ready: bool) -> None:
    b = bench(max_queue=0, num_parallel=2, ready=ready)
    clients = [b.ask_at_once() for _ in range(3)]  # in one turn: nothing is loaded yet
    await turns()
    assert [client.error is None for client in clients] == [True, True, False]
    assert isinstance(clients[2].error, Busy)
    assert (await b.ask(OTHER)).error is None


async def test_rule_6_who_waits_for_another_model_does_not_stand_in_the_way(bench: Begin) -> None:
    b = bench(max_queue=1, num_parallel=1)
    await b.use()
    b.ready = False
    loading, waits = await b.ask(OTHER), await b.ask(OTHER)
    assert loading.waits
    assert waits.waits
    assert isinstance((await b.ask(OTHER)).error, Busy)
    assert (await b.ask(ONE)).lease, "a free slot, although the queue is full"


async def test_rule_6_slots_that_another_model_has_to_spare_are_no_room(bench: Begin) -> None:
    b = bench(max_queue=1, num_parallel=2)
    _, _, waits = [await b.ask() for _ in range(3)]
    b.ready = False
    loading = await b.ask(OTHER)
    assert waits.waits
    assert loading.waits
    assert isinstance((await b.ask()).error, Busy)


async def test_rule_6_a_model_that_is_being_replaced_has_slots_coming(bench: Begin) -> None:
    b = bench(max_queue=0, num_parallel=2)
    busy = await b.ask()
    more, same = await b.ask(MORE), await b.ask()
    assert more.waits
    assert same.waits
    assert isinstance((await b.ask()).error, Busy)
    await busy.done()
    assert more.lease
    assert same.lease


# ---------------------------------------------------------------- 8. a load that fails


@pytest.mark.parametrize("error", [LoadFailed("it is damaged"), Unconfined("no jail here"), BadRequest("no")])
async def test_rule_8_everybody_who_wanted_as_much_or_more_is_told(bench: Begin, error: NdaniError) -> None:
    b = bench(ready=False)
    clients = [await b.ask(MORE), await b.ask(MORE), await b.ask(replace(ONE, num_ctx=4000))]
    less, none, other = await b.ask(ONE), await b.ask(replace(ONE, num_ctx=None)), await b.ask(replace(OTHER, num_ctx=4000))
    b.loads[0].fail(error)
    await turns()
    assert all(type(client.error) is type(error) and str(client.error) == str(error) for client in clients)
    assert len({id(client.error) for client in clients}) == 3, "each has its own"
    assert less.waits
    assert none.waits
    assert other.waits
    assert len(b.loads) == 2
    assert b.loads[1].launch.num_ctx == 1024
    b.loads[1].succeed()
    await turns()
    assert less.lease
    assert none.lease
