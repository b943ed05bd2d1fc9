"""Pulling from repositories of files, and what goes wrong on the way there and at Ollama's registry: both kinds in one table."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from checkpoints import byte_level, made_of, sources, tiny_bert, tiny_llama
from gguf_files import gguf, shards, tensors
from hubs import SHA, Hub, git_id
from ndani import settings
from ndani.errors import NotFound, SourceFailed
from ndani.names import Name, parse
from ndani.sources import choose, open_registry
from ndani.sources.fetcher import Fetcher
from ndani.sources.hub import HubSource
from ndani.sources.pull import pull
from ndani.sources.registry import Registry, RegistrySource
from ndani.sources.retry import RetryPolicy
from ndani.store import Store
from ndani.store.gguf import read_header
from registries import StandIn
from steps import all_steps, following
from test_fetcher import kill_children
from test_registry import collect, held, left_over

pytestmark = pytest.mark.usefixtures("home")

QUICK = RetryPolicy(tries=3, first_delay=0.01, poll_interval=0.02)
PIECE = 100_000
MODEL = gguf(tensors(8, 100_000))
SMALL = gguf(tensors(2))
NAME = parse("hf.co/ns/tiny:Q8_0")


@pytest.fixture
async def hub(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hub]:
    found = Hub(MODEL)
    found.files = {".gitattributes": b"*.gguf filter=lfs", "tiny-Q8_0.gguf": MODEL, "tiny-F16.gguf": SMALL, "mmproj-F16.gguf": b"GGUF"}
    runner = await found.start()
    monkeypatch.setenv("HF_ENDPOINT", found.endpoint)
    yield found
    await runner.cleanup()


def hub_source(name: Name, stall_timeout: float = 30.0) -> HubSource:
    """A source as `choose` makes it, with a test's patience."""
    made = open_registry(name, offline=False)
    at = os.environ.get("HF_ENDPOINT", "")
    token = os.environ.get("HF_TOKEN", "")
    assert made.host == at.removeprefix("http://")
    assert isinstance(choose(name, False)[0], HubSource)
    registry = Registry(
        name, insecure=False, offline=False, key=Path("key"), endpoint=at, token=token, retries=QUICK, stall_timeout=stall_timeout
    )
    return HubSource(registry, PIECE)


@pytest.mark.parametrize("lists", ["revision", "tree", "bare"])
async def test_a_tag_is_a_file(hub: Hub, store: Store, lists: str) -> None:
    hub.lists = lists
    steps = await collect(store, NAME, hub_source(NAME))
    said = [step.status for step in steps]
    assert said[0] == "pulling manifest"
    assert said[-2:] == ["writing manifest", "success"]
    assert held(store, NAME) == MODEL
    assert left_over(store) == []
    [model] = store.list_models()
    assert model.name == "hf.co/ns/tiny:Q8_0"
    assert model.details.family == "llama"
    other = parse("hf.co/ns/tiny:f16")
    await collect(store, other, hub_source(other))
    assert held(store, other) == SMALL
    with pytest.raises(NotFound, match=r"has no q2_k; it has F16, Q8_0$"):
        await collect(store, parse("hf.co/ns/tiny:q2_k"), hub_source(parse("hf.co/ns/tiny:q2_k")))
    if lists == "revision":
        assert any(f"/resolve/{SHA}/" in path for _, path, _ in hub.seen), "of one commit"


@pytest.mark.slow
async def test_shards_are_pulled_as_parts_and_joined(hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    content = tensors(5, 20_000)
    parts = shards(content, 3)
    hub.files = {f"Q4_K_M/tiny-Q4_K_M-0000{n + 1}-of-00003.gguf": part for n, part in enumerate(parts)}
    hub.files |= {"tiny-F16.gguf": SMALL, "system": b"Be kind.", "params": b'{"temperature": 0.5}', "LICENSE": b"Free."}
    hub.files["template"] = b"{{ .Prompt }}"
    runner = await hub.start()
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    name = parse("hf.co/ns/tiny")
    steps = await collect(store, name, hub_source(name))
    await runner.cleanup()
    assert any(step.status.startswith("joining ") for step in steps)
    entry = store.find(name)
    found = read_header(entry.weights_path).tensors
    assert {tensor.name: tensor.shape for tensor in found} == {key: (len(raw),) for key, raw in content.items()}
    whole = entry.weights_path.read_bytes()
    assert all(raw in whole for raw in content.values())
    assert b"split." not in whole
    assert (entry.system, entry.template, entry.params, entry.licenses) == ("Be kind.", "{{ .Prompt }}", {"temperature": 0.5}, ("Free.",))
    assert {digest for digest, _ in store.blobs.scan()} == entry.digests, "the shards are gone"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "bert"])
async def test_safetensors_are_converted(hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / kind
    if kind == "llama":
        tiny_llama(folder, byte_level(), shards=2)
    else:
        folder.mkdir()
        tiny_bert(folder)
    hub.files = {name: path.read_bytes() for name, path in sources(folder).items()}
    hub.files |= {
        "README.md": b"#",
        "LICENSE": b"Free.",
        "consolidated.safetensors": b"the same in another form",
        "onnx/config.json": b"{}",
    }
    name, before = parse("hf.co/ns/tiny"), {path.name for path in store.layout.blobs.glob("*")}
    runner = await hub.start()
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    steps = await collect(store, name, hub_source(name))
    await runner.cleanup()
    converting = [step for step in steps if step.status == "converting model"]
    assert converting[-1].completed == converting[-1].total == len(held(store, name))
    assert steps[-1].status == "success"
    assert held(store, name) == made_of(folder)
    entry = store.find(name)
    assert store.describe(entry).capabilities == (("completion",) if kind == "llama" else ("embedding",))
    there = {path.name for path in store.layout.blobs.iterdir()} - before
    assert there == {digest.replace(":", "-") for digest in entry.digests}, "what it was made of is gone"
    assert not any("consolidated" in path or "onnx" in path for _, path, _ in hub.seen)


async def test_safetensors_that_cannot_be_converted_are_not_fetched(hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for config, said in [
        (b'{"architectures": ["MambaForCausalLM"]}', 'cannot be converted: unsupported architecture "MambaForCausalLM"'),
        (b"{}", "cannot be converted: unknown architecture"),
        (b"[", "cannot be converted: its config.json is not JSON"),
    ]:
        hub.files = {"config.json": config, "tokenizer.json": b"{}", "model.safetensors": b"weights"}
        runner = await hub.start()
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        with pytest.raises(SourceFailed, match=said):
            await collect(store, parse("hf.co/ns/tiny"), hub_source(parse("hf.co/ns/tiny")))
        await runner.cleanup()
    assert not any("safetensors" in path for _, path, _ in hub.seen), "said before anything large is fetched"


@pytest.mark.slow
async def test_safetensors_that_are_damaged_are_one_sentence(
    hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.files = {name: path.read_bytes() for name, path in sources(tiny_llama(tmp_path / "l", byte_level())).items()}
    hub.files["model.safetensors"] = hub.files["model.safetensors"][:-100]
    runner = await hub.start()
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    with pytest.raises(
        SourceFailed, match=r"^the files of hf.co/ns/tiny.* do not make a model: model.safetensors says something impossible"
    ):
        await collect(store, parse("hf.co/ns/tiny"), hub_source(parse("hf.co/ns/tiny")))
    await runner.cleanup()
    assert store.list_models() == []
    assert left_over(store) == []


@pytest.mark.parametrize(
    "item",
    [
        5,
        {"rfilename": 5, "size": 1},
        {"rfilename": "m.gguf", "lfs": {"size": "x", "sha256": "a" * 64}},
        {"rfilename": "m.gguf", "lfs": {"size": 1, "sha256": "../../../etc/passwd"}},
        {"rfilename": "m.gguf", "lfs": {"size": 1, "sha256": 5}},
        {"rfilename": "m.gguf", "size": 1, "blobId": "../x"},
        b'{"siblings": [{"rfilename": "\xff"}]}',
        b'{"siblings": ' + b"[" * 100_000,
        b"<html>",
    ],
    ids=lambda item: repr(item)[:40],
)
async def test_a_list_of_something_else_is_one_sentence(hub: Hub, store: Store, item: object) -> None:
    hub.odd, hub.raw = [item], item if isinstance(item, bytes) else b""
    with pytest.raises(SourceFailed, match="answered with something that is no list of files"):
        await collect(store, NAME, hub_source(NAME))


@pytest.mark.slow
async def test_a_byte_order_mark_before_a_list_is_passed_over(hub: Hub, store: Store) -> None:
    large = {"sha256": hashlib.sha256(MODEL).hexdigest(), "size": len(MODEL)}
    listed = {"sha": SHA, "siblings": [{"rfilename": "tiny-Q8_0.gguf", "size": len(MODEL), "lfs": large}]}
    hub.raw = b"\xef\xbb\xbf" + json.dumps(listed).encode()
    await collect(store, NAME, hub_source(NAME))
    assert held(store, NAME) == MODEL


async def test_what_a_hub_says_reaches_nobodys_terminal_raw_and_not_without_end(hub: Hub, store: Store) -> None:
    hub.odd = [{"rfilename": f"\x1b[2J\x1b]0;x\x07\n{'long' * 30}-{n}.gguf", "size": 1, "blobId": SHA} for n in range(4000)]
    fetcher = Fetcher(settings.load({"NDANI_MODELS": str(store.layout.root)}))
    with pytest.raises(NotFound, match=r"has no Q8_0; it has .*longlong") as caught:
        await all_steps(fetcher.pull, NAME, False)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1100


async def test_null_in_a_list_of_files_is_nothing(hub: Hub, store: Store) -> None:
    digest = hashlib.sha256(MODEL).hexdigest()
    hub.files["params"] = b'{"temperature": null, "top_k": 7}'
    listed = {"rfilename": "tiny-Q8_0.gguf", "size": None, "blobId": None, "lfs": {"sha256": digest, "oid": None, "size": len(MODEL)}}
    hub.odd = [listed, {"rfilename": "params", "size": 33, "blobId": git_id(hub.files["params"]), "lfs": None}]
    await collect(store, NAME, hub_source(NAME))
    assert held(store, NAME) == MODEL
    assert store.find(NAME).params == {"top_k": 7}


async def test_the_token_is_for_the_hub_alone(hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Hub(MODEL)
    storage.files = hub.files
    runner = await storage.start()
    hub.token, hub.elsewhere = "hf_secret", storage.endpoint
    with pytest.raises(
        SourceFailed, match=r"refused ns/tiny: it is not there, or private, or its terms .* put a token of yours into HF_TOKEN"
    ):
        await collect(store, NAME, hub_source(NAME))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(SourceFailed, match="refused the token of HF_TOKEN for this model"):
        await collect(store, NAME, hub_source(NAME))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    await collect(store, NAME, hub_source(NAME))
    await runner.cleanup()
    assert held(store, NAME) == MODEL
    assert storage.seen
    assert {authorization for _, _, authorization in storage.seen} == {""}
    # Nobody else's registry is shown it, by whatever name.
    other = StandIn(MODEL, token="t")
    runner = await other.start()
    await collect(store, other.name, RegistrySource(open_registry(other.name, offline=False, insecure=True), PIECE))
    await runner.cleanup()
    assert not any("hf_secret" in authorization for _, _, authorization in other.seen)


@pytest.mark.slow
async def test_a_killed_pull_goes_on_where_it_stopped(hub: Hub, store: Store) -> None:
    hub.pause = 0.05
    fetcher = Fetcher(settings.load({"NDANI_MODELS": str(store.layout.root)}))
    with pytest.raises(SourceFailed, match="ended from outside"):
        async with following(fetcher.pull, NAME, False) as steps:
            async for step in steps:
                if step.digest == hub.model and (step.completed or 0) > len(MODEL) // 3:
                    kill_children()
    there = store.layout.partial(hub.model).stat().st_size
    assert there > len(MODEL) // 3
    assert not store.list_models()
    await asyncio.sleep(0.2)
    while hub.at_once:
        await asyncio.sleep(0.02)
    hub.spans, hub.pause = [], 0
    assert (await all_steps(fetcher.pull, NAME, False))[-1].status == "success"
    assert hub.spans == [[there, len(MODEL) - there]]
    assert held(store, NAME) == MODEL


async def test_a_registry_that_is_no_hub_says_what_it_says(store: Store) -> None:
    registry = StandIn(MODEL)
    runner = await registry.start()
    other = parse(f"{registry.host}/ns/other")
    source = HubSource(Registry(other, insecure=True, offline=False, key=Path("key"), retries=QUICK))
    with pytest.raises(NotFound, match=r"^pull model manifest: file does not exist$"):
        await collect(store, other, source)
    await runner.cleanup()


async def test_any_host_may_be_a_hub_and_is_shown_no_token(hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    name = parse(f"{hub.host}/ns/tiny:q8_0")
    [source] = choose(name, False, insecure=True)
    assert (await all_steps(pull, store, name, [source], retries=QUICK))[-1].status == "success"
    assert held(store, name) == MODEL
    assert {authorization for _, _, authorization in hub.seen} == {""}


async def test_a_small_file_with_other_bytes_is_refused(hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files["template"] = b"{{ .Prompt }}"
    listed = hub.revision

    async def revision(request: object) -> object:
        answer = await listed(request)  # type: ignore[arg-type]
        hub.files["template"] = b"something else"
        return answer

    hub.revision = revision  # type: ignore[method-assign, assignment]
    runner = await hub.start()
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    with pytest.raises(SourceFailed, match="digest mismatch, template must be downloaded again"):
        await collect(store, NAME, hub_source(NAME))
    await runner.cleanup()
    assert not store.list_models()


# What goes wrong, at both kinds of places. Each ends in success, or in one sentence.

TABLE = {
    "nobody may": ({"token": "t", "never": True}, "refused"),
    "the permission ends in mid-pull": ({"token": "t", "lives": 4, "expires": 3}, ""),
    "too many requests, for a moment": ({"busy": 2, "retry_after": "1"}, ""),
    "too many requests, for an hour": ({"busy": 99, "retry_after": "3600"}, "answered 429; it asks to be left alone for 3600 seconds"),
    "the bytes are at another host": ({"elsewhere": "storage"}, ""),
    "a part stands still": ({"stall": 2}, ""),
    "a part stands still for ever": ({"ends_at": len(MODEL) // 2}, "sent nothing for too long; pull again"),
    "a part breaks off": ({"breaks": 3}, ""),
    "a wrong length": ({"shorten": 5}, f"has {len(MODEL) - 5} bytes at .*, and {len(MODEL)} were expected"),
    "a wrong byte": ({"flip": True}, "digest mismatch, file must be downloaded again"),
    "no ranges": ({"ranges": False}, ""),
    "an error that stays": ({"status": 503}, "answered 503"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["registry", "hub"])
@pytest.mark.parametrize("what", list(TABLE))
async def test_what_goes_wrong(what: str, kind: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    switches, sentence = TABLE[what]
    place, storage = (StandIn(MODEL), StandIn(MODEL)) if kind == "registry" else (Hub(MODEL), Hub(MODEL))
    for each in (place, storage):
        if isinstance(each, Hub):
            each.files = {"tiny-Q8_0.gguf": MODEL}
    runners = [await place.start(), await storage.start()]
    for switch, value in switches.items():
        if hasattr(place, switch):
            setattr(place, switch, f"http://{storage.host}" if value == "storage" else value)
    stall_timeout = {"a part stands still": 2.0, "a part stands still for ever": 0.4}.get(what, 30.0)
    if isinstance(place, Hub):
        monkeypatch.setenv("HF_ENDPOINT", place.endpoint)
        monkeypatch.setenv("HF_TOKEN", place.token)
        source: RegistrySource = hub_source(place.name, stall_timeout)
    else:
        registry = Registry(
            place.name, insecure=True, offline=False, key=Path(os.environ["HOME"]) / "key", retries=QUICK, stall_timeout=stall_timeout
        )
        source = RegistrySource(registry, PIECE)
    try:
        if sentence:
            with pytest.raises(SourceFailed, match=sentence) as caught:
                await collect(store, place.name, source)
            assert "\n" not in str(caught.value)
            assert not store.list_models()
            assert what != "a wrong byte" or not left_over(store), "nothing wrong may be taken for a beginning"
        else:
            await collect(store, place.name, source)
            assert held(store, place.name) == MODEL
            assert left_over(store) == []
        assert {authorization for _, path, authorization in storage.seen} <= {""}
        if "elsewhere" in switches:
            assert storage.sent[storage.model] == len(MODEL), "each byte once, from there"
    finally:
        for runner in runners:
            await runner.cleanup()
