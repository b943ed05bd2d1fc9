"""Pushing to registries with habits: what they take of a part, what they say of it, and where they send the next one."""

from __future__ import annotations

import asyncio
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from ndani.errors import SourceFailed
from ndani.names import parse
from ndani.sources.push import push
from ndani.sources.registry import Registry, _retry_after
from ndani.sources.retry import RetryPolicy
from ndani.store import Store
from ndani.store.layout import digest_of
from ndani.types import Progress
from registries import Debian, no_debian, put_model
from server import PATIENCE, until
from steps import following
from uploads import Uploads

PART, SIZE = 64_000, 400_000
WEIGHTS = random.Random(9).randbytes(SIZE)
MODEL = digest_of(WEIGHTS)

pytestmark = [pytest.mark.usefixtures("home"), pytest.mark.slow]  # a registry of its own for every test


async def push_in_parts(store: Store, uploads: Uploads, tries: int = 5, part: int = PART) -> list[Progress]:
    retries = RetryPolicy(tries=tries, first_delay=0.01)
    registry = Registry(uploads.name, insecure=True, offline=False, key=Path("key"), retries=retries)
    async with (
        asyncio.timeout(PATIENCE),
        following(push, store, uploads.name, registry, part=part) as steps,
    ):
        return [step async for step in steps]


def firsts(uploads: Uploads) -> list[int]:
    """Where the parts of the weights began, in order."""
    return [at for at, count in uploads.parts if count > 100]


#: What a registry does, and how many parts of the weights it takes then; none: one request.
HABITS = {
    "too large, 413": ({"cap": PART // 4}, SIZE // (PART // 4)),
    "too large, 416 (GHCR)": ({"cap": PART // 4, "too_large": 416}, SIZE // (PART // 4)),
    "too large, and how far it is not told": ({"cap": PART // 4, "too_large": 416, "tells": False}, SIZE // (PART // 4)),
    "too large, and the door is slammed": ({"cap": PART // 4, "slams": True}, SIZE // (PART // 4)),
    "too large, whatever it is": ({"cap": 1}, 0),
    "larger ones are asked for": ({"least": 150_000}, 3),
    "larger ones than the blob": ({"least": 10**15}, 1),
    "larger ones are asked for than are taken": ({"least": 150_000, "cap": 100_000}, 0),
    "less is kept than was sent": ({"takes": 40_000}, SIZE // 40_000),
    "one byte less is kept": ({"takes": PART - 1}, -(-SIZE // (PART - 1))),
    "no Range": ({"says": "nothing"}, -(-SIZE // PART)),
    "Range 0-0": ({"says": "zero"}, -(-SIZE // PART)),
    "the Range of the part (zot, Aliyun)": ({"says": "the part"}, -(-SIZE // PART)),
    "the Range of the first part (ECR)": ({"says": "the first part", "taken": 201}, -(-SIZE // PART)),
    "a Range with one too many": ({"says": "one too many"}, -(-SIZE // PART)),
    "no second part": ({"once": True}, 1),
    "no parts, 405": ({"refuses": {"PATCH": 405}}, 0),
    "no parts, 404": ({"refuses": {"PATCH": 404}}, 0),
    "no parts, 400": ({"refuses": {"PATCH": 400}}, 0),
    "no parts, 501": ({"refuses": {"PATCH": 501}, "tells": False}, 0),
    "nothing but the first request": ({"wants_post": True}, 0),
    "relative addresses": ({"base": ""}, -(-SIZE // PART)),
    "addresses with a query": ({"query": "?_state=a%2Fb%3D&x=1"}, -(-SIZE // PART)),
    "moved, 307": ({"moves": 307}, -(-SIZE // PART)),
    "moved, 308": ({"moves": 308, "query": "?_state=s"}, -(-SIZE // PART)),
    "HEAD is not known": ({"refuses": {"HEAD": 405}}, -(-SIZE // PART)),
}


@pytest.mark.parametrize("habit", list(HABITS))
async def test_a_registry_gets_a_blob_as_it_takes_it(uploads: Uploads, store: Store, habit: str) -> None:
    switches, parts = HABITS[habit]
    for switch, value in switches.items():  # type: ignore[attr-defined]
        setattr(uploads, switch, value)
    put_model(store, uploads.name, WEIGHTS)
    steps = await push_in_parts(store, uploads)
    assert steps[-1].status == "success"
    assert uploads.blobs[MODEL] == WEIGHTS
    assert len(firsts(uploads)) == parts
    assert firsts(uploads) == sorted(set(firsts(uploads))), "each byte once"
    assert len(uploads.refused) <= 8, "what is too large is not sent again and again"
    assert max(step.completed or 0 for step in steps if step.digest == MODEL) == SIZE
    assert not list(store.layout.uploads.glob("*"))


async def test_what_a_registry_has_shown_of_itself_holds_for_the_next_blob(uploads: Uploads, store: Store) -> None:
    uploads.refuses = {"PATCH": 405}
    put_model(store, uploads.name, WEIGHTS)
    await push_in_parts(store, uploads)
    assert [method for method, _, _ in uploads.seen].count("PATCH") == 1
    assert len(uploads.blobs) == 3


async def test_addresses_of_another_host_are_shown_no_credentials(uploads: Uploads, store: Store, home: Path) -> None:
    (home / ".netrc").write_text("machine localhost login me password secret\n")
    uploads.front = f"http://{uploads.host.replace('127.0.0.1', 'localhost')}"
    put_model(store, uploads.name, WEIGHTS)
    assert (await push_in_parts(store, uploads))[-1].status == "success"
    assert uploads.blobs[MODEL] == WEIGHTS
    assert not any(shown for _, _, shown in uploads.seen)


async def test_a_registry_that_keeps_nothing_is_one_sentence_and_has_an_end(uploads: Uploads, store: Store) -> None:
    put_model(store, uploads.name, WEIGHTS)
    uploads.breaks, uploads.forgets = 10**6, True
    with pytest.raises(SourceFailed, match=r"^push model: .*; push again when it can be reached: it goes on where it stopped$"):
        await push_in_parts(store, uploads, part=PART // 4)
    assert len([1 for method, _, _ in uploads.seen if method == "POST"]) < 10, "begun anew a few times, not for ever"


async def test_a_limit_below_the_whole_blob_is_said(uploads: Uploads, store: Store) -> None:
    put_model(store, uploads.name, WEIGHTS)
    uploads.refuses = {"PATCH": 413, "PUT": 413}
    with pytest.raises(SourceFailed, match=r"did not take the model: it answered 413 \(not today\); raise its limit on what is uploaded"):
        await push_in_parts(store, uploads)


@pytest.mark.parametrize("status", [401, 403, 402, 507])
async def test_a_refusal_that_is_not_about_the_part_is_said_at_once(uploads: Uploads, store: Store, status: int) -> None:
    put_model(store, uploads.name, WEIGHTS)
    uploads.refuses = {"PATCH": status}
    with pytest.raises(SourceFailed):
        await push_in_parts(store, uploads)
    assert [method for method, _, _ in uploads.seen].count("PATCH") == 1


@pytest.mark.parametrize(
    ("answer", "there"),
    [
        ({"status": 403}, True),  # an address that is signed for GET
        ({"status": 200, "headers": {"Content-Length": "0"}}, True),
        ({"status": 200, "text": "log in"}, False),  # of another size
        ({"status": 404}, False),
    ],
)
async def test_a_registry_that_sends_to_its_storage(uploads: Uploads, store: Store, answer: dict[str, object], there: bool) -> None:
    async def storage(request: web.Request) -> web.Response:
        return web.Response(**answer)  # type: ignore[arg-type]

    app = web.Application()
    app.router.add_route("HEAD", "/storage", storage)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    uploads.storage = f"http://127.0.0.1:{runner.addresses[0][1]}/storage"
    put_model(store, uploads.name, WEIGHTS)
    assert (await push_in_parts(store, uploads))[-1].status == "success"
    assert bool(uploads.parts) is not there
    await runner.cleanup()


async def test_an_address_for_a_part_that_has_expired_is_asked_for_again(uploads: Uploads, store: Store) -> None:
    uploads.redirects, uploads.expires = True, 2
    put_model(store, uploads.name, WEIGHTS)
    assert (await push_in_parts(store, uploads))[-1].status == "success"
    assert uploads.blobs[MODEL] == WEIGHTS


def test_an_address_without_tls_of_a_registry_that_has_it() -> None:
    """Behind a proxy that speaks TLS for it, it may not know that. Any other is refused."""
    registry = Registry(parse("models.example/ns/tiny:1"), insecure=False, offline=False, key=Path("key"))
    at = registry.url("blobs", "uploads", "")
    assert registry.follow(at, "http://models.example/v2/x?_state=1") == "https://models.example/v2/x?_state=1"
    for other in ("http://storage.example/x", "http://models.example.evil/x", "http://models.example:8080/x"):
        with pytest.raises(SourceFailed, match="insecure protocol http"):
            registry.follow(at, other)


@pytest.mark.parametrize(("said", "pause"), [("7", 7), (lambda: str(int(time.time()) + 60), 60), ("1000000000", 0), ("soon", None)])
def test_a_pause_may_be_a_point_in_time(said: str | Callable[[], str], pause: float | None) -> None:
    assert _retry_after(said if isinstance(said, str) else said()) == (None if pause is None else pytest.approx(pause, abs=5))


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["4m", "1m"])
async def test_debians_registry_behind_an_nginx_with_a_limit(store: Store, tmp_path: Path, limit: str) -> None:
    if why := no_debian() or ("" if shutil.which("nginx") else "needs nginx: apt-get install nginx"):
        pytest.skip(why)
    debian = Debian(tmp_path / "registry")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    temporary = " ".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (tmp_path / "nginx.conf").write_text(
        f"user root; daemon off; pid {tmp_path}/pid; error_log {tmp_path}/error.log; events {{}}\n"
        f"http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{port}; client_max_body_size {limit}; "
        f"location / {{ proxy_pass http://{debian.host}; proxy_http_version 1.1; proxy_set_header Host $http_host; }} }} }}"
    )
    nginx = subprocess.Popen(["nginx", "-c", str(tmp_path / "nginx.conf")], stderr=subprocess.DEVNULL)
    try:
        until(lambda: listens(port), "nginx answers")
        name = parse(f"127.0.0.1:{port}/ns/tiny:1")
        weights = WEIGHTS * 100  # 40 MB
        put_model(store, name, weights)
        registry = Registry(name, insecure=True, offline=False, key=Path("key"))
        async with asyncio.timeout(PATIENCE), following(push, store, name, registry) as steps:
            assert [step async for step in steps][-1].status == "success"
        large = 1 << (22 if limit == "4m" else 20)
        assert [status for status, _ in debian.requests("PATCH")] == [202] * (-(-len(weights) // large) + 2), "each byte once"
        assert len(debian.requests("POST")) == 3
        assert len(debian.requests("PUT", "/manifests/1")) == 1
    finally:
        nginx.terminate()
        nginx.wait()
        debian.stop()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# An address that was noted.


@contextmanager
def nobody() -> Iterator[str]:
    """An address where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize("what", ["nobody there", "busy for ever", "no address", "forgotten", "another host without TLS"])
async def test_a_noted_address_that_is_dead_is_forgotten(uploads: Uploads, store: Store, what: str) -> None:
    put_model(store, uploads.name, WEIGHTS)
    broken = Uploads()
    broken.refuses = {"GET": 503}
    runner = await broken.start()
    with nobody() as gone:
        places = {
            "nobody there": f"http://{gone}/v2/ns/tiny/blobs/uploads/u1",
            "busy for ever": f"http://{broken.host}/v2/ns/tiny/blobs/uploads/u1",
            "no address": "https://[oops/x",
            "forgotten": f"http://{uploads.host}/v2/ns/tiny/blobs/uploads/none",
            "another host without TLS": "http://models.invalid/x",
        }
        uploads.refuses = {"PATCH": 403}
        with pytest.raises(SourceFailed):
            await push_in_parts(store, uploads)
        uploads.refuses = {}
        [note] = store.layout.uploads.iterdir()
        note.write_bytes(msgspec.json.encode({"location": places[what], "sent": 2 * PART, "parts": ["00" * 16, "00" * 16]}))
        assert (await push_in_parts(store, uploads, tries=2))[-1].status == "success"
    await runner.cleanup()
    assert uploads.blobs[MODEL] == WEIGHTS
    assert not list(store.layout.uploads.iterdir())


async def test_no_cookie_is_shown(uploads: Uploads, store: Store) -> None:
    uploads.cookie, uploads.host = True, uploads.host.replace("127.0.0.1", "localhost")
    put_model(store, uploads.name, WEIGHTS)
    assert (await push_in_parts(store, uploads))[-1].status == "success"


async def test_what_was_put_together_wrongly_is_begun_again_by_the_next_push(uploads: Uploads, store: Store) -> None:
    uploads.garbles, uploads.keeps = 2, True
    put_model(store, uploads.name, WEIGHTS)
    with pytest.raises(SourceFailed, match=r"answered 400 \(digest invalid\); push again, and see what `ndani verify` says"):
        await push_in_parts(store, uploads)
    assert (await push_in_parts(store, uploads))[-1].status == "success"
    assert uploads.blobs[MODEL] == WEIGHTS


async def test_a_manifest_that_becomes_another_there_is_said(uploads: Uploads, store: Store) -> None:
    uploads.makes_another = True
    put_model(store, uploads.name, WEIGHTS)
    with pytest.raises(SourceFailed, match=r"made another manifest of the one that was pushed \(sha256:0{64}\)"):
        await push_in_parts(store, uploads)


async def test_parts_grow_again_when_the_line_has_become_better(uploads: Uploads, store: Store) -> None:
    put_model(store, uploads.name, WEIGHTS * 8)
    uploads.breaks = 4
    assert (await push_in_parts(store, uploads))[-1].status == "success"
    sizes = [count for _, count in uploads.parts if count > 100]
    assert min(sizes) < PART // 4, "small, while it is bad"
    assert sizes[-2] == PART, sizes


@pytest.mark.slow
async def test_a_line_that_breaks_off_again_and_again_is_not_given_a_blob_in_one_piece(uploads: Uploads, store: Store) -> None:
    weights = WEIGHTS[:180_000]
    put_model(store, uploads.name, weights)
    uploads.bursts = 4
    assert (await push_in_parts(store, uploads, part=PART // 4))[-1].status == "success"
    assert uploads.blobs[digest_of(weights)] == weights
    assert uploads.broken > 8
    assert uploads.largest == 0


async def test_two_processes_that_push_one_model_send_it_once(uploads: Uploads, store: Store) -> None:
    put_model(store, uploads.name, WEIGHTS)
    uploads.pause = 0.05
    one, two = await asyncio.gather(push_in_parts(store, uploads), push_in_parts(Store(store.layout.root), uploads))
    assert one[-1].status == two[-1].status == "success"
    assert {step.status for step in (*one, *two)} >= {"waiting for another push of the same model"}
    assert uploads.blobs[MODEL] == WEIGHTS
    assert firsts(uploads) == sorted(set(firsts(uploads))), "each byte once"
