"""What a registry, a hub or an index may answer to do harm, or by mistake: each is one sentence and has an end, and what was good stays."""

from __future__ import annotations

import asyncio
import gzip
import random
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from ndani.errors import Misconfigured, NotFound, SourceFailed
from ndani.names import Name, parse
from ndani.sources import File, open_registry
from ndani.sources.http import Access, HttpClient
from ndani.sources.hub import HubSource
from ndani.sources.index import Index, read_configuration
from ndani.sources.pull import pull
from ndani.sources.registry import Registry, RegistrySource
from ndani.sources.retry import RetryPolicy
from ndani.store import Store
from ndani.store.layout import digest_of
from registries import make_model
from server import PATIENCE

pytestmark = pytest.mark.usefixtures("home")

QUICK = RetryPolicy(tries=3, first_delay=0.01, poll_interval=0.02)
PIECE = 100_000
WEIGHTS = random.Random(11).randbytes(6 * PIECE)
MODEL = digest_of(WEIGHTS)
MANIFEST, BLOBS = make_model(WEIGHTS)

HttpResponse = Callable[[web.Request], web.Response | Awaitable[web.StreamResponse | None] | None]


class Place:
    """A registry whose answers a test may replace: `says` is asked first, and what it leaves out is answered well."""

    def __init__(self) -> None:
        self.says: HttpResponse = lambda request: None
        self.asked: list[str] = []
        self.host = ""

    @property
    def name(self) -> Name:
        return parse(f"{self.host}/ns/tiny:1")

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1, max_line_size=1 << 16)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.host = f"127.0.0.1:{runner.addresses[0][1]}"
        return runner

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        said = self.says(request)
        found = await said if isinstance(said, Awaitable) else said
        if found is not None:
            return found
        if "/manifests/" in request.path:
            return web.Response(body=MANIFEST)
        content = BLOBS.get(request.path.rpartition("/")[2])
        return web.Response(status=404) if content is None else ranged(request, content)


def ranged(request: web.Request, content: bytes, shift: int = 0) -> web.Response:
    """The range that is asked for, or one that lies `shift` further on."""
    first, end = (request.http_range.start or 0) + shift, min((request.http_range.stop or len(content)) + shift, len(content))
    headers = {"Content-Range": f"bytes {first}-{end - 1}/{len(content)}"}
    return web.Response(status=206, headers=headers, body=content[first:end])


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    found = Place()
    runner = await found.start()
    yield found
    await runner.cleanup()


async def bring(store: Store, place: Place, *, hub: bool = False, stall_timeout: float = 30.0) -> None:
    registry = Registry(
        place.name,
        insecure=True,
        offline=False,
        key=Path("key"),
        endpoint=f"http://{place.host}",
        retries=QUICK,
        stall_timeout=stall_timeout,
    )
    source = (HubSource if hub else RegistrySource)(registry, PIECE)
    async with asyncio.timeout(PATIENCE):
        await pull(store, place.name, [source], lambda step: None, QUICK)


def begun(store: Store) -> bytes:
    """The first half of the weights, as an earlier pull has left it."""
    half = WEIGHTS[: len(WEIGHTS) // 2]
    partial = store.layout.partial(MODEL)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(half)
    return half


async def test_another_range_than_was_asked_for_is_no_part_of_the_file(place: Place, store: Store) -> None:
    half, count = begun(store), 0

    def further(request: web.Request) -> web.Response | None:
        return ranged(request, WEIGHTS, 7) if request.path.endswith(MODEL) else None

    place.says = further
    with pytest.raises(SourceFailed, match=r"sent another range of .* than was asked for; pull again .*it goes on where it stopped"):
        await bring(store, place)
    assert store.layout.partial(MODEL).read_bytes() == half, "what was good stays"
    assert len(place.asked) < 30

    def sometimes(request: web.Request) -> web.Response | None:
        nonlocal count
        count += request.path.endswith(MODEL)
        return ranged(request, WEIGHTS, 7) if count % 2 and request.path.endswith(MODEL) else None

    place.says = sometimes
    await bring(store, place)
    assert store.find(place.name).weights_path.read_bytes() == WEIGHTS


async def test_bytes_that_are_packed_on_the_way_are_refused_before_they_touch_what_is_here(place: Place, store: Store) -> None:
    half = begun(store)

    async def packed(request: web.Request) -> web.StreamResponse | None:
        if not request.path.endswith(MODEL):
            return None
        reply = web.StreamResponse(headers={"Content-Encoding": "gzip"})  # in chunks: its length is not said
        await reply.prepare(request)
        await reply.write(gzip.compress(WEIGHTS[len(half) :]))
        return reply

    place.says = packed
    with pytest.raises(SourceFailed, match=rf"^{place.host} sends .* as gzip, which was not asked for; have it send files as they are"):
        await bring(store, place)
    assert store.layout.partial(MODEL).read_bytes() == half


@pytest.mark.parametrize("host", ["a..b", "...", "x" * 64])
async def test_a_host_that_no_name_can_be(place: Place, store: Store, host: str) -> None:
    place.says = lambda request: web.Response(status=307, headers={"Location": f"http://{host}/x"})
    with pytest.raises(SourceFailed, match=r"sends to http://.*/x, which is no address that can be asked"):
        await bring(store, place)
    registry = Registry(parse("h/ns/tiny:1"), insecure=False, offline=False, key=Path("key"), endpoint=host, retries=QUICK)
    with pytest.raises(SourceFailed, match="is no address that can be asked; check the name of the model"):
        await registry.manifest()
    await registry.close()


async def test_a_login_in_an_address_does_not_stand_beside_ours(place: Place, store: Store) -> None:
    shown = set()

    def moved(request: web.Request) -> web.Response | None:
        if request.path == "/token":
            return web.json_response({"token": "won"})
        if "Authorization" not in request.headers:
            return web.Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="http://{place.host}/token"'})
        shown.add(request.headers["Authorization"])
        if "moved" in request.query:
            return None
        return web.Response(status=307, headers={"Location": f"http://some:body@{place.host}{request.path}?moved=1"})

    place.says = moved
    await bring(store, place)
    assert shown == {"Bearer won"}


async def test_a_long_address_is_followed(place: Place, store: Store) -> None:
    def signed(request: web.Request) -> web.Response | None:
        long = not request.query_string and "/blobs/" in request.path
        return web.Response(status=307, headers={"Location": f"{request.path}?signature={'a' * 12_000}"}) if long else None

    place.says = signed
    await bring(store, place)


@pytest.mark.slow
async def test_a_manifest_that_hardly_comes_is_not_waited_for(place: Place, store: Store) -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse()
        await reply.prepare(request)
        for _ in range(600):
            await reply.write(b"{")
            await asyncio.sleep(0.1)
        return reply

    place.says = drip
    with pytest.raises(SourceFailed, match=r"127\.0\.0\.1 sends too slowly; try again when it can be reached"):
        await bring(store, place, stall_timeout=0.5)


async def test_a_list_of_files_without_end_is_not_read_to_it(place: Place, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ndani.sources.hub._MAX_FILES", 100)

    def pages(request: web.Request) -> web.Response:
        if not request.path.startswith("/more") and "/tree/" not in request.path:
            return web.Response(status=404)
        more = {"Link": f'<http://{place.host}/more{len(place.asked)}>; rel="next"'}
        return web.json_response([{"type": "file", "path": f"{len(place.asked)}-{at}"} for at in range(40)], headers=more)

    place.says = pages
    with pytest.raises(NotFound, match="file does not exist"):
        await bring(store, place, hub=True)
    assert sum("/more" in path for path in place.asked) == 2, "three pages have too many"


@pytest.mark.parametrize(
    ("link", "sentence"),
    [
        ("http://127.0.0.1:99999/p-1.whl", "127.0.0.1:99999/p-1.whl is no address that can be asked"),
        ("file:///etc/p-1.whl", "file:///etc/p-1.whl is no address that can be asked"),
        ("ftp://127.0.0.1/p-1.whl", "ftp://127.0.0.1/p-1.whl is no address that can be asked"),
        ("http://a..b/p-1.whl", "http://a..b/p-1.whl is no address that can be asked"),
        ('"><![<![', "answered with a page that is no package index"),
    ],
)
async def test_a_page_of_an_index_that_names_what_cannot_be_asked(
    place: Place, link: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    place.says = lambda request: web.Response(text=f'<a href="{link}">p-1.whl</a>', content_type="text/html")
    index = Index((), (), (f"http://{place.host}/simple",), Access())
    client = HttpClient(index.access, offline=False)
    try:
        with pytest.raises(SourceFailed, match=sentence):
            url = await index.locate(File("p", "p-1.whl", "0" * 64, 10), client)
            async with client.get_range(str(url), 0, 5):
                pass
    finally:
        await client.close()


@pytest.mark.parametrize(("scheme", "shown"), [("https", ""), ("http", "Basic " + b64encode(b"me:secret").decode())])
async def test_a_login_of_an_index_with_tls_is_not_shown_without_it(place: Place, scheme: str, shown: str) -> None:
    seen = []

    def note(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization", ""))
        return web.Response(body=b"0123456789")

    place.says = note
    index = read_configuration(f"global.index-url='{scheme}://me:secret@{place.host}/simple'\n", "")
    client = HttpClient(index.access, offline=False)
    async with client.get_range(f"http://{place.host}/p-1.whl", 0, 5):  # as a page of that index may name it
        pass
    await client.close()
    assert seen == [shown]


async def test_a_login_for_a_proxy_is_told_in_utf8(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def behind(request: web.Request) -> web.Response:
        told.append(request.headers.get("Proxy-Authorization", ""))
        return web.Response(body=MANIFEST)

    place.says = behind
    registry = Registry(
        parse("h.invalid/ns/tiny:1"), insecure=True, offline=False, key=Path("key"), endpoint="http://h.invalid", retries=QUICK
    )
    try:
        for login in ("us%C3%A4r:p%E2%82%ACss", "us\u00e4r:p\u20acss"):
            monkeypatch.setenv("HTTP_PROXY", f"http://{login}@{place.host}")
            assert await registry.manifest() == MANIFEST
        assert told == ["Basic " + b64encode("us\u00e4r:p\u20acss".encode()).decode()] * 2
    finally:
        await registry.close()


async def test_a_login_for_a_proxy_is_told_to_the_proxy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append((await reader.readuntil(b"\r\n\r\n")).decode("latin-1"))
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    monkeypatch.setenv("HTTPS_PROXY", "http://me:p%E2%82%ACss@{}:{}".format(*server.sockets[0].getsockname()))
    registry = Registry(parse("h.invalid/ns/tiny:1"), insecure=False, offline=False, key=Path("key"), retries=QUICK)
    with pytest.raises(SourceFailed, match=r"the proxy that HTTPS_PROXY names did not let us through to h\.invalid \(407"):
        await registry.manifest()
    await registry.close()
    server.close()
    assert heard[0].startswith("CONNECT h.invalid:443 ")
    assert f"Proxy-Authorization: Basic {b64encode('me:p€ss'.encode()).decode()}\r\n" in heard[0]


@pytest.mark.parametrize("endpoint", ["http://me:secret@127.0.0.1:9", "me:secret@127.0.0.1:9", "http://me:secret@127.0.0.1:99999"])
def test_a_password_in_the_address_of_the_hub_is_refused_and_not_shown(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(Misconfigured, match="HF_ENDPOINT") as refused:
        open_registry(parse("hf.co/a/b"), offline=False)
    assert "secret" not in str(refused.value)
