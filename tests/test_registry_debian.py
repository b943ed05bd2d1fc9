"""Pulling from a real registry, Debian's: plain, with TLS and password, over a kill, and as a house's own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ndani.errors import NotFound, SourceFailed
from ndani.names import parse
from ndani.store import Store
from registries import Debian, no_debian
from steps import all_steps, following
from test_fetcher import kill_children
from test_registry import PIECE, SIZE, WEIGHTS, collect, fetcher, follow, held, left_over, source

Begin = Callable[..., Debian]

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def debian(tmp_path: Path) -> Iterator[Begin]:
    if why := no_debian():
        pytest.skip(why)
    begun: list[Debian] = []

    def begin(**how: bool) -> Debian:
        begun.append(Debian(tmp_path / f"registry{len(begun)}", **how))
        return begun[-1]

    yield begin
    for registry in begun:
        registry.stop()


async def test_pulls_from_a_real_registry_over_plain_http_when_told_to(debian: Begin, store: Store, home: Path) -> None:
    registry = debian()
    name = parse(f"{registry.host}/ns/tiny:1")
    manifest = registry.put(name, WEIGHTS)
    steps = await collect(store, name, source(name, home))
    assert steps[0].status == "pulling manifest"
    assert steps[-1].status == "success"
    assert held(store, name) == WEIGHTS
    assert left_over(store) == []
    assert store.layout.manifest(name).read_bytes() == manifest, "to the letter"
    assert store.list_models()[0].digest == hashlib.sha256(manifest).hexdigest()
    assert registry.requests("GET", "/blobs/").count((206, PIECE)) == SIZE // PIECE
    with pytest.raises(SourceFailed, match=r"^pull model manifest: insecure protocol http: .* `--insecure` allows that$"):
        await collect(store, name, source(name, home, insecure=False))
    with pytest.raises(NotFound, match=r"^pull model manifest: file does not exist$"):
        other = parse(f"{registry.host}/ns/other")
        await collect(store, other, source(other, home))


async def test_a_registry_with_tls_and_password(debian: Begin, store: Store, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, registry = debian(), debian(tls=True, password=True)
    name = parse(f"{registry.host}/ns/tiny:1")
    plain.put(name, WEIGHTS)
    registry.stop()
    (plain.folder / "data").rename(registry.folder / "data")
    registry.start()
    with pytest.raises(SourceFailed, match=r"no certificate that this machine trusts .* SSL_CERT_FILE, or use --insecure"):
        await collect(store, name, source(name, home, insecure=False))
    monkeypatch.setenv("SSL_CERT_FILE", str(registry.certificate))
    with pytest.raises(SourceFailed, match="asks for a user and a password; put them into"):
        await collect(store, name, source(name, home, insecure=False))
    (home / ".netrc").write_text('machine 127.0.0.1 login aladdin password "shut sesame"\n')
    with pytest.raises(SourceFailed, match="refused the user and password of"):
        await collect(store, name, source(name, home, insecure=False))
    assert not store.list_models()
    (home / ".netrc").write_text('machine 127.0.0.1 login aladdin password "open sesame"\n')
    await collect(store, name, source(name, home, insecure=False))
    assert held(store, name) == WEIGHTS
    monkeypatch.delenv("SSL_CERT_FILE")
    await collect(Store(store.layout.root / "second"), name, source(name, home, insecure=True))


async def test_a_real_registry_sends_each_byte_once_over_a_kill(debian: Begin, store: Store) -> None:
    registry = debian()
    name = parse(f"{registry.host}/ns/big:1")
    weights = WEIGHTS * 64
    registry.put(name, weights)
    with pytest.raises(SourceFailed, match="ended from outside"):
        async with following(fetcher(store).pull, name, True) as steps:
            async for step in steps:
                if step.total == len(weights) and (step.completed or 0) > 0:
                    kill_children()
    [partial] = store.layout.blobs.glob("*-partial")
    there = partial.stat().st_size
    assert there
    registry.settle()
    before = len(registry.requests("GET", "/blobs/"))
    await follow(fetcher(store), name)
    registry.settle()
    again = [count for status, count in registry.requests("GET", "/blobs/")[before:] if status == 206]
    licence = len(b"be nice")
    assert sum(again) == len(weights) - there + licence + len(b'{"model_format":"gguf"}'), "what was there is not sent again"
    assert held(store, name) == weights


async def test_names_without_a_host_belong_to_the_houses_registry(debian: Begin, store: Store, tmp_path: Path) -> None:
    registry = debian()
    registry.put(parse("phi4:mini"), WEIGHTS)
    registry.put(parse("phi4-mini:3.8b-q4_K_M"), WEIGHTS[:1000])
    here = fetcher(store, NDANI_REGISTRY=f"http://{registry.host}/")
    for name, weights in (("phi4:mini", WEIGHTS), ("phi4:mini-q4_k_m", WEIGHTS[:1000])):
        assert (await all_steps(here.pull, parse(name), False))[-1].status == "success"
        assert held(store, parse(name)) == weights, "without --insecure, for the house has said http itself"
    store.copy(parse("phi4:mini"), parse("someone/mine:1"))
    assert (await all_steps(here.push, parse("someone/mine:1"), False))[-1].status == "success"
    with pytest.raises(NotFound, match="file does not exist"):
        await follow(here, parse("phi4:14b"))
    second = Store(tmp_path / "second")
    there = fetcher(second, NDANI_REGISTRY=f"http://{registry.host}")
    assert (await all_steps(there.pull, parse("someone/mine:1"), False))[-1].status == "success"
