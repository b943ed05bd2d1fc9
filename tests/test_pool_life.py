"""What ends in the pool, and when: clients that leave, runners that die, unloading, closing, loads that come to nothing.

With runners, memory and time that the test commands. No process, and no waiting.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from ndani.errors import EngineFailed, Failed, LoadFailed, OutOfMemory
from ndani.runtime.spec import EMBEDDING_KEY_SUFFIX
from pools import ONE, OTHER, THIRD, Begin, Client, turns

# ---------------------------------------------------------------- clients that leave


async def test_who_leaves_the_queue_makes_way(bench: Begin) -> None:
    b = bench(num_parallel=1)
    first, second, third = [await b.ask() for _ in range(3)]
    await second.leave()
    assert second.task.cancelled()
    assert b.pool.waiting == 1
    await first.done()
    assert b.served == [first, third]


async def test_who_leaves_while_his_model_loads_leaves_it_to_the_next(bench: Begin) -> None:
    b = bench(ready=False)
    await (await b.ask()).leave()
    assert b.pool.waiting == 0
    assert len(b.loads) == 1
    client = await b.ask()
    b.loads[0].succeed()
    await turns()
    assert client.lease
    assert len(b.loads) == 1


@pytest.mark.parametrize("late", range(8))
async def test_who_leaves_about_the_moment_of_his_grant_gives_the_slot_back(bench: Begin, late: int) -> None:
    b = bench(num_parallel=1)
    first = await b.ask()
    leaves, stays = await b.ask(), await b.ask()
    first._over.set_result(None)
    await turns(late)  # from "the first is not even done" to "the second computes"
    await leaves.leave()
    assert leaves.task.cancelled()
    assert stays.lease
    await stays.done()
    assert stays.lease.model.leases == 0
    assert b.stays() == 60


async def test_the_grant_that_meets_a_client_who_left_is_one_of_those_moments(bench: Begin) -> None:
    moments = []
    for late in range(8):
        b = bench(num_parallel=1)
        first, leaves = await b.ask(), await b.ask()
        first._over.set_result(None)
        await turns(late)
        granted = next(iter(b.pool._models.values())).leases == 1 and b.pool.waiting == 0
        moments.append((granted, leaves.lease is not None))
        await leaves.leave()
    assert {(False, False), (True, False), (True, True)} == set(moments)


async def test_who_leaves_before_he_is_heard_leaves_nothing(bench: Begin) -> None:
    b = bench()
    client = b.ask_at_once()
    await asyncio.sleep(0)  # it stands in the queue, and nothing has been decided yet
    await client.leave()
    assert client.task.cancelled()
    assert b.loads == []
    assert b.pool.waiting == 0


async def test_who_leaves_in_the_middle_of_his_answer_gives_the_slot_back(bench: Begin) -> None:
    b = bench(num_parallel=1)
    client, waits = await b.ask(keep_alive=7.0), await b.ask(keep_alive=None)
    await client.leave()
    assert client.task.cancelled()
    assert waits.lease
    await waits.done()
    assert b.stays() == 7


async def test_who_leaves_in_the_moment_of_a_refusal_is_not_told(bench: Begin) -> None:
    b = bench(ready=False)
    client = await b.ask()
    b.loads[0].fail(LoadFailed("no"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # the load's end is reported; the next turn refuses the client
    client.task.cancel()
    await turns()
    assert client.task.cancelled()
    assert b.pool.waiting == 0


# ---------------------------------------------------------------- runners that die


async def test_a_runner_that_dies_idle_is_forgotten_and_replaced(bench: Begin) -> None:
    b = bench()
    await b.use(keep_alive=30.0)
    b.runners[0].exit()
    await turns()
    assert b.pool.residents() == []
    assert "warn a runner died model=one pid=1" in b.log.getvalue()
    client = await b.ask(keep_alive=-1.0)
    await b.advance(30)  # the keep-alive of the one that died
    await client.done()
    assert b.names() == ["one"]
    assert b.runners[1].told == 0
    assert "a keep-alive ran out" not in b.log.getvalue()


async def test_a_runner_that_dies_at_work_takes_nobody_elses_slots_with_it(bench: Begin) -> None:
    b = bench(num_parallel=2)
    first, second, waits = [await b.ask() for _ in range(3)]
    b.runners[0].exit()
    await turns()
    assert waits.lease
    assert waits.lease.model.runner is b.runners[1]
    await first.broken(EngineFailed("it went away"))
    await second.done()
    assert isinstance(first.error, EngineFailed)
    assert waits.lease.model.leases == 1
    await b.advance(1000)
    assert [runner.told for runner in b.runners] == [0, 0]
    assert "a keep-alive ran out" not in b.log.getvalue()


async def test_nobody_is_sent_to_a_runner_whose_answer_broke(bench: Begin) -> None:
    b = bench(num_parallel=2, quick=False)
    first, second = await b.ask(), await b.ask()
    await first.broken(EngineFailed("it went away"))
    late = await b.ask()
    assert late.waits
    assert b.runners[0].told == 0, "the other answer may still end well"
    await second.done()
    assert late.waits
    assert b.runners[0].told == 1
    b.runners[0].exit()
    await turns()
    assert late.lease
    assert late.lease.model.runner is b.runners[1]
    assert "a runner died" not in b.log.getvalue()


async def test_an_answer_that_fails_otherwise_costs_no_runner(bench: Begin) -> None:
    b = bench()
    await (await b.ask()).broken(OutOfMemory("a client's own fault"))
    assert (await b.ask()).lease
    assert len(b.loads) == 1


# ---------------------------------------------------------------- unloading


async def test_an_idle_model_is_unloaded_at_once_and_its_vectors_with_it(bench: Begin) -> None:
    b = bench()
    for spec in (ONE, replace(ONE, key=ONE.key + EMBEDDING_KEY_SUFFIX), OTHER):
        await b.use(spec, -1.0)
    b.pool.unload("one")
    b.pool.unload("nobody")
    await turns()
    assert b.names() == ["other"]


async def test_a_busy_model_is_unloaded_when_it_is_done_and_takes_no_new_work(bench: Begin) -> None:
    b = bench()
    busy = await b.ask(keep_alive=None)
    b.pool.unload("one")
    late = await b.ask()
    assert late.waits
    assert b.names() == []
    assert b.runners[0].told == 0
    await busy.done()
    assert b.runners[0].told == 1
    assert late.lease
    assert late.lease.model.runner is b.runners[1]


async def test_a_model_that_is_unloaded_while_it_loads_serves_who_waits_and_goes(bench: Begin) -> None:
    b = bench(ready=False)
    client = await b.ask(keep_alive=None)
    b.pool.unload("one")
    b.loads[0].succeed()
    await turns()
    assert client.lease
    await client.done()
    assert b.names() == []


async def test_a_model_is_unloaded_by_the_name_that_it_was_loaded_by(bench: Begin) -> None:
    b = bench()
    await b.use(replace(ONE, name="Hub/One:latest"))
    b.pool.unload_by_name("one")
    await turns()
    assert len(b.names()) == 1
    b.pool.unload_by_name("hub/ONE:latest")
    await turns()
    assert b.names() == []


# ---------------------------------------------------------------- closing


async def test_closing_ends_every_wait_every_load_and_every_runner(bench: Begin) -> None:
    b = bench(num_parallel=1)
    busy, waits = await b.ask(), await b.ask()
    b.ready = False
    loading = await b.ask(OTHER)
    await b.pool.close()
    assert b.pool.closing
    assert b.pool.residents() == []
    assert b.runners[0].told >= 1
    assert b.loads[1].result.cancelled()
    for client in (waits, loading, await b.ask(THIRD)):
        assert isinstance(client.error, Failed)
        assert str(client.error) == "the server is stopping"
    assert len(b.loads) == 2
    assert "a runner died" not in b.log.getvalue()
    await busy.broken(EngineFailed("it went away"))


async def test_a_load_that_ends_although_it_was_told_not_to_leaves_no_runner(bench: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench(ready=False)
    spawn = b.pool._spawn

    async def stubborn(*said: object) -> object:
        return await asyncio.shield(asyncio.ensure_future(spawn(*said)))  # type: ignore[arg-type]

    async def deaf(*said: object) -> object:
        try:
            return await stubborn(*said)
        except asyncio.CancelledError:
            b.loads[0].succeed()
            await turns()
            return b.runners[0]

    monkeypatch.setattr(b.pool, "_spawn", deaf)
    await b.ask()
    await b.pool.close()
    await turns()
    assert b.runners[0].told == 1
    assert b.pool.residents() == []


async def test_closing_waits_for_the_last_process(bench: Begin) -> None:
    b = bench(quick=False)
    await b.use()
    closing = asyncio.create_task(b.pool.close())
    await turns()
    assert not closing.done()
    b.runners[0].exit()
    await closing


# ---------------------------------------------------------------- what a load can come to


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (LoadFailed("ours"), "ours"),
        (OSError(24, "Too many open files"), "the model could not be started: Too many open files"),
        (ZeroDivisionError("SECRET"), "the model could not be started (ZeroDivisionError); please report it"),
    ],
)
async def test_whatever_goes_wrong_is_one_sentence(bench: Begin, error: Exception, sentence: str) -> None:
    b = bench(ready=False)
    client = await b.ask()
    b.loads[0].fail(error)
    await turns()
    assert isinstance(client.error, LoadFailed)
    assert str(client.error) == sentence
    assert "SECRET" not in b.log.getvalue()
    assert b.pool.residents() == []
    assert b.pool.runner("one") is None


async def test_a_load_has_so_much_time(bench: Begin) -> None:
    b = bench(ready=False, load_timeout=20.0)
    client = await b.ask()
    await b.advance(19)
    assert client.waits
    await b.advance(1)
    sentence = "timed out waiting for the runner to start - the model did not load within 20 s"
    assert isinstance(client.error, LoadFailed)
    assert str(client.error) == sentence
    assert b.loads[0].result.cancelled()
    endless = bench(ready=False, load_timeout=0.0)
    client = await endless.ask()
    await endless.advance(10**6)
    assert client.waits


@pytest.mark.parametrize("end", ["succeeds", "fails", "closes"])
async def test_the_files_are_open_while_it_loads_and_closed_however_it_ends(bench: Begin, tmp_path: Path, end: str) -> None:
    weights, adapter, projector = tmp_path / "weights", tmp_path / "adapter", tmp_path / "projector"
    weights.write_bytes(b"w")
    adapter.write_bytes(b"a")
    projector.write_bytes(b"p")
    b = bench(ready=False)
    client: Client = await b.ask(replace(ONE, weights=weights, adapter=adapter, projector=projector))
    held = b.loads[0].weights, b.loads[0].adapter, b.loads[0].projector
    assert [os.pread(descriptor, 9, 0) for descriptor in held] == [b"w", b"a", b"p"]
    if end == "closes":
        await b.pool.close()
    elif end == "fails":
        b.loads[0].fail(ValueError())
    else:
        b.loads[0].succeed()
    await turns()
    assert (client.lease is not None) is (end == "succeeds")
    for descriptor in held:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


async def test_a_file_that_is_gone_starts_nothing(bench: Begin, tmp_path: Path) -> None:
    b = bench()
    (tmp_path / "weights").touch()
    client = await b.ask(replace(ONE, weights=tmp_path / "weights", adapter=tmp_path / "none"))
    assert str(client.error) == "the model could not be started: No such file or directory"
    assert b.loads == []


async def test_what_breaks_down_while_everything_settles_is_told(bench: Begin) -> None:
    b = bench()
    error = RuntimeError("the machine cannot be looked at")

    def look() -> None:
        raise error

    b.pool._detect_hardware = look  # type: ignore[assignment]
    client = await b.ask()
    assert b.failures == [error]
    assert client.waits
    b.failures.clear()
    await b.pool.close()
    await turns()
    assert isinstance(client.error, Failed)
