"""Our store as a registry: what it serves and what it does not, and a second store that pulls from it, over a real server."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from golden_cli import run
from mirrors import Mirror
from ndani import settings
from ndani.errors import SourceFailed
from ndani.names import parse
from ndani.sources.fetcher import Fetcher
from ndani.store import Store
from ndani.store.layout import digest_of
from registries import put_model
from server import until
from steps import all_steps, following
from test_fetcher import kill_children

pytestmark = [pytest.mark.usefixtures("home"), pytest.mark.slow]

WEIGHTS = random.Random(5).randbytes(2 << 20)
NAME = parse("tiny:1")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "models")
    put_model(store, NAME, WEIGHTS)
    return store


@pytest.fixture
def mirror(store: Store, tmp_path: Path) -> Iterator[Mirror]:
    running = Mirror(store.layout.root, tmp_path)
    yield running
    assert running.close() == 0, running.log
    assert "Traceback" not in running.log


def test_it_speaks_the_protocol(mirror: Mirror, store: Store) -> None:
    http, manifest, model = mirror.http, store.find(NAME).path.read_bytes(), digest_of(WEIGHTS)
    put_model(store, parse("hf.co/someone/other:Q8_0"), b"GGUF other")
    assert http.get("/v2/").json() == {}
    assert http.get("/v2/").headers["docker-distribution-api-version"] == "registry/2.0"
    assert http.get("/v2/_catalog").json() == {"repositories": ["library/tiny", "someone/other"]}
    page = http.get("/v2/_catalog", params={"n": 1})
    assert page.json() == {"repositories": ["library/tiny"]}
    assert http.get(re.search("<(.*)>", page.headers["link"])[1]).json() == {"repositories": ["someone/other"]}  # type: ignore[index]
    assert http.get("/v2/library/tiny/tags/list").json() == {"name": "library/tiny", "tags": ["1"]}
    for odd in ("0", "-1", "²", "9" * 5000):
        assert len(http.get("/v2/_catalog", params={"n": odd}).json()["repositories"]) == 2, odd
    for reference in ("1", digest_of(manifest)):
        got = http.get(f"/v2/library/tiny/manifests/{reference}")
        assert got.content == manifest
        assert got.headers["docker-content-digest"] == digest_of(manifest)
        head = http.head(f"/v2/library/tiny/manifests/{reference}")
        assert head.status_code == 200
        assert head.content == b""
        assert head.headers["content-length"] == str(len(manifest))
    blob = f"/v2/library/tiny/blobs/{model}"
    head = http.head(blob)
    assert (head.status_code, head.headers["content-length"], head.headers["docker-content-digest"]) == (200, str(len(WEIGHTS)), model)
    whole = http.get(blob)
    assert whole.status_code == 200
    assert whole.content == WEIGHTS
    assert whole.headers["location"] == blob, "without it Ollama goes no further"


def test_a_slash_too_many_is_a_redirect(mirror: Mirror) -> None:
    for path, there in (
        ("//v2/library/tiny/manifests/1", "/v2/library/tiny/manifests/1"),
        ("/v2//library/tiny/tags/list?n=1", "/v2/library/tiny/tags/list?n=1"),
        ("//v2/", "/v2/"),
        ("/v2", "/v2/"),
    ):
        answer = httpx.get(f"http://{mirror.host}{path}", trust_env=False)
        assert (answer.status_code, answer.headers["location"]) == (301 if path == "/v2" else 307, there)
        assert httpx.get(f"http://{mirror.host}{path}", trust_env=False, follow_redirects=True).status_code == 200
    assert httpx.get(f"http://{mirror.host}//v2/library/nope/tags/list", trust_env=False).status_code == 307


def test_ranges(mirror: Mirror) -> None:
    blob, size = f"/v2/library/tiny/blobs/{digest_of(WEIGHTS)}", len(WEIGHTS)
    for said, first, end in (
        ("0-9", 0, 10),
        ("100-", 100, size),
        ("-7", size - 7, size),
        (f"5-{1 << 40}", 5, size),
        ("1048570-1048590", 1048570, 1048591),
    ):
        got = mirror.http.get(blob, headers={"Range": f"bytes={said}"})
        assert got.status_code == 206, said
        assert got.content == WEIGHTS[first:end], said
        assert got.headers["content-range"] == f"bytes {first}-{end - 1}/{size}"
    for odd in ("bytes=0-1,4-5", "lines=1-2", "bytes=x", f"bytes=0-{'9' * 5000}"):
        got = mirror.http.get(blob, headers={"Range": odd})
        assert got.status_code == 200, odd
        assert got.content == WEIGHTS, odd
    for beyond in (f"bytes={size}-", "bytes=-0", "bytes=9-3"):
        got = mirror.http.get(blob, headers={"Range": beyond})
        assert got.status_code == 416, beyond
        assert got.headers["content-range"] == f"bytes */{size}", beyond
        assert got.json()["errors"], beyond


def test_only_what_a_manifest_of_the_name_lists_is_served(mirror: Mirror, store: Store) -> None:
    http = mirror.http
    stray = store.blobs.put(b"nobody named this")
    put_model(store, parse("other:1"), b"GGUF other")
    store.layout.partial(digest_of(b"half")).write_bytes(b"ha")
    gone = store.find(parse("other:1")).weights
    store.layout.blob(gone.digest).write_bytes(b"GGUF")  # cut short
    for path, code in (
        (f"/v2/library/tiny/blobs/{stray}", "BLOB_UNKNOWN"),
        (f"/v2/library/tiny/blobs/{gone.digest}", "BLOB_UNKNOWN"),
        (f"/v2/library/other/blobs/{gone.digest}", "BLOB_UNKNOWN"),
        (f"/v2/library/tiny/blobs/{digest_of(b'half')}", "BLOB_UNKNOWN"),
        (f"/v2/library/tiny/blobs/{digest_of(b'half')}-partial", "BLOB_UNKNOWN"),
        ("/v2/library/tiny/blobs/..%2f..%2fetc%2fpasswd", "NAME_UNKNOWN"),
        ("/v2/library/tiny/manifests/2", "MANIFEST_UNKNOWN"),
        ("/v2/library/nope/manifests/1", "NAME_UNKNOWN"),
        ("/v2/library/nope/tags/list", "NAME_UNKNOWN"),
        ("/v2/../../etc/passwd", "NAME_UNKNOWN"),
        ("/elsewhere", "NAME_UNKNOWN"),
    ):
        got = http.get(path)
        assert got.status_code == 404, path
        [error] = got.json()["errors"]
        assert error["code"] == code or "%2f" in path
        assert error["message"], path
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        for path in ("/v2/library/tiny/blobs/uploads/", "/v2/library/tiny/manifests/1", f"/v2/library/tiny/blobs/{stray}", "/v2/"):
            got = http.request(method, path)
            assert got.status_code == 405, (method, path)
            assert got.json()["errors"][0]["code"] == "UNSUPPORTED", (method, path)
            assert got.headers["allow"] == "GET, HEAD"
    assert store.find(NAME)
    assert http.get("/v2/", headers={"Host": "evil.example"}).status_code == 403


async def test_another_store_pulls_from_it_and_goes_on_in_the_middle(mirror: Mirror, store: Store, tmp_path: Path) -> None:
    second, weights = Store(tmp_path / "second"), WEIGHTS * 24
    put_model(store, parse("big:1"), weights)
    fetcher = Fetcher(settings.load({"NDANI_MODELS": str(second.layout.root)}))
    name = parse(f"{mirror.host}/library/big:1")
    with pytest.raises(SourceFailed, match=r"does not speak https; `--insecure` allows that"):
        await all_steps(fetcher.pull, name, False)
    with pytest.raises(SourceFailed, match="ended from outside"):
        async with following(fetcher.pull, name, True) as steps:
            async for step in steps:
                if step.total == len(weights) and (step.completed or 0) > 0:
                    kill_children()
    partial = second.layout.partial(digest_of(weights))
    there = partial.stat().st_size if partial.exists() else 0
    async with following(fetcher.pull, name, True) as steps:
        done = [step.completed async for step in steps if step.total == len(weights)]
    assert done[0] == there, "it goes on where it stopped"
    assert second.find(name).weights_path.read_bytes() == weights
    assert second.find(name).path.read_bytes() == store.find(parse("big:1")).path.read_bytes()


async def test_a_house_that_names_it_pulls_short_names_from_it(mirror: Mirror, tmp_path: Path) -> None:
    second = Store(tmp_path / "second")
    given = {"NDANI_MODELS": str(second.layout.root), "NDANI_REGISTRY": f"http://{mirror.host}"}
    assert (await all_steps(Fetcher(settings.load(given)).pull, NAME, False))[-1].status == "success"
    assert str(second.find(NAME).name) == "tiny:1", "under the name that was typed"


def test_who_leaves_is_logged_as_gone_and_who_stays_for_ever_does_not_hold_up_the_end(mirror: Mirror, store: Store) -> None:
    weights = WEIGHTS * 16  # more than the system takes in for somebody else
    put_model(store, parse("big:1"), weights)
    host, _, port = mirror.host.partition(":")
    request = f"GET /v2/library/big/blobs/{digest_of(weights)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    with ExitStack() as stack:
        readers = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(4)]
        for reader in readers:
            reader.sendall(request)
            assert reader.recv(100).startswith(b"HTTP/1.1 200")
        readers[0].close()
        until(lambda: mirror.log.count("status=499") == 1, "the one who left is logged")
        assert mirror.close() == 0
    assert mirror.log.count("status=499") == 4
    assert "status=200" not in mirror.log
    assert "Traceback" not in mirror.log


def test_at_the_terminal(tmp_path: Path, mirror: Mirror) -> None:
    environment = {**os.environ, "NDANI_MODELS": str(tmp_path / "models")}
    taken = run(("mirror", "--host", mirror.host), environment)
    assert taken.exit == 1
    assert f"listen tcp {mirror.host}: address already in use" in taken.stderr
    assert "with --host" in taken.stderr
    assert f"listen tcp {mirror.host}: address" in run(("mirror", "--host", f"http://{mirror.host}/"), environment).stderr
    assert run(("mirror", "now"), environment).stderr == "Error: accepts 0 arg(s), received 1\n"
    assert run(("mirror", "--host", "127.0.0.1:99999"), environment).stderr.startswith("Error: '127.0.0.1:99999' is not an address")
    assert mirror.http.get("/v2/").json() == {}, "the first one goes on"


def test_a_mirror_ends_with_its_terminal(mirror: Mirror) -> None:
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        pytest.skip("whoever runs these tests ignores this signal, and so do the children")
    assert mirror.close(signal.SIGHUP) == 0
    assert mirror.log.rstrip().endswith("stopped")
