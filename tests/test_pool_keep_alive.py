"""The pool's seventh rule: how long a model stays that nobody uses. A test says what time it is; nobody waits."""

from __future__ import annotations

import asyncio

import pytest

from pools import MORE, ONE, OTHER, Begin, turns


async def test_rule_7_it_stays_for_its_keep_alive(bench: Begin) -> None:
    b = bench()
    client = await b.ask(keep_alive=30.0)
    await b.advance(100)
    assert b.names() == ["one"], "in use"
    await client.done()
    assert b.stays() == 30
    await b.advance(29.9)
    assert b.names() == ["one"]
    await b.advance(0.1)
    assert b.names() == []
    assert "a keep-alive ran out model=one seconds=30.0" in b.log.getvalue()


@pytest.mark.parametrize(
    ("values", "stays"),
    [
        ([60.0, 10.0], 10),
        ([10.0, 60.0], 60),
        ([60.0, None], 60),
        ([None], 300),
        ([10.0, -1.0], None),
        ([-1.0, None], None),
        ([-1.0, 5.0], 5),
    ],
)
async def test_rule_7_the_value_of_the_last_counts(bench: Begin, values: list[float | None], stays: float | None) -> None:
    b = bench(keep_alive=300.0)
    clients = [await b.ask(keep_alive=value) for value in values]
    for client in clients:
        await client.done()
    assert b.stays() == stays
    clients = [await b.ask(keep_alive=value) for value in values]
    for client in clients:
        client._over.set_result(None)
    await turns()
    assert b.stays() == stays, "also in one turn"
    await b.advance(10**6)
    assert b.names() == (["one"] if stays is None else [])


async def test_rule_7_zero_lets_it_go_when_the_last_one_is_done(bench: Begin) -> None:
    b = bench()
    first, second = await b.ask(keep_alive=0.0), await b.ask(keep_alive=0.0)
    await first.done()
    assert b.names() == ["one"]
    await second.done()
    assert b.names() == []
    assert b.runners[0].told == 1


async def test_rule_7_zero_keeps_it_for_whoever_waits(bench: Begin) -> None:
    b = bench(num_parallel=1)
    first, second = await b.ask(keep_alive=0.0), await b.ask(keep_alive=0.0)
    await first.done()
    assert second.lease
    assert len(b.loads) == 1


async def test_rule_7_zero_keeps_it_for_who_asks_in_the_very_turn(bench: Begin) -> None:
    b = bench()
    first = await b.ask(keep_alive=0.0)
    first._over.set_result(None)
    second = b.ask_at_once()
    await turns()
    assert second.lease
    assert len(b.loads) == 1


@pytest.mark.parametrize("earlier", [True, False])
async def test_rule_7_a_request_in_the_turn_of_the_end_keeps_it(bench: Begin, earlier: bool) -> None:
    b = bench()
    await b.use(keep_alive=30.0)
    client = b.ask_at_once()
    if earlier:
        await asyncio.sleep(0)  # it has asked; else the timer comes before it, as uvloop does it
    b.clock.advance(30)
    await turns()
    assert client.lease
    assert len(b.loads) == 1


async def test_rule_7_a_new_lease_ends_the_running_keep_alive(bench: Begin) -> None:
    b = bench()
    await b.use(keep_alive=30.0)
    client = await b.ask(keep_alive=30.0)
    await b.advance(1000)
    assert b.stays() == 30, "in use: as if its last answer ended now"
    await client.done()
    assert b.stays() == 30
    assert b.names() == ["one"]


async def test_rule_7_it_stays_for_who_waits_for_it_and_begins_anew_when_they_leave(bench: Begin) -> None:
    b = bench()
    await b.use(keep_alive=30.0)
    b.ready = False
    await b.ask(OTHER)
    more = await b.ask(MORE)  # it waits for the load before it may have the runner replaced
    await b.advance(31)
    assert b.names() == ["one"]
    await more.leave()
    assert b.stays() == 30
    await b.advance(30)
    assert b.names() == []


async def test_rule_7_it_begins_also_while_somebody_waits_for_another_runner(bench: Begin) -> None:
    b = bench()
    busy = await b.ask(keep_alive=30.0)
    b.ready = False
    await b.ask(OTHER)
    await b.ask(MORE)
    await busy.done()
    await b.advance(10)
    assert b.stays() == 20


async def test_rule_7_what_was_loaded_for_somebody_who_left_stays_for_the_settings_value(bench: Begin) -> None:
    for seconds, stays in ((300.0, 300), (-1.0, None)):
        b = bench(ready=False, keep_alive=seconds)
        await (await b.ask(keep_alive=5.0)).leave()
        b.loads[0].succeed()
        await turns()
        assert b.stays() == stays
    b = bench(ready=False, keep_alive=0.0)
    await (await b.ask(keep_alive=5.0)).leave()
    b.loads[0].succeed()
    await turns()
    assert b.names() == []
    assert b.runners[0].told == 1


async def test_the_one_that_stays_longest_comes_first(bench: Begin) -> None:
    b = bench()
    assert b.pool.last_to_expire() is None
    await b.use(ONE, 60.0)
    await b.use(OTHER, -1.0)
    assert b.names() == ["other", "one"]
    assert b.pool.last_to_expire() == OTHER
    await b.use(ONE, 30.0)
    busy = await b.ask(OTHER, 10.0)
    assert b.names() == ["other", "one"], "in use: as if its last answer ended now"
    await busy.done()
    assert b.names() == ["one", "other"]
    assert b.pool.last_to_expire() == ONE
    await b.use(ONE, -1.0)
    busy = await b.ask(ONE)
    assert b.pool.last_to_expire() == ONE
    await b.ask(MORE)
    assert b.names() == ["other"]
    assert b.pool.last_to_expire() == OTHER, "one that leaves is not it"
    assert b.pool.runner("one") is b.runners[0]
    assert b.pool.runner("none") is None
