"""The pool's rules 1 to 5, each by its number; those after them have files of their own. No process, and nobody waits for a clock."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from ndani.errors import OutOfMemory
from ndani.runtime import pool as module
from ndani.runtime.eviction import RUNNER_OVERHEAD, USABLE_SHARE
from ndani.runtime.pool import Pool
from pools import MORE, ONE, OTHER, THIRD, Begin, turns

#: What `ONE` takes with all four slots, and one byte of room for rounding.
SIZE = 10**8 + 4 * 1024 * 10**4 + RUNNER_OVERHEAD


def room(size: int) -> int:
    """So much is available that exactly `size` bytes may be taken."""
    return int(size / USABLE_SHARE) + 2


def test_the_docstring_is_true() -> None:
    """Every rule of it has a test, and every method that it names exists."""
    told = module.__doc__ or ""
    rules = set(re.findall(r"^(\d+)\. ", told, re.MULTILINE))
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_pool_*.py"))
    assert rules == set(re.findall(r"^async def test_rule_(\d+)_", tests, re.MULTILINE))
    assert len(rules) > 5
    named = set(re.findall(r"`(_\w+)`", told))
    assert len(named) > 5
    assert all(callable(getattr(Pool, name)) for name in named)
    code = Path(module.__file__).read_text(encoding="utf-8")
    assert rules <= set(re.findall(r"# (?:else )?(\d+)\.", code))


# ---------------------------------------------------------------- 1. a free slot


async def test_rule_1_a_free_slot_is_given_at_once(bench: Begin) -> None:
    b = bench()
    clients = [await b.ask() for _ in range(4)]
    assert b.served == clients
    assert len(b.loads) == 1
    assert {client.lease.num_ctx for client in clients if client.lease} == {1024}


async def test_rule_1_a_free_slot_does_not_queue_behind_a_load(bench: Begin) -> None:
    b = bench(num_parallel=2)
    await b.use()
    b.ready = False
    loading, waits = await b.ask(OTHER), await b.ask(THIRD)
    assert (await b.ask()).lease
    assert loading.waits
    assert waits.waits


async def test_rule_1_less_context_than_the_runner_has_fits(bench: Begin) -> None:
    b = bench()
    await b.use(MORE)
    assert (await b.ask(ONE)).lease
    assert (await b.ask(replace(ONE, num_ctx=None))).lease
    assert len(b.loads) == 1


# ---------------------------------------------------------------- 2. waiting


async def test_rule_2_who_finds_all_slots_taken_waits_and_is_served_in_order(bench: Begin) -> None:
    b = bench(num_parallel=1)
    clients = [await b.ask() for _ in range(4)]
    assert b.served == clients[:1]
    assert b.pool.waiting == 3
    for client in clients:
        await client.done()
    assert b.served == clients
    assert len(b.loads) == 1
    assert b.pool.waiting == 0


async def test_rule_2_who_comes_while_the_model_loads_waits_for_that_load(bench: Begin) -> None:
    b = bench(ready=False)
    clients = [await b.ask() for _ in range(3)]
    assert len(b.loads) == 1
    assert b.served == []
    b.clock.advance(2.5)
    b.loads[0].succeed()
    await turns()
    assert b.served == clients
    assert [client.lease.waited_ns for client in clients if client.lease] == [2_500_000_000] * 3
    assert "a model is loaded model=one pid=1 seconds=2.50" in b.log.getvalue()
    assert "a slot is given model=one waited_ms=2500 waiting=0" in b.log.getvalue()


async def test_rule_2_who_comes_while_the_model_leaves_waits_and_loads_it_again(bench: Begin) -> None:
    b = bench(quick=False)
    await b.use(keep_alive=0.0)
    client = await b.ask()
    assert client.waits
    assert b.names() == []
    b.runners[0].exit()
    await turns()
    assert client.lease
    assert client.lease.model.runner is b.runners[1]


# ---------------------------------------------------------------- 3. started otherwise


async def test_rule_3_more_context_drains_the_runner_first(bench: Begin) -> None:
    b = bench(num_parallel=2)
    busy = await b.ask()
    more, same = await b.ask(MORE), await b.ask()
    assert more.waits, "no new leases, though a slot is free"
    assert same.waits, "no new leases, though a slot is free"
    assert [(r.stopping, r.context_length) for r in b.pool.residents()] == [(True, 1024)]
    assert b.runners[0].told == 0
    await busy.done()
    assert b.runners[0].told == 1
    assert b.served == [busy, more, same], "the runner with more context serves both"
    assert [load.launch.num_ctx for load in b.loads] == [1024, 2048], "to the next power of two"
    assert "a runner must start otherwise model=one slots=2 num_ctx=1024" in b.log.getvalue()


async def test_rule_3_what_cannot_fit_even_then_is_refused_and_the_runner_stays(bench: Begin) -> None:
    b = bench(available=room(SIZE))
    busy = await b.ask()
    b.available = 0
    refused = await b.ask(replace(ONE, num_ctx=8192, kv_bytes=10**6))
    assert isinstance(refused.error, OutOfMemory)
    assert str(refused.error).startswith("this model needs 8.4 GB of memory with one slot, ")
    assert str(refused.error).endswith(" more than this machine can free; unload other models, or ask for a smaller num_ctx")
    assert (await b.ask()).lease
    assert busy.error is None
    assert b.runners[0].told == 0


async def test_rule_3_whoever_waits_goes_on_from_the_runner_that_left(bench: Begin) -> None:
    b = bench(num_thread=1)
    await b.use(replace(ONE, num_thread=3))
    await b.use(MORE)
    assert [(load.launch.num_ctx, load.launch.num_thread) for load in b.loads] == [(1024, 3), (2048, 3)]


async def test_rule_3_also_who_stays_when_the_one_it_was_for_has_left(bench: Begin) -> None:
    b = bench(num_thread=1)
    busy = await b.ask(replace(ONE, num_thread=3))
    more, stays, other = b.ask_at_once(MORE), b.ask_at_once(replace(ONE, num_ctx=None)), b.ask_at_once(OTHER)
    await turns()
    await more.leave()
    await busy.done()
    assert stays.lease
    assert other.lease
    assert stays.lease.num_ctx == 1024
    assert {load.launch.num_thread for load in b.loads[1:] if load.launch.num_ctx == 1024} == {3, 1}, "one of them goes on, one begins"
    assert other.lease.model.options.num_thread == 1
    assert stays.lease.model.options.num_thread == 3


async def test_rule_3_what_it_would_take_is_reckoned_from_the_runner_that_goes(bench: Begin) -> None:
    b = bench(available=room(SIZE), context_length=8192, quick=False)
    await b.use()
    b.available = 0
    client = await b.ask(replace(ONE, num_ctx=None, num_thread=1))  # 8192 would be too much, and nobody asks for them
    assert client.waits
    assert b.runners[0].told == 1
    b.available = room(SIZE)
    b.runners[0].exit()
    await turns()
    assert client.lease
    assert client.lease.num_ctx == 1024


async def test_rule_3_who_comes_when_those_have_left_does_not(bench: Begin) -> None:
    b = bench(num_thread=1, quick=False)
    await b.use(replace(ONE, num_thread=3))
    await (await b.ask(MORE)).leave()
    b.runners[0].exit()
    await turns()
    await b.use(replace(ONE, num_ctx=512))
    assert [(load.launch.num_ctx, load.launch.num_thread) for load in b.loads] == [(1024, 3), (512, 1)]


# ---------------------------------------------------------------- 4. who is not there


async def test_rule_4_where_there_is_room_it_is_loaded_beside_the_others(bench: Begin) -> None:
    b = bench()
    await b.use()
    await b.use(OTHER)
    assert sorted(b.names()) == ["one", "other"]
    assert all(runner.told == 0 for runner in b.runners)
    assert 'info loading a model model=other why="there is room" slots=4 num_ctx=1024' in b.log.getvalue()


async def test_rule_4_of_the_idle_the_one_that_expires_first_leaves(bench: Begin) -> None:
    b = bench(max_loaded_models=2)
    await b.use(ONE, 600.0)
    await b.use(OTHER, 60.0)
    await b.use(THIRD)
    assert sorted(b.names()) == ["one", "third"]
    assert [runner.told for runner in b.runners] == [0, 1, 0]
    line = f'a model leaves for another model=other size={SIZE} idle=True to=third why="1 idle model(s) leave"'
    assert line in b.log.getvalue()


async def test_rule_4_one_that_expires_leaves_before_one_that_is_kept_for_ever(bench: Begin) -> None:
    b = bench(max_loaded_models=2)
    await b.use(ONE, -1.0)
    await b.use(OTHER, 600.0)
    await b.use(THIRD)
    assert sorted(b.names()) == ["one", "third"]


async def test_rule_4_of_those_kept_for_ever_the_one_used_longest_ago_leaves(bench: Begin) -> None:
    b = bench(max_loaded_models=2)
    for spec in (ONE, OTHER, ONE):
        await b.use(spec, -1.0)
        b.clock.advance(1)
    await b.use(THIRD)
    assert sorted(b.names()) == ["one", "third"]


async def test_rule_4_a_busy_model_drains_and_who_needs_its_memory_waits(bench: Begin) -> None:
    b = bench(max_loaded_models=1)
    busy = await b.ask()
    other = await b.ask(OTHER)
    late = await b.ask(ONE)
    assert other.waits
    assert late.waits
    assert b.names() == []
    assert b.runners[0].told == 0
    await busy.done()
    assert b.served == [busy, other]
    assert b.names() == []
    await other.done()
    assert b.served == [busy, other, late]
    assert b.log.getvalue().count("a model leaves for another model=one") == 1, "said once, however often it is decided"


async def test_rule_4_what_can_never_fit_is_refused(bench: Begin) -> None:
    b = bench(available=10**8)
    refused = await b.ask()
    assert str(refused.error) == (
        "this model needs 0.2 GB of memory with one slot, 0.1 GB more than this machine can free; "
        "unload other models, or ask for a smaller num_ctx"
    )
    assert isinstance(refused.error, OutOfMemory)
    assert b.loads == []
    assert "no room for a model model=one why=" in b.log.getvalue()
    b.available = room(SIZE)
    await b.use()


async def test_rule_4_short_memory_takes_slots(bench: Begin) -> None:
    b = bench(available=room(SIZE - 2 * 1024 * 10**4))
    clients = [await b.ask() for _ in range(3)]
    assert b.loads[0].launch.slots == 2
    assert b.served == clients[:2]
    assert (b.pool.residents()[0].slots, b.pool.residents()[0].size) == (2, SIZE - 2 * 1024 * 10**4)


# ---------------------------------------------------------------- 5. one load at a time


async def test_rule_5_one_load_at_a_time_in_the_order_of_asking(bench: Begin) -> None:
    b = bench(ready=False)
    clients = [await b.ask(spec) for spec in (ONE, OTHER, THIRD)]
    for count in (1, 2, 3):
        assert len(b.loads) == count
        b.loads[-1].succeed()
        await turns()
    assert b.served == clients


async def test_rule_5_nothing_is_loaded_while_a_process_is_on_its_way_out(bench: Begin) -> None:
    b = bench(quick=False)
    await b.use(keep_alive=0.0)
    other = await b.ask(OTHER)
    assert other.waits
    assert len(b.loads) == 1
    b.runners[0].exit()
    await turns()
    assert other.lease


async def test_rule_5_nothing_is_loaded_before_those_that_make_room_have_left(bench: Begin) -> None:
    b = bench(quick=False, max_loaded_models=1)
    await b.use()
    other = await b.ask(OTHER)
    assert other.waits
    assert len(b.loads) == 1
    assert b.runners[0].told == 1
    b.runners[0].exit()
    await turns()
    assert other.lease


async def test_rule_5_what_nobody_wants_any_more_leaves_before_others_load(bench: Begin) -> None:
    b = bench(quick=False, ready=False, keep_alive=0.0)
    gone, other = await b.ask(), await b.ask(OTHER)
    await gone.leave()
    b.loads[0].succeed()
    await turns()
    assert b.runners[0].told == 1
    assert other.waits
    assert len(b.loads) == 1


async def test_rule_5_nobody_loads_before_an_earlier_request_that_has_a_runner_replaced(bench: Begin) -> None:
    b = bench()
    await b.ask()
    more, other = b.ask_at_once(MORE), b.ask_at_once(OTHER)
    await turns()
    assert more.waits
    assert other.waits
    assert len(b.loads) == 1


async def test_rule_5_a_runner_is_not_replaced_while_another_model_loads(bench: Begin) -> None:
    b = bench()
    await b.use()
    b.ready = False
    await b.ask(OTHER)
    more = await b.ask(MORE)
    assert more.waits
    assert b.names() == ["one"]
    b.loads[1].succeed()
    await turns()
    b.loads[2].succeed()
    await turns()
    assert more.lease
    assert b.runners[0].told == 1


async def test_rule_5_nobody_loads_before_an_earlier_request_that_waits_for_room(bench: Begin) -> None:
    b = bench(available=room(SIZE))
    busy = await b.ask()
    b.available = room(0)
    large, small = await b.ask(OTHER), await b.ask(replace(THIRD, size=0, kv_bytes=0))
    b.available = room(RUNNER_OVERHEAD)  # enough for the small one
    await b.ask(replace(THIRD, key="fourth", size=0, kv_bytes=0))
    assert large.waits
    assert small.waits
    assert len(b.loads) == 1
    b.available = 10 * room(SIZE)
    await busy.done()
    assert b.served[1:3] == [large, small]


async def test_rule_5_who_is_refused_blocks_nobody(bench: Begin) -> None:
    b = bench(ready=False, available=room(SIZE))
    await b.ask(THIRD)
    refused, other = await b.ask(replace(ONE, size=10**15)), await b.ask(OTHER)
    b.available = 10 * room(SIZE)
    b.loads[0].succeed()
    await turns()
    assert isinstance(refused.error, OutOfMemory)
    assert len(b.loads) == 2
    assert other.waits
