"""Pushing to Debian's registry, and back; and to a stand-in that remembers uploads, redirects them, forgets them, refuses."""

from __future__ import annotations

import asyncio
import hashlib
import random
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from conftest import Start
from golden_cli import Result, run
from ndani import settings
from ndani.errors import Cancelled, Failed, NotFound, Offline, SourceFailed, StoreFailed
from ndani.names import Name, parse
from ndani.sources.fetcher import Fetcher
from ndani.sources.pull import pull
from ndani.sources.push import push
from ndani.sources.registry import Registry, RegistrySource
from ndani.sources.retry import RetryPolicy
from ndani.store import Store
from ndani.store.layout import digest_of
from ndani.types import Progress
from registries import Debian, no_debian, put_model
from server import PATIENCE
from steps import all_steps, following
from test_fetcher import children, kill_children
from uploads import PART, Uploads

QUICK = RetryPolicy(tries=3, first_delay=0.01, poll_interval=0.02)
SIZE = 1_000_000
WEIGHTS = random.Random(8).randbytes(SIZE)
MODEL = digest_of(WEIGHTS)

pytestmark = [pytest.mark.usefixtures("home"), pytest.mark.slow]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    if why := no_debian():
        pytest.skip(why)
    yield tmp_path / "registry"


def registry(name: Name, home: Path, stall_timeout: float = 30.0, **how: bool) -> Registry:
    return Registry(name, **{"insecure": True, "offline": False} | how, key=home / "key", retries=QUICK, stall_timeout=stall_timeout)


async def push_model(
    store: Store, name: Name, home: Path, leaving: Event | None = None, part: int = PART, stall_timeout: float = 30.0, **how: bool
) -> list[Progress]:
    return await all_steps(push, store, name, registry(name, home, stall_timeout, **how), stopping=leaving, part=part)


def fetcher(store: Store, **environment: str) -> Fetcher:
    return Fetcher(settings.load({"NDANI_MODELS": str(store.layout.root), **environment}))


async def follow(fetcher: Fetcher, name: Name) -> list[Progress]:
    return await all_steps(fetcher.push, name, True)


# Debian's registry.


async def test_push_and_pull_again_with_tls_and_password(
    folder: Path, store: Store, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    debian = Debian(folder, tls=True, password=True)
    try:
        name = parse(f"{debian.host}/ns/tiny:1")
        manifest = put_model(store, name, WEIGHTS)
        monkeypatch.setenv("SSL_CERT_FILE", str(debian.certificate))
        with pytest.raises(SourceFailed, match="asks for a user and a password"):
            await push_model(store, name, home, insecure=False)
        (home / ".netrc").write_text('machine 127.0.0.1 login aladdin password "open sesame"\n')
        steps = await push_model(store, name, home, insecure=False)
        said = list(dict.fromkeys(step.status for step in steps))
        assert said[0] == "retrieving manifest"
        assert said[-2:] == ["pushing manifest", "success"]
        assert said[1] == f"pushing {MODEL[7:19]}"
        there = [step.completed for step in steps if step.digest == MODEL]
        assert there == sorted(there)
        assert there[-1] == SIZE
        assert len(debian.requests("PATCH")) == SIZE // PART + 2
        await push_model(store, name, home, insecure=False)
        assert len(debian.requests("PATCH")) == SIZE // PART + 2, "what is there is not sent again"
        fresh = Store(tmp_path / "fresh")
        source = RegistrySource(registry(name, home, insecure=False))
        assert (await all_steps(pull, fresh, name, [source], retries=QUICK))[-1].status == "success"
        assert fresh.layout.manifest(name).read_bytes() == manifest
        assert fresh.find(name).weights_path.read_bytes() == WEIGHTS
    finally:
        debian.stop()


async def test_a_push_that_its_follower_leaves_ends_between_two_parts_and_goes_on(folder: Path, store: Store) -> None:
    debian = Debian(folder)
    try:
        name = parse(f"{debian.host}/ns/big:1")
        size = 256 << 20
        put_model(store, name, WEIGHTS * (size // SIZE))
        async with following(fetcher(store).push, name, True) as steps:
            async for step in steps:
                if (step.completed or 0) > 20 << 20:
                    break
        assert not children()
        sent = len(debian.requests("PATCH"))
        assert sent
        assert not debian.requests("PUT", "/manifests/")
        [note] = store.layout.uploads.iterdir()
        assert (await follow(fetcher(store), name))[-1].status == "success"
        parts = -(-(size // SIZE * SIZE) // (16 << 20))
        assert [status for status, _ in debian.requests("PATCH")] == [202] * (parts + 2), "each part once, over both"
        assert len(debian.requests("POST")) == 3, "the blob that was under way was not begun again"
        assert not note.exists()
    finally:
        debian.stop()


async def test_a_push_killed_in_mid_part_sends_no_finished_blob_again(folder: Path, store: Store) -> None:
    debian = Debian(folder)
    try:
        name = parse(f"{debian.host}/ns/big:1")
        put_model(store, name, WEIGHTS * 200)
        with pytest.raises(SourceFailed, match="the push was ended from outside before it was done; push again"):
            async with following(fetcher(store).push, name, True) as steps:
                async for step in steps:
                    if (step.completed or 0) > 40_000_000:
                        kill_children()
        debian.settle()
        assert not debian.requests("PUT", "/manifests/"), "no name"
        assert (await follow(fetcher(store), name))[-1].status == "success"
        third = len(debian.requests("PATCH"))
        await follow(fetcher(store), name)
        assert len(debian.requests("PATCH")) == third
    finally:
        debian.stop()


@pytest.mark.parametrize("what", ["the server is killed", "the client hangs up", "a terminal's Ctrl-C"])
def test_each_part_is_sent_once_when(folder: Path, start: Start, store: Store, what: str) -> None:
    debian = Debian(folder)
    try:
        name = parse(f"{debian.host}/ns/big:1")
        size = 256 << 20
        put_model(store, name, WEIGHTS * (size // SIZE))
        server = start(store.layout.root)
        with server.streaming("/api/push", {"model": str(name), "insecure": True}) as lines:
            for line in lines:
                if line.get("completed", 0) > 20 << 20:
                    [child] = children(server.pid)
                    if what == "the server is killed":
                        server.kill()
                    elif what == "a terminal's Ctrl-C":  # which reaches both
                        child.send_signal(signal.SIGINT)
                        server.process.send_signal(signal.SIGINT)
                    break
        gone_by = time.monotonic() + 60
        while child.is_running() and child.status() != "zombie" and time.monotonic() < gone_by:
            time.sleep(0.05)
        if "Ctrl-C" in what:
            server.process.wait(PATIENCE)
        assert not debian.requests("PUT", "/manifests/"), "no name"
        sent = len(debian.requests("PATCH"))
        second = server if server.process.poll() is None else start(store.layout.root)
        again = second.ask("/api/push", {"model": str(name), "insecure": True})
        assert again == {"status": "success"}
        parts = -(-(size // SIZE * SIZE) // (16 << 20))
        assert 0 < sent < parts
        assert [status for status, _ in debian.requests("PATCH")] == [202] * (parts + 2)
        assert len(debian.requests("POST")) == 3, "one upload for each blob"
    finally:
        debian.stop()


def test_push_remove_pull_and_run_at_the_terminal(folder: Path, start: Start, echo_store: Path) -> None:
    debian = Debian(folder)
    try:
        server = start(echo_store)
        environment = {**server.environment, "NDANI_HOST": f"127.0.0.1:{server.port}"}
        name = f"{debian.host}/ns/echo:1"
        assert run(("cp", "echo", name), environment).exit == 0
        for verb, first in (("push", "retrieving manifest"), ("rm", ""), ("pull", "pulling manifest")):
            done = run((verb, name, *(["--insecure"] if verb != "rm" else [])), environment)
            assert done.exit == 0, done.stderr
            assert done.stderr.startswith(first)
            assert done.stderr.endswith("success\n" if first else "")
        assert run(("run", name, "over and out"), environment).stdout
        assert run(("push", name), environment).stderr.endswith("does not speak https; `--insecure` allows that\n")
        assert run(("push", "nope"), environment) == Result(1, "", "Error: model 'nope' not found\n")
        done = run(("pull", "127.0.0.1:9/a/b", "--insecure"), environment)
        words = 'Get "http://127.0.0.1:9/v2/a/b/manifests/latest": dial tcp 127.0.0.1:9: connect: connection refused'
        assert (done.exit, done.stderr) == (1, f"pulling manifest\nError: pull model manifest: {words}\n")
    finally:
        debian.stop()


# The stand-in.


async def test_a_registry_that_keeps_uploads_gets_each_part_once(uploads: Uploads, store: Store, home: Path) -> None:
    put_model(store, uploads.name, WEIGHTS)
    uploads.breaks = 2
    await push_model(store, uploads.name, home)
    assert sorted(part for part in uploads.parts if part[1] == PART) == [(at, PART) for at in range(0, SIZE, PART)]
    assert uploads.blobs[MODEL] == WEIGHTS
    assert uploads.manifests["1"] == store.find(uploads.name).path.read_bytes()
    sums = b"".join(hashlib.md5(WEIGHTS[at : at + PART]).digest() for at in range(0, SIZE, PART))
    assert uploads.etags[0] == f"{hashlib.md5(sums).hexdigest()}-10"
    assert not list(store.layout.uploads.iterdir())


async def test_a_killed_push_goes_on_in_the_next_process(uploads: Uploads, store: Store) -> None:
    put_model(store, uploads.name, WEIGHTS * 100)  # 100 MB: six parts of 16 MB and a rest
    uploads.pause = 0.1
    with pytest.raises(SourceFailed, match="ended from outside"):
        async with following(fetcher(store).push, uploads.name, True) as steps:
            async for _ in steps:
                if len(uploads.parts) >= 2:
                    kill_children()
    assert not uploads.manifests
    uploads.pause = 0
    await asyncio.sleep(0.3)
    before = uploads.parts[:]
    await follow(fetcher(store), uploads.name)
    assert uploads.parts[len(before)][0] > 0, "it did not begin again"
    firsts = [at for at, _ in uploads.parts if at]
    assert len(firsts) == len(set(firsts)), "no part arrived twice"
    assert uploads.manifests


async def test_two_pushes_at_once_send_it_once(uploads: Uploads, store: Store) -> None:
    put_model(store, uploads.name, WEIGHTS)
    uploads.pause = 0.2
    both = fetcher(store)
    one, two = await asyncio.gather(follow(both, uploads.name), follow(both, uploads.name))
    assert one[-1].status == two[-1].status == "success"
    assert sum(count for _, count in uploads.parts if count == SIZE) == SIZE


async def test_two_who_come_while_a_push_is_being_ended_share_the_next_one(uploads: Uploads, store: Store) -> None:
    put_model(store, uploads.name, WEIGHTS * 50)
    uploads.pause = 0.5
    all_of_them, most = fetcher(store), 0

    async def leave() -> None:
        async with following(all_of_them.push, uploads.name, True) as steps:
            async for _ in steps:
                if uploads.parts:
                    return

    leaving = asyncio.create_task(leave())
    while not uploads.parts:
        await asyncio.sleep(0.02)
    [run] = all_of_them._runs.values()
    while run.followers:
        await asyncio.sleep(0.01)
    both = asyncio.gather(follow(all_of_them, uploads.name), follow(all_of_them, uploads.name))
    while not both.done():
        most = max(most, len(children()))
        await asyncio.sleep(0.05)
    one, two = await both
    await leaving
    assert one[-1].status == two[-1].status == "success"
    assert most == 1
    firsts = [at for at, _ in uploads.parts if at]
    assert len(firsts) == len(set(firsts)), "no part was sent twice"


async def test_an_upload_that_the_registry_forgets_is_begun_again(uploads: Uploads, store: Store, home: Path) -> None:
    put_model(store, uploads.name, WEIGHTS)
    uploads.breaks, uploads.forgets = 1, True
    await push_model(store, uploads.name, home)
    assert uploads.blobs[MODEL] == WEIGHTS
    uploads.blobs.clear()
    uploads.breaks = 1000
    with pytest.raises(SourceFailed, match=r"broke off .*; push again|broke off"):
        await push_model(store, uploads.name, home)


async def test_parts_go_where_the_registry_says(uploads: Uploads, store: Store, home: Path) -> None:
    put_model(store, uploads.name, WEIGHTS)
    uploads.redirects = True
    await push_model(store, uploads.name, home)
    assert uploads.blobs[MODEL] == WEIGHTS
    assert sum(method == "PUT" and path.startswith("/elsewhere") for method, path, _ in uploads.seen) == 12


async def test_leaving_is_looked_at_between_two_parts(uploads: Uploads, store: Store, home: Path) -> None:
    put_model(store, uploads.name, WEIGHTS)
    leaving = Event()
    leaving.set()
    for count in (1, 2, 3):
        with pytest.raises(Cancelled, match="push again: it goes on where it stopped"):
            await push_model(store, uploads.name, home, leaving)
        assert [at for at, _ in uploads.parts] == [PART * n for n in range(count)]


async def test_a_registry_that_stops_reading_is_not_waited_for_for_ever(uploads: Uploads, store: Store, home: Path) -> None:
    put_model(store, uploads.name, WEIGHTS * 32)  # more than the system takes in for somebody else
    uploads.deaf = True
    with pytest.raises(SourceFailed, match="took nothing for too long"):
        async with asyncio.timeout(PATIENCE):
            await push_model(store, uploads.name, home, part=32 * SIZE, stall_timeout=0.5)


@pytest.mark.parametrize("hangs_up", [False, True])
async def test_a_registry_may_take_its_time_to_put_a_blob_together(uploads: Uploads, store: Store, home: Path, hangs_up: bool) -> None:
    put_model(store, uploads.name, WEIGHTS)
    uploads.hangs_up, uploads.commits_in = hangs_up, 0.03 if hangs_up else 1.5
    steps = await push_model(store, uploads.name, home, stall_timeout=30 if hangs_up else 1.0)
    assert steps[-1].status == "success"
    assert uploads.blobs[MODEL] == WEIGHTS
    assert len([path for method, path, _ in uploads.seen if method == "POST"]) == 3, "nothing was begun again"
    assert sum(count for _, count in uploads.parts if count == PART) == SIZE


async def test_a_store_that_takes_no_notes_is_pushed_from(uploads: Uploads, store: Store, home: Path) -> None:
    put_model(store, uploads.name, WEIGHTS)
    store.layout.uploads.write_text("in the way")
    assert (await push_model(store, uploads.name, home))[-1].status == "success"
    assert (await push_model(store, uploads.name, home))[-1].status == "success", "and again, when everything is there"


@pytest.mark.parametrize(("method", "status"), [("HEAD", 403), ("POST", 404), ("PATCH", 403), ("PUT", 400), ("POST", 405), ("PATCH", 503)])
async def test_every_refusal_is_one_sentence(uploads: Uploads, store: Store, home: Path, method: str, status: int) -> None:
    put_model(store, uploads.name, WEIGHTS)
    uploads.refuses = {method: status}
    with pytest.raises(SourceFailed, match=str(status)) as caught:
        await push_model(store, uploads.name, home)
    assert "\n" not in str(caught.value)
    assert not uploads.manifests


async def test_what_cannot_be_pushed(uploads: Uploads, store: Store, home: Path) -> None:
    with pytest.raises(NotFound, match=r"^model '.*/ns/tiny:1' not found$"):
        await push_model(store, uploads.name, home)
    put_model(store, uploads.name, WEIGHTS)
    with pytest.raises(Offline):
        await push_model(store, uploads.name, home, offline=True)
    assert not uploads.seen
    with pytest.raises(SourceFailed, match=r"insecure protocol http: .* `--insecure` allows that"):
        await push_model(store, uploads.name, home, insecure=False)
    with store.layout.blob(MODEL).open("r+b") as file:
        file.write(b"other bytes")
    with pytest.raises(SourceFailed, match="digest invalid"):
        await push_model(store, uploads.name, home)
    store.layout.blob(MODEL).unlink()
    with pytest.raises(StoreFailed, match=r"the model store lacks the file .*; pull or create the model again"):
        await push_model(store, uploads.name, home)


async def test_nobody_there(store: Store, home: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        name = parse(f"127.0.0.1:{free.getsockname()[1]}/x/y")
    put_model(store, name, WEIGHTS)
    with pytest.raises(Failed, match=r'^push model: Head "http://127.0.0.1:\d+/v2/x/y/blobs/sha256:\w+": dial tcp .*: connection refused$'):
        await push_model(store, name, home)
