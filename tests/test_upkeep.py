"""Looking after a store: damage found, repaired from where the model came, unused files removed; and a store of many models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from big_store import build
from cli_server import NDANI, free_port, serving
from golden_cli import run
from ndani import names
from ndani.service.maintenance import Maintenance
from ndani.settings import Settings
from ndani.sources.fetcher import Fetcher
from ndani.sources.repair import repair
from ndani.store import Store
from ndani.store.blobs import PARTIAL_MAX_AGE
from ndani.store.maintenance import Damage, PruneResult, UnusedFile, VerifyResult, prune, verify
from ndani.store.store import MIN_UNUSED_AGE
from ndani.types import Progress
from registries import StandIn, put_model
from server import until
from steps import Left, all_steps, listed
from stores import put_echo
from terminal import PATIENCE, terminal
from test_pull import NAME, QUICK, House, Place, house, make_place

__all__ = ["house"]

OLD = time.time() - MIN_UNUSED_AGE - 60


def spoil(store: Store, digest: str) -> Path:
    """Change one byte of a blob; its length stays."""
    path = store.layout.blob(digest)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    return path


def orphan(store: Store, content: bytes = b"nobody's" * 5000, old: float = OLD) -> Path:
    path = store.layout.blob(store.blobs.put(content))
    os.utime(path, (old, old))
    return path


def verified(store: Store, **more: object) -> VerifyResult:
    entries, damaged = store.survey()
    *_, last = listed(verify, store, entries, damaged, **more)
    assert isinstance(last, VerifyResult)
    return last


# ---------------------------------------------------------------- verify


def test_every_kind_of_damage_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put_echo(tmp_path, "whole")
    put_echo(tmp_path, "other", license="MIT")
    store.copy(names.parse("other"), names.parse("copy"))
    assert verified(store).damaged == ()
    entry = store.find(names.parse("other"))
    spoil(store, entry.weights.digest)
    licence = entry.layers[1]
    store.layout.blob(licence.digest).unlink()
    found = {damage.digest: damage for damage in verified(store).damaged}
    assert set(found) == {entry.weights.digest, licence.digest}
    assert found[entry.weights.digest].problem == "its bytes are not those of its digest"
    assert found[licence.digest] == Damage("it is missing", ("copy:latest", "other:latest"), licence.digest)
    store.layout.blob(licence.digest).write_bytes(b"MITx")
    assert [d.problem for d in verified(store, only=frozenset({licence.digest})).damaged] == ["it has 4 bytes, and should have 3"]
    store.layout.manifest(names.parse("whole")).write_text("{")
    assert [d.models for d in verified(store).damaged if not d.digest] == [("whole:latest",)]


def test_a_model_that_is_removed_meanwhile_is_no_damage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put_echo(tmp_path, "echo")
    steps: list[Progress | Damage] = []

    def report(step: Progress | Damage) -> None:
        if not steps:
            store.delete(names.parse("echo"))
        steps.append(step)

    verify(store, *store.survey(), report)
    assert [step for step in steps if isinstance(step, Damage)] == []


async def collect(upkeep: Maintenance, **more: object) -> VerifyResult:
    body = {"model": "", "digests": frozenset(), "repair": False, "insecure": False} | more
    steps = await all_steps(upkeep.verify, **body)
    assert isinstance(steps[-1], VerifyResult)
    return steps[-1]


@pytest.fixture
async def registry() -> AsyncIterator[StandIn]:
    stand_in = StandIn(os.urandom(300_000))
    runner = await stand_in.start()
    yield stand_in
    await runner.cleanup()


@pytest.mark.slow
async def test_what_is_damaged_is_brought_again_and_no_name_changes(registry: StandIn, tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    name = registry.name
    put_model(store, name, registry.weights)
    put_echo(tmp_path / "models", "local")
    before = store.layout.manifest(name).read_bytes()
    entry = store.find(name)
    for digest in entry.digests:
        spoil(store, digest)
    upkeep = Maintenance(store, Fetcher(Settings(models=store.layout.root)))
    assert len((await collect(upkeep)).damaged) == 3
    refused = await collect(upkeep, repair=True)
    assert len(refused.damaged) == 3
    assert all("could not be pulled again" in damage.problem for damage in refused.damaged)
    last = await collect(upkeep, repair=True, insecure=True)
    assert last.damaged == (), last
    assert (await collect(upkeep)).damaged == ()
    assert store.layout.manifest(name).read_bytes() == before


@pytest.mark.slow
async def test_a_source_that_has_other_files_by_now_is_no_repair(registry: StandIn, tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    put_model(store, registry.name, b"another version" * 9)
    digest = store.find(registry.name).weights.digest
    path = spoil(store, digest)
    upkeep = Maintenance(store, Fetcher(Settings(models=store.layout.root)))
    (damage,) = (await collect(upkeep, repair=True, insecure=True)).damaged
    assert "has other files by now" in damage.problem
    assert path.exists()


@pytest.mark.parametrize("shape", ["deflated", "four stored parts"])
async def test_a_model_of_the_catalogue_is_repaired(house: House, tmp_path: Path, shape: str) -> None:
    place: Place = make_place(house, tmp_path, shape)
    await place.pull()
    entry = place.store.find(NAME)
    for digest in entry.digests:
        spoil(place.store, digest)
    steps = await all_steps(repair, place.store, NAME, [place.source()], frozenset(entry.digests), retries=QUICK)
    assert steps[-1].status == "success"
    assert verified(place.store).damaged == ()
    assert place.left_over() == []


# ---------------------------------------------------------------- prune


def test_only_what_nobody_needs_is_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put_echo(tmp_path, "echo")
    kept = {path.name for path in store.layout.blobs.iterdir()}
    unused, young, claimed = orphan(store), orphan(store, b"young", time.time()), orphan(store, b"claimed")
    partial = store.layout.blobs / f"sha256-{'a' * 64}-partial"
    partial.write_bytes(b"x" * 9000)
    os.utime(partial, (time.time() - PARTIAL_MAX_AGE - 60,) * 2)
    fresh = store.layout.blobs / f"sha256-{'b' * 64}-partial"
    fresh.write_bytes(b"x")
    with store.claim({f"sha256:{claimed.name[7:]}"}):
        steps = listed(prune, store, dry_run=True)
        assert {step.file for step in steps if isinstance(step, UnusedFile)} == {unused.name, partial.name}
        assert isinstance(steps[-1], PruneResult)
        assert (steps[-1].blobs, steps[-1].unfinished) == (1, 1)
        assert unused.exists(), "a rehearsal removes nothing"
        assert partial.exists(), "a rehearsal removes nothing"
        *_, last = listed(prune, store)
    assert last == steps[-1]
    assert 40000 <= steps[-1].freed < 100_000
    assert {path.name for path in store.layout.blobs.iterdir()} == kept | {young.name, claimed.name, fresh.name}


def test_nothing_is_removed_while_a_manifest_is_damaged(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put_echo(tmp_path, "echo")
    unused = orphan(store)
    store.layout.manifest(names.parse("echo")).write_text("{")
    partial = store.layout.blobs / f"sha256-{'a' * 64}-partial"
    partial.write_bytes(b"x" * 9000)
    os.utime(partial, (time.time() - PARTIAL_MAX_AGE - 60,) * 2)
    steps = listed(prune, store)
    (said,) = [step for step in steps if isinstance(step, Damage)]
    assert said.models == ("echo:latest",)
    assert "remove it with `ndani rm`" in said.problem
    assert isinstance(steps[-1], PruneResult)
    assert (steps[-1].blobs, steps[-1].unfinished) == (0, 1)
    assert unused.exists()
    assert not partial.exists()
    store.delete(names.parse("echo"))
    listed(prune, store)
    assert not unused.exists()


def test_an_empty_store_has_nothing_to_prune(tmp_path: Path) -> None:
    assert listed(prune, Store(tmp_path / "nowhere"))[-1] == PruneResult(0, 0, 0)


def test_many_files_go_in_several_steps_that_can_be_left(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put_echo(tmp_path, "echo")
    paths = [orphan(store, f"unused {number}".encode() * 500) for number in range(150)]

    def leave(step: object) -> None:
        if getattr(step, "completed", None):
            raise Left

    with pytest.raises(Left):
        prune(store, leave)
    left = sum(path.exists() for path in paths)
    assert 0 < left < 150
    *_, last = listed(prune, store)
    assert isinstance(last, PruneResult)
    assert last.blobs == left


# ---------------------------------------------------------------- notes of heads


def test_a_listing_reads_no_weights_twice(tmp_path: Path) -> None:
    build(tmp_path, 3, 3_000_000, tokens=5000)
    first = Store(tmp_path).list_models()
    notes = sorted((tmp_path / ".heads").iterdir())
    assert len(notes) == 3
    # Weights that cannot be read any more are listed from what was noted, and so with all that was known.
    for path in (tmp_path / "blobs").iterdir():
        if path.stat().st_size > 900_000:
            with path.open("r+b") as file:
                file.write(b"none")
    assert Store(tmp_path).list_models() == first
    for note, content in zip(notes, (b"{", b"", b'{"keys": 3}'), strict=True):
        note.write_bytes(content)
    assert all(model.details.context_length == 0 for model in Store(tmp_path).list_models()), "a damaged note counts for nothing"


def test_a_note_goes_with_its_weights(tmp_path: Path) -> None:
    store = build(tmp_path, 2, 2_000_000, tokens=5000)
    store.list_models()
    store.delete(names.parse("big/model-0000"))
    assert len(list((tmp_path / ".heads").iterdir())) == 1


def test_show_has_the_tensors_after_a_listing(tmp_path: Path) -> None:
    store = build(tmp_path, 1, 1_000_000, tokens=5000)
    store.list_models()
    again = Store(tmp_path)
    again.list_models()
    assert len(again.header(again.find(names.parse("big/model-0000"))).tensors) == 120


def test_a_store_that_may_not_be_written_to_is_listed(tmp_path: Path) -> None:
    build(tmp_path, 1, 1_000_000, tokens=5000)
    (tmp_path / ".heads").write_text("in the way")
    assert Store(tmp_path).list_models()[0].details.context_length == 8192


# ---------------------------------------------------------------- the commands


@pytest.mark.slow
def test_the_commands_over_a_damaged_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    put_echo(tmp_path / "models", "echo")
    put_echo(tmp_path / "models", "127.0.0.1:9/x/gone")
    with serving(tmp_path, free_port(), OLLAMA_NOPRUNE="1") as home:
        whole = run(("verify",), home)
        assert (whole.exit, whole.stdout.count("\n")) == (0, 1)
        assert whole.stdout.endswith("all whole\n")
        assert run(("verify", "nope"), home).stderr.endswith("Error: model 'nope' not found\n")
        assert run(("verify", "a", "b"), home).stderr == "Error: accepts at most 1 arg(s), received 2\n"
        unused = orphan(store)
        rehearsed = run(("prune", "--dry-run"), home)
        assert f"{unused.name}  40 KB\n" in rehearsed.stdout
        assert unused.exists()
        done = run(("prune",), home)
        assert done.exit == 0
        assert done.stdout.startswith("1 file removed, 4")
        assert not unused.exists()
        assert run(("prune",), home).stdout == "nothing to remove\n"
        path = spoil(store, store.find(names.parse("127.0.0.1:9/x/gone")).weights.digest)
        bad = run(("verify",), home)
        assert bad.exit == 1
        assert bad.stdout == ""
        assert f"damaged: {path.name}: its bytes are not those of its digest (needed by 127.0.0.1:9/x/gone:latest)\n" in bad.stderr
        assert bad.stderr.endswith("Error: 1 file of 3 damaged; `ndani verify --repair` pulls them again\n")
        tried = run(("verify", "--repair"), home)
        assert tried.exit == 1
        assert "it could not be pulled again" in tried.stderr
        assert path.exists()
        assert run(("verify", "echo"), home).exit == 0


@pytest.mark.slow
def test_a_person_is_asked_before_anything_is_pulled(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    put_echo(tmp_path / "models", "127.0.0.1:9/x/gone")
    path = spoil(store, store.find(names.parse("127.0.0.1:9/x/gone")).weights.digest)
    with serving(tmp_path, free_port()) as home:
        for answer, wanted in {"n\r": "pulls them again", "y\r": "could not be repaired"}.items():
            with terminal([*NDANI, "verify"], home, "pty") as screen:
                until(lambda screen=screen: any("Pull 1 file again?" in line for line in screen.lines()), "the question", pause=0.05)
                screen.type(answer)
                assert screen.exit() == 1
                assert wanted in "\n".join(screen.lines())
        for key, code in {"C-d": 1, "C-c": 130}.items():
            with terminal([*NDANI, "verify"], home, "pty") as screen:
                until(lambda screen=screen: any("Pull 1 file again?" in line for line in screen.lines()), "the question", pause=0.05)
                screen.press(key)
                assert screen.exit() == code
                assert any(line.startswith("Error") for line in screen.lines()) == (code == 1)
    assert path.exists()


# ---------------------------------------------------------------- many models


@pytest.mark.slow
def test_three_hundred_models(tmp_path: Path) -> None:
    """Forty gigabytes of holes: listed at once, verified until Ctrl-C, pruned; the server answers all the while."""
    store = build(tmp_path / "models", 300, 40 * 10**9, tokens=300)
    unused = orphan(store)
    with serving(tmp_path, free_port(), OLLAMA_NOPRUNE="1") as home:
        listed = run(("list",), home)
        assert listed.exit == 0
        assert listed.stdout.count("\n") == 301
        child = subprocess.Popen([*NDANI, "verify"], env=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert child.stderr
        assert child.stderr.readline().startswith("verifying 902 files, 40.0 GB:   0%")
        assert json.loads(run(("list", "--json"), home).stdout)["models"][0]["name"] == "big/model-0299:latest"
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=PATIENCE)
        assert child.returncode == -signal.SIGINT, (out, err)
        assert out == "", (out, err)
        assert err.endswith("stopped; nothing was changed\n"), (out, err)
        done = run(("prune",), home)
        assert done.exit == 0
        assert "1 file removed" in done.stdout
        assert not unused.exists()
        log = (tmp_path / "serve.log").read_text()
        until(lambda: "route=/api/verify status=499" in (tmp_path / "serve.log").read_text(), log)
