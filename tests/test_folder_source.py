"""Pulling from a folder: a store on a removable disk, a folder of GGUF files; offline, checked, and before anybody is asked."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from gguf_files import gguf, shards, tensors
from ndani import settings
from ndani.errors import NotFound, Offline, SourceFailed
from ndani.names import parse
from ndani.sources import choose
from ndani.sources.fetcher import Fetcher
from ndani.sources.folder import FolderSource
from ndani.sources.pull import pull
from ndani.store import Store
from ndani.store.layout import digest_of
from ndani.types import Progress
from registries import put_model
from server import PATIENCE
from steps import all_steps
from test_registry import left_over

pytestmark = pytest.mark.usefixtures("home")

WEIGHTS = gguf(tensors(3))


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


async def collect(store: Store, model: str, disk: Path) -> list[Progress]:
    """As the fetcher does it, offline."""
    name = parse(model)
    return await all_steps(pull, store, name, choose(name, True, folders=(disk,), store_root=store.layout.root))


@pytest.mark.parametrize("inner", ["", "models"])
async def test_a_store_on_a_disk_is_pulled_offline(store: Store, disk: Path, inner: str) -> None:
    there = Store(disk / inner)
    manifest = put_model(there, parse("qwen2.5:3b"), WEIGHTS)
    steps = await collect(store, "Qwen2.5:3B", disk)
    assert steps[0].status == "pulling manifest"
    assert steps[-1].status == "success"
    entry = store.find(parse("qwen2.5:3b"))
    assert entry.path.read_bytes() == manifest
    assert entry.weights_path.read_bytes() == WEIGHTS
    with pytest.raises(Offline, match="NDANI_OFFLINE is set"):
        await collect(store, "other", disk)


async def test_a_flipped_byte_is_refused_removed_and_said(store: Store, disk: Path) -> None:
    there = Store(disk)
    put_model(there, parse("tiny"), WEIGHTS)
    with there.layout.blob(digest_of(WEIGHTS)).open("r+b") as file:
        file.seek(len(WEIGHTS) // 2)
        file.write(b"\xff\x00\xff")
    with pytest.raises(SourceFailed, match="digest mismatch, file must be downloaded again"):
        await collect(store, "tiny", disk)
    assert left_over(store) == []
    assert not store.list_models()
    there.layout.blob(digest_of(WEIGHTS)).write_bytes(WEIGHTS[:-1])
    with pytest.raises(SourceFailed, match=r"bytes, and \d+ were expected; copy it there again"):
        await collect(store, "tiny", disk)
    there.layout.blob(digest_of(WEIGHTS)).unlink()
    with pytest.raises(NotFound, match="which tiny:latest needs; copy it there again"):
        await all_steps(pull, store, parse("tiny"), [FolderSource(parse("tiny"), disk)])


@pytest.mark.parametrize(
    ("model", "file"),
    [
        ("tiny:1b", "tiny-1b.gguf"),
        ("tiny:1b", "Tiny_1B-Q4_K_M.gguf"),
        ("tiny", "sub/tiny-1b-F16.gguf"),
        ("tiny:1b-q8_0", "tiny.1b.Q8_0.gguf"),
        ("hf.co/someone/tiny:Q8_0", "tiny-Q8_0.gguf"),
        ("tiny:1b", "TINY-1B.GGUF"),
    ],
)
async def test_a_folder_of_gguf_files(store: Store, disk: Path, model: str, file: str) -> None:
    (disk / file).parent.mkdir(exist_ok=True)
    (disk / file).write_bytes(WEIGHTS)
    (disk / "other-1b.gguf").write_bytes(gguf(tensors(1)))
    steps = await collect(store, model, disk)
    assert any(step.status == f"reading {Path(file).name}" for step in steps), "its sum is taken first, with progress"
    assert store.find(parse(model)).weights_path.read_bytes() == WEIGHTS
    assert store.list_models()[0].details.family == "llama"
    with pytest.raises(Offline):
        await collect(store, "tiny:70b", disk)


async def test_a_model_that_is_called_as_a_draft_is_found_beside_others(store: Store, disk: Path) -> None:
    for path in ("eagle-7b-q8_0.gguf", "phi4-mini-q8_0.gguf", "mtp-phi4-mini.gguf", "qwen/Q8_0/qwen.gguf"):
        (disk / path).parent.mkdir(parents=True, exist_ok=True)
        (disk / path).write_bytes(gguf(tensors(1 + len(path))))
    for model, path in (("eagle:7b", "eagle-7b-q8_0.gguf"), ("phi4:mini", "phi4-mini-q8_0.gguf"), ("qwen:q8_0", "qwen/Q8_0/qwen.gguf")):
        await collect(store, model, disk)
        assert store.find(parse(model)).weights_path.read_bytes() == (disk / path).read_bytes()


@pytest.mark.parametrize("where", ["tiny-1b.gguf.sha256", "SHA256SUMS"])
async def test_sums_beside_the_files_count(store: Store, disk: Path, where: str) -> None:
    (disk / "tiny-1b.gguf").write_bytes(WEIGHTS)
    line = f"{hashlib.sha256(WEIGHTS).hexdigest()}  tiny-1b.gguf\n"
    (disk / where).write_text(f"{'0' * 64} *other.gguf\n{line}" if where.isupper() else line)
    assert not any(step.status.startswith("reading") for step in await collect(store, "tiny:1b", disk))
    store.delete(parse("tiny:1b"))
    (disk / "tiny-1b.gguf").write_bytes(WEIGHTS[:-1] + b"\xee")
    with pytest.raises(SourceFailed, match="digest mismatch"):
        await collect(store, "tiny:1b", disk)
    assert left_over(store) == []
    assert not store.list_models()


async def test_shards_in_a_folder_are_joined(store: Store, disk: Path) -> None:
    for number, part in enumerate(shards(tensors(4), 3)):
        (disk / f"tiny-1b-0000{number + 1}-of-00003.gguf").write_bytes(part)
    await collect(store, "tiny:1b", disk)
    assert store.find(parse("tiny:1b")).weights.size > len(WEIGHTS)
    (disk / "tiny-1b-00002-of-00003.gguf").unlink()
    with pytest.raises(SourceFailed, match="is one of 3 parts, and not all of them are there"):
        await collect(store, "tiny:1b", disk)


async def test_shards_that_do_not_belong_together_are_refused(store: Store, disk: Path) -> None:
    parts = shards(tensors(4), 3)
    for number, part in enumerate([parts[0], parts[2], parts[2]]):
        (disk / f"tiny-1b-0000{number + 1}-of-00003.gguf").write_bytes(part)
    with pytest.raises(SourceFailed, match=r"do not make a model: .* which is there already"):
        await collect(store, "tiny:1b", disk)
    assert left_over(store) == []
    assert not store.list_models()


async def test_a_file_that_is_no_model_is_the_folders_fault_and_is_not_kept(store: Store, disk: Path, tmp_path: Path) -> None:
    (disk / "tiny-1b.gguf").write_bytes(b"GGUF" + bytes(1000))
    with pytest.raises(SourceFailed, match=r"the files of tiny:1b do not make a model: .*; look at them where they come from"):
        await collect(store, "tiny:1b", disk)
    assert list(store.blobs.scan()) == []
    assert left_over(store) == []
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "tiny-1b.gguf").write_bytes(WEIGHTS)
    folders = (disk, tmp_path / "second")
    steps = await all_steps(pull, store, parse("tiny:1b"), choose(parse("tiny:1b"), True, folders=folders))
    assert steps[-1].status == "success", "the next folder is looked into"


async def test_links_out_of_the_folder_and_pipes_are_not_read(store: Store, disk: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(WEIGHTS)
    (disk / "evil-1b.gguf").symlink_to(tmp_path / "secret")
    with pytest.raises(SourceFailed, match=r"evil-1b\.gguf is a link out of .*; name a folder in NDANI_SOURCES that holds both"):
        await collect(store, "evil:1b", disk)
    (disk / "good").write_bytes(WEIGHTS)
    (disk / "tiny-1b.gguf").symlink_to(disk / "good")
    os.mkfifo(disk / "SHA256SUMS")
    async with asyncio.timeout(PATIENCE):
        await collect(store, "tiny:1b", disk)
    there = Store(disk)
    put_model(there, parse("pipe"), WEIGHTS)
    blob = there.layout.blob(digest_of(WEIGHTS))
    blob.unlink()
    os.mkfifo(blob)
    store.delete(parse("tiny:1b"))
    with pytest.raises(SourceFailed, match=r"cannot be read \(it is no file\)"):
        async with asyncio.timeout(PATIENCE):
            await collect(store, "pipe", disk)


@pytest.mark.slow
async def test_the_fetcher_looks_there_before_it_asks_anybody(store: Store, disk: Path) -> None:
    put_model(Store(disk), parse("someone/tiny:1"), WEIGHTS)
    put_model(store, parse("mine"), b"GGUF")
    given = {"NDANI_MODELS": str(store.layout.root), "NDANI_SOURCES": f"/nowhere/at/all, {disk}, {store.layout.root}", "NDANI_OFFLINE": "1"}
    fetcher = Fetcher(settings.load(given))
    assert (await all_steps(fetcher.pull, parse("someone/tiny:1"), False))[-1].status == "success"
    with pytest.raises(Offline):
        await all_steps(fetcher.pull, parse("mine"), False)
