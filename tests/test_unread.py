"""What of a store cannot be read, or is not there: JSON without end, closed folders, links to a disk that is away, files that went."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import pytest

from ndani import names
from ndani.errors import StoreFailed
from ndani.store import Store, layout
from ordinary import NOBODY, run_as_ordinary_user
from test_store import blobs_of, layer, put_model


def age(store: Store) -> None:
    for digest, _ in list(store.blobs.scan()):
        os.utime(store.layout.blob(digest), (1000, 1000))


DEEP = b'{"a":' * 5000 + b"1" + b"}" * 5000


@pytest.mark.parametrize("what", ["config", "manifest", "params", "messages"])
def test_json_that_is_nested_too_deeply_costs_its_own_model_alone(store: Store, what: str) -> None:
    put_model(store, "good")
    put_model(store, "deep", b"other", **({what: DEEP} if what in ("params", "messages") else {}))
    path = store.layout.manifest(names.parse("deep"))
    if what == "config":
        manifest = json.loads(path.read_bytes())
        manifest["config"] = layer(store, layout.CONFIG, DEEP)
        path.write_bytes(json.dumps(manifest).encode())
    elif what == "manifest":
        path.write_bytes(path.read_bytes()[:-1] + b', "more": ' + DEEP + b"}")
    assert "good:latest" in {model.name for model in store.list_models()}
    assert [entry for entry in store.survey()[0] if str(entry.name) == "good:latest"]
    with pytest.raises(StoreFailed, match="nested more than 200 levels deep"):
        entry = store.find(names.parse("deep"))
        store.describe(entry)
        _ = entry.params, entry.messages


@pytest.mark.parametrize("place", ["file", "tag folder", "model folder"])
def test_a_manifest_on_a_disk_that_is_not_mounted_is_damaged_and_not_absent(store: Store, tmp_path: Path, place: str) -> None:
    put_model(store, "good")
    put_model(store, "me/away", b"on another disk")
    away = store.layout.manifest(names.parse("me/away"))
    linked = {"file": away, "tag folder": away.parent, "model folder": away.parent.parent}[place]
    linked.rename(tmp_path / "disk")
    linked.symlink_to(tmp_path / "disk")
    assert len(store.list_models()) == 2
    assert not store.survey()[1]
    (tmp_path / "disk").rename(tmp_path / "unmounted")
    age(store)
    before = blobs_of(store)
    assert [model.name for model in store.list_models()] == ["good:latest"]
    (sentence,) = store.damaged
    assert "is a link to a place that" in sentence
    assert "mount its disk, or remove the link" in sentence
    assert list(store.survey()[1].values()) == [sentence]
    with pytest.raises(StoreFailed, match="is a link to a place that"):
        store.find(names.parse("me/away"))
    assert store.prune() == ()
    assert store.removable()[0] == {}
    assert blobs_of(store) == before
    (tmp_path / "unmounted").rename(tmp_path / "disk")
    assert store.find(names.parse("me/away"))
    assert len(store.list_models()) == 2
    assert store.prune() == ()


@pytest.mark.parametrize("place", ["store", "manifests"])
def test_a_whole_store_that_is_not_mounted_is_not_an_empty_one(store: Store, tmp_path: Path, place: str) -> None:
    put_model(store, "good")
    age(store)
    linked = store.layout.root if place == "store" else store.layout.manifests
    linked.rename(tmp_path / "unmounted")
    linked.symlink_to(tmp_path / "disk")
    for ask in (store.list_models, store.names, store.survey, store.prune, lambda: store.find(names.parse("good"))):
        if ask == store.prune and place == "store":
            continue  # it has no blobs either
        with pytest.raises(StoreFailed, match="is a link to a place that is not there"):
            ask()


def test_a_name_whose_manifest_is_away_can_be_removed(store: Store, tmp_path: Path) -> None:
    put_model(store, "a")
    path = store.layout.manifest(names.parse("a"))
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    store.delete(names.parse("A"))
    assert not path.is_symlink()
    assert store.survey() == ((), {})


@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_a_folder_of_manifests_that_may_not_be_read_is_passed_over(mode: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        store = Store(Path(folder) / "models")
        put_model(store, "good")
        put_model(store, "closed/model", b"theirs")
        age(store)
        orphan = store.blobs.put(b"orphan")
        os.utime(store.layout.blob(orphan), (1000, 1000))
        closed = store.layout.manifest(names.parse("closed/model")).parent
        code = """
import json, os, sys
from pathlib import Path
from ndani import names
from ndani.errors import NdaniError
from ndani.store import Store
from ndani.store.maintenance import Damage, PruneResult, VerifyResult, prune, verify
store = Store(Path(sys.argv[1]))
said = {"list": [model.name for model in store.list_models()], "damaged": store.damaged}
last = verify(store, *store.survey(), lambda step: None)
said["verify"] = [[damage.problem, damage.models] for damage in last.damaged]
steps = []
steps.append(prune(store, steps.append))
said["prune"] = [step.problem for step in steps if isinstance(step, Damage)]
said["removed"] = [steps[-1].blobs, list(store.prune()), sum(1 for _ in store.blobs.scan())]
said["others"] = len(store.stored_models()), len(store.names()), str(store.find(names.parse("good")).name)
try:
    store.find(names.parse("closed/model"))
except NdaniError as error:
    said["find"] = str(error)
print(json.dumps(said))
"""
        try:
            for path in [store.layout.root, *store.layout.root.rglob("*")]:
                if os.geteuid() == 0:
                    os.chown(path, NOBODY, NOBODY)
            closed.chmod(mode)
            count = len(blobs_of(store))
            done = run_as_ordinary_user([sys.executable, "-c", code, str(store.layout.root)])
        finally:
            closed.chmod(0o755)
        assert done.returncode == 0, done.stderr
        printed = json.loads(done.stdout)
        sentence = f"the folder {closed} of the model store cannot be read (Permission denied); change its owner or mode"
        assert printed["list"] == ["good:latest"]
        assert printed["damaged"] == printed["prune"] == [sentence]
        assert printed["verify"] == [[sentence, []]]
        assert printed["removed"] == [0, [], count]
        assert printed["others"] == [1, 1, "good:latest"]
        assert "does not allow this" in printed["find"]


def test_nothing_is_named_whose_files_another_program_has_removed(store: Store) -> None:
    put_model(store, "a")
    path = store.layout.manifest(names.parse("a"))
    manifest, before = json.loads(path.read_bytes()), path.read_bytes()
    fresh = layer(store, layout.MODEL, b"fresh weights")
    store.layout.blob(str(fresh["digest"])).unlink()
    manifest["layers"] = [fresh]
    for name in ("a", "b"):
        with pytest.raises(StoreFailed, match=f"another program has removed a file of {name}:latest from the model store"):
            store.commit(names.parse(name), json.dumps(manifest).encode())
    assert path.read_bytes() == before
    assert len(store.list_models()) == 1
