"""What a killed process, another program or an earlier model has left in a store."""

from __future__ import annotations

import os
import struct
import sys
import time
from pathlib import Path

import pytest

from conftest import Start
from ndani import names
from ndani.store import Store
from ndani.store.handover import FILE, accept_file, create_slot
from ndani.store.maintenance import UnusedFile, prune
from server import until
from steps import listed
from stores import gguf, put_echo
from test_locks import run_among_own_mounts

WEEKS = 20 * 86400


@pytest.fixture
def store(tmp_path: Path) -> Store:
    put_echo(tmp_path / "models", "a")
    return Store(tmp_path / "models")


def age(path: Path) -> None:
    os.utime(path, (time.time() - WEEKS,) * 2)


def test_a_file_systems_own_folder_among_the_blobs_is_passed_over(store: Store) -> None:
    (store.layout.blobs / ".snapshot").mkdir()
    left = store.layout.blobs / f".{'0' * 32}"
    left.touch()
    for path in (left, left.with_name(".snapshot")):
        age(path)
    store.prune()
    assert listed(prune, store)[-1]
    assert [path.name for path in store.layout.blobs.glob(".*")] == [".snapshot"]


def test_what_was_never_named_goes_wherever_it_was_left(store: Store) -> None:
    layout = store.layout
    paths = [folder / f".{digit * 32}" for folder in (layout.manifests, layout.locks, layout.header_notes) for digit in "ab"]
    others = [layout.manifests / ".DS_Store", layout.locks / ".hidden"]
    for path in (*paths, *others):
        path.parent.mkdir(exist_ok=True)
        path.touch()
        if path.name[1] != "b":
            age(path)
    said = [step.file for step in listed(prune, store, dry_run=True) if isinstance(step, UnusedFile)]
    assert said == [f".{'a' * 32}"]
    store.prune()
    assert [path for path in (*paths, *others) if path.exists()] == [*(path for path in paths if path.name[1] == "b"), *others]


def test_what_a_name_stood_for_goes_when_another_is_copied_over_it(store: Store) -> None:
    put_echo(store.layout.root, "b")
    before = store.find(names.parse("b"))
    store.copy(names.parse("a"), names.parse("b"))
    assert not store.blobs.has(before.weights.digest)
    store.copy(names.parse("a"), names.parse("a"))
    store.copy(names.parse("a"), names.parse("b"))
    assert all(store.blobs.has(digest) for digest in store.find(names.parse("b")).digests)


def test_and_leaves_the_memory(start: Start, store: Store) -> None:
    put_echo(store.layout.root, "b")
    server = start(store.layout.root)
    server.ask("/api/generate", {"model": "b", "prompt": "x", "options": {"num_predict": 1}})
    assert list(server.resident()) == ["b:latest"]
    assert server.post("/api/copy", {"source": "a", "destination": "b"}).status_code == 200
    until(lambda: not server.resident(), "it is gone from memory", at_rest=10)


@pytest.mark.parametrize("way", ["put", "handed over"])
def test_what_was_noted_of_a_damaged_file_is_forgotten_though_another_program_removed_it(store: Store, way: str) -> None:
    whole = gguf("note", context=8192)
    digest = put_echo(store.layout.root, "note", whole)
    path = store.layout.blob(digest)
    path.write_bytes(whole.replace(struct.pack("<II", 4, 8192), struct.pack("<II", 4, 4096)))

    def context(of: Store) -> int:
        return next(model.details.context_length for model in of.list_models() if model.name == "note:latest")

    assert context(store) == 4096
    path.unlink()
    if way == "put":
        store.blobs.put(whole)
    else:
        place = create_slot(store.layout)
        (store.layout.handover / place / FILE).write_bytes(whole)
        assert [step.status for step in listed(accept_file, store, place)][-1] == "success"
    assert context(Store(store.layout.root)) == context(store) == 8192


SEEN = """
mount -t ramfs ramfs "$1" && exec "$2" -c 'import sys; from pathlib import Path; from ndani.store import Store
from ndani.store.damage_notes import last_change, note_damage, note_replacement
layout = Store(Path(sys.argv[1]) / "models").layout
layout.root.mkdir()
seen, digest = [], "sha256:" + "0" * 64
for change in 50 * [lambda: note_replacement(layout, digest), lambda: note_damage(layout, digest, "state")]:
    change()
    seen.append(last_change(layout))
print(len(set(seen)))' "$1"
"""


def test_every_change_is_seen_though_the_disks_clock_is_coarse(tmp_path: Path) -> None:
    """As that of every disk of an older Linux is: what changes within one tick has one time."""
    done = run_among_own_mounts(["sh", "-c", SEEN, "sh", str(tmp_path), sys.executable])
    assert done.stdout == "100\n", done.stdout + done.stderr
