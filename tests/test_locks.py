"""The store's lock: had on a disk without room for it, waited for with patience, and never in the way of a server's end."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from conftest import Start
from ndani import names
from ndani.errors import NotFound, StoreFailed
from ndani.store import Store, locks
from server import slowness, until
from stores import put_echo

HOLD = "import fcntl,os,sys,time; h=os.open(sys.argv[1],os.O_RDONLY); fcntl.flock(h,2); print('held',flush=True); time.sleep(600)"


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_model_can_be_removed_where_not_even_a_lock_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_echo(tmp_path / "models", "echo")
    store = Store(tmp_path / "models")
    for file in store.layout.locks.iterdir():
        file.unlink()
    store.layout.locks.rmdir()
    monkeypatch.setattr(locks, "make_folder", full)
    store.delete(names.parse("echo"))
    with pytest.raises(NotFound):
        store.find(names.parse("echo"))
    assert not list(store.layout.blobs.iterdir()) and not store.layout.locks.exists()


def test_nor_where_the_folder_is_there_and_the_file_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_echo(tmp_path / "models", "echo")
    monkeypatch.setattr(locks, "take", full)
    monkeypatch.setattr(locks.Locks, "claimed", lambda _: set())
    Store(tmp_path / "models").delete(names.parse("echo"))
    assert Store(tmp_path / "models").list() == []


def test_a_really_full_disk(tmp_path: Path) -> None:
    """A file system with no room for one more file, in a namespace of its own; where the system allows none, others say it."""
    script = """
set -e
mount -t tmpfs -o size=1m,nr_inodes=20 tmpfs "$1"
cp -r "$2" "$1/models"
rm -rf "$1/models/.locks"
i=0; while touch "$1/fill-$i" 2>/dev/null; do i=$((i+1)); done
! mkdir "$1/models/.locks" 2>/dev/null
"$3" -c 'import sys; from pathlib import Path; from ndani import names; from ndani.store import Store
Store(Path(sys.argv[1])).delete(names.parse("echo")); print(len(Store(Path(sys.argv[1])).list()), "left")' "$1/models"
"""
    put_echo(tmp_path / "models", "echo")
    (tmp_path / "disk").mkdir()
    command = ["unshare", "-m", "sh", "-c", script, "sh", str(tmp_path / "disk"), str(tmp_path / "models"), sys.executable]
    if os.geteuid() != 0:
        command.insert(1, "-Ur")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if done.returncode and ("unshare" in done.stderr or "mount:" in done.stderr):
        pytest.skip("this system gives no mount namespace")
    assert done.stdout == "0 left\n", done.stderr


@pytest.mark.parametrize("what", ["the folder", "the file"])
def test_two_processes_exclude_each_other_by_either_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    put_echo(tmp_path / "models", "echo")
    store = Store(tmp_path / "models")
    monkeypatch.setattr(locks, "PATIENCE", 0.2)
    path = store.layout.root if what == "the folder" else store.layout.locks / "store"
    if what == "the file":
        path.touch()
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with pytest.raises(StoreFailed, match=r"^another program has held the model store .* for 0 seconds; end it, or wait"):
            store.delete(names.parse("echo"))
        holder.kill()
    store.delete(names.parse("echo"))


def test_who_waits_gets_it_as_soon_as_it_is_free(tmp_path: Path) -> None:
    put_echo(tmp_path / "models", "echo")
    store = Store(tmp_path / "models")
    handle = os.open(store.layout.root, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    deleting = threading.Thread(target=store.delete, args=(names.parse("echo"),))
    deleting.start()
    time.sleep(0.2)
    assert deleting.is_alive() and store.find(names.parse("echo"))
    os.close(handle)
    deleting.join(60)
    assert not deleting.is_alive() and store.list() == []


def test_a_lock_that_another_program_holds_does_not_keep_a_server_from_ending(start: Start, echo_store: Path) -> None:
    (echo_store / ".locks").mkdir(exist_ok=True)
    for path in (echo_store, echo_store / ".locks" / "store"):
        if path.name == "store":
            path.touch()
        with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout and holder.stdout.readline() == "held\n"
            server = start(echo_store)  # it tidies the store at once, and waits for the lock
            waiting = threading.Thread(target=lambda: server.http.request("DELETE", "/api/delete", json={"model": "echo"}))  # noqa: B023
            waiting.start()
            until(lambda: server.health()["counts"], 20, "it answers meanwhile")  # noqa: B023
            time.sleep(0.3)
            began = time.monotonic()
            assert server.terminate(14) == 0
            assert time.monotonic() - began < 12 * slowness()
            waiting.join(60)
            holder.kill()
    assert {m.name for m in Store(echo_store).list()} == {"echo:latest", "other:latest"}


def test_a_claim_is_made_even_while_somebody_looks_who_claims_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, take, looks = Store(tmp_path), locks.take, iter((True, False))

    def looked_at(path: Path) -> locks.Lock | None:
        # The first try meets somebody who has just opened the new file to see whether it is held.
        return None if path.name.startswith("claim-") and next(looks, False) else take(path)

    monkeypatch.setattr(locks, "take", looked_at)
    digest = "sha256:" + "a" * 64
    with store.claim({digest}):
        monkeypatch.undo()
        [claim] = store.layout.locks.glob("claim-*")
        assert claim.read_text() == digest and locks.take(claim) is None
    assert not list(store.layout.locks.glob("claim-*"))
