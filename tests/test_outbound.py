"""The one outbound client: proxies, certificates, and hosts that take a connection and say nothing."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from ndani.errors import Failed, SourceFailed
from ndani.names import parse
from ndani.sources.registry import Registry
from ndani.sources.retry import RetryPolicy
from registries import StandIn
from server import PATIENCE

pytestmark = pytest.mark.usefixtures("home")


async def manifest(host: str, *, insecure: bool = False, stall_timeout: float = 30.0) -> bytes:
    retries = RetryPolicy(tries=3, first_delay=0.01)
    registry = Registry(
        parse(f"{host}/ns/tiny:1"), insecure=insecure, offline=False, key=Path("key"), retries=retries, stall_timeout=stall_timeout
    )
    try:
        async with asyncio.timeout(PATIENCE):
            return await registry.manifest()
    finally:
        await registry.close()


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where nobody listens, and nobody will: it is taken."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
async def proxy() -> AsyncIterator[str]:
    """A proxy that lets nobody through."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    yield "{}:{}".format(*server.sockets[0].getsockname())
    server.close()
    await server.wait_closed()


async def test_this_machine_is_never_asked_through_a_proxy(nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, f"http://{nobody}")
    registry = StandIn(b"GGUF")
    async with AsyncExitStack() as stack:
        stack.push_async_callback((await registry.start()).cleanup)
        for host in (registry.host, registry.host.replace("127.0.0.1", "localhost")):
            assert await manifest(host, insecure=True) == registry.manifest


async def test_a_proxy_that_is_not_there_is_named(nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for named in (nobody, f"http://{nobody}"):
        monkeypatch.setenv("https_proxy", named)
        with pytest.raises(SourceFailed, match=f"the proxy {re.escape(nobody)} that https_proxy names cannot be reached .*try again"):
            await manifest("models.example")


async def test_a_proxy_that_refuses_is_named(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(SourceFailed, match=r"the proxy that https_proxy names did not let us through to models\.example \(407"):
        await manifest("models.example")


@pytest.mark.slow
async def test_a_proxy_that_says_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        place = f"127.0.0.1:{mute.getsockname()[1]}"
        monkeypatch.setenv("https_proxy", f"http://me:secret@{place}")
        with pytest.raises(
            SourceFailed, match=rf"the proxy {place} that https_proxy names, or models\.example behind it, did not answer"
        ) as met:
            await manifest("models.example", stall_timeout=0.5)
    assert "secret" not in str(met.value)
    monkeypatch.setenv("https_proxy", "me:secret@proxy.example:99999")
    with pytest.raises(SourceFailed, match="no proxy that can be used") as met:
        await manifest("models.example")
    assert "secret" not in str(met.value)


async def test_a_proxy_of_another_kind_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for odd in ("socks5://127.0.0.1:1080", "http://127.0.0.1:99999"):
        monkeypatch.setenv("https_proxy", odd)
        with pytest.raises(SourceFailed, match="no proxy that can be used; write it as"):
            await manifest("models.example")


@pytest.mark.parametrize("insecure", [False, True])
@pytest.mark.slow
async def test_a_host_that_takes_connections_and_says_nothing_is_said_at_once(insecure: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        host = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(Failed, match=rf'Get "https?://{host}/v2/ns/tiny/manifests/1": dial tcp {host}: i/o timeout$'):
            await manifest(host, insecure=insecure, stall_timeout=1.0)
        mute.setblocking(False)
        tried = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                mute.accept()[0].close()
                tried += 1
        assert tried == 1 + insecure, "once, not again and again; and without TLS where that is allowed"


async def test_what_breaks_off_before_anything_has_come_does_not_go_on() -> None:
    registry = StandIn(b"GGUF", status=503)
    async with AsyncExitStack() as stack:
        stack.push_async_callback((await registry.start()).cleanup)
        with pytest.raises(SourceFailed, match=r"answered 503; try again when it can be reached$"):
            await manifest(registry.host, insecure=True)


async def test_certificates_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/at/all.pem")
    with pytest.raises(SourceFailed, match=r"certificates /nowhere/at/all\.pem cannot be used \(.*SSL_CERT_FILE"):
        await manifest("127.0.0.1:1")
