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
from lockless import without_locks
from ndani import names
from ndani.errors import NotFound, StoreFailed
from ndani.store import Store, file_locking, locks
from ndani.store.layout import digest_of
from server import slowness, until
from stores import gguf, put_echo

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
    assert not list(store.layout.blobs.iterdir())
    assert not store.layout.locks.exists()


def test_nor_where_the_folder_is_there_and_the_file_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_echo(tmp_path / "models", "echo")
    monkeypatch.setattr(locks, "acquire", full)
    monkeypatch.setattr(locks.Locks, "claimed_digests", lambda _: set())
    Store(tmp_path / "models").delete(names.parse("echo"))
    assert Store(tmp_path / "models").list_models() == []


def run_among_own_mounts(command: list[str]) -> subprocess.CompletedProcess[str]:
    """What a command says that mounts disks for itself alone; skips, with the reason, where this system does not let it."""
    unshare = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-Ur", "-m"]
    try:
        done = subprocess.run([*unshare, *command], capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if done.returncode and ("unshare" in done.stderr or "mount:" in done.stderr):
        pytest.skip("this system gives no mount namespace")
    return done


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
Store(Path(sys.argv[1])).delete(names.parse("echo")); print(len(Store(Path(sys.argv[1])).list_models()), "left")' "$1/models"
"""
    put_echo(tmp_path / "models", "echo")
    (tmp_path / "disk").mkdir()
    command = ["sh", "-c", script, "sh", str(tmp_path / "disk"), str(tmp_path / "models"), sys.executable]
    done = run_among_own_mounts(command)
    assert done.stdout == "0 left\n", done.stderr


@pytest.mark.parametrize("what", ["the folder", "the file"])
def test_two_processes_exclude_each_other_by_either_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    put_echo(tmp_path / "models", "echo")
    store = Store(tmp_path / "models")
    monkeypatch.setattr(locks, "STORE_LOCK_TIMEOUT", 0.2)
    path = store.layout.root if what == "the folder" else store.layout.locks / "store"
    if what == "the file":
        path.touch()
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
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
    assert deleting.is_alive()
    assert store.find(names.parse("echo"))
    os.close(handle)
    deleting.join(60)
    assert not deleting.is_alive()
    assert store.list_models() == []


def test_a_lock_that_another_program_holds_does_not_keep_a_server_from_ending(start: Start, echo_store: Path) -> None:
    (echo_store / ".locks").mkdir(exist_ok=True)
    for path in (echo_store, echo_store / ".locks" / "store"):
        if path.name == "store":
            path.touch()
        with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout
            assert holder.stdout.readline() == "held\n"
            server = start(echo_store)  # it tidies the store at once, and waits for the lock
            waiting = threading.Thread(target=lambda: server.http.request("DELETE", "/api/delete", json={"model": "echo"}))  # noqa: B023
            waiting.start()
            until(lambda: server.health()["counts"], "it answers meanwhile", at_rest=20)  # noqa: B023
            time.sleep(0.3)
            began = time.monotonic()
            assert server.terminate(at_rest=14) == 0
            assert time.monotonic() - began < 12 * slowness()
            waiting.join(60)
            holder.kill()
    assert {m.name for m in Store(echo_store).list_models()} == {"echo:latest", "other:latest"}


def test_a_claim_is_made_even_while_somebody_looks_who_claims_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, take, looks = Store(tmp_path), locks.acquire, iter((True, False))

    def looked_at(path: Path) -> locks.Lock | None:
        # The first try meets somebody who has just opened the new file to see whether it is held.
        return None if path.name.startswith("claim-") and next(looks, False) else take(path)

    monkeypatch.setattr(locks, "acquire", looked_at)
    digest = "sha256:" + "a" * 64
    with store.claim({digest}):
        monkeypatch.undo()
        [claim] = store.layout.locks.glob("claim-*")
        assert claim.read_text() == digest
        assert locks.acquire(claim) is None
    assert not list(store.layout.locks.glob("claim-*"))


# ---------------------------------------------------------------- a disk without locks

CHILD = (
    "import os, sys; from pathlib import Path; from ndani import names; from ndani.store import Store; store = Store(Path(sys.argv[1]))\n"
)
DIGEST = f"sha256:{'a' * 64}"


def child(store: Store, code: str, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD + code, str(store.layout.root), *more]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def hear(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout
    assert process.stdout.readline() == f"{word}\n"


@pytest.mark.slow
@pytest.mark.parametrize("ofd", [True, False], ids=["locks of open files", "none at all"])
def test_processes_keep_apart_on_a_disk_without_flock(tmp_path: Path, ofd: bool) -> None:
    """Each counts up what the others do; without exclusion some of it would be lost."""
    put_echo(tmp_path / "models", "a")
    store, count = Store(tmp_path / "models"), tmp_path / "count"
    count.write_text("0")
    code = """
for number in range(25):
    with store._locks.lock_store():
        seen = int(Path(sys.argv[2]).read_text())
        Path(sys.argv[2]).write_text(str(seen + 1))
    name = names.parse(f"copy{os.getpid()}:{number}")
    store.copy(names.parse("a"), name)
    store.delete(name)
"""

    def work() -> None:
        others = [child(store, code, str(count)) for _ in range(4)]
        assert [other.wait() for other in others] == [0] * 4
        for other in others:
            other.communicate()

    without_locks(work, ofd=ofd)
    assert count.read_text() == "100"
    assert [model.name for model in store.list_models()] == ["a:latest"]
    assert not list(store.layout.locks.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("ofd", [True, False], ids=["locks of open files", "none at all"])
def test_who_dies_on_a_disk_without_flock_holds_nothing(tmp_path: Path, ofd: bool) -> None:
    put_echo(tmp_path / "models", "a")
    store = Store(tmp_path / "models")
    digest = store.find(names.parse("a")).weights.digest
    code = """
lock = store.lock_blob(sys.argv[2])
with store.claim({sys.argv[2]}):
    print("held", flush=True)
    sys.stdin.read()
"""

    def work() -> None:
        with child(store, code, digest) as other:
            hear(other, "held")
            assert store.lock_blob(digest) is None
            store.delete(names.parse("a"))
            assert store.blobs.has(digest), "claimed by who lives"
            other.kill()
            other.wait()
            mine = store.lock_blob(digest)
            assert mine
            mine.release()
            store.remove_unused({digest})
        assert not store.blobs.has(digest)
        assert not list(store.layout.locks.iterdir())

    without_locks(work, ofd=ofd)


def test_a_file_of_another_machines_counts_while_it_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_echo(tmp_path / "models", "a")
    store = Store(tmp_path / "models")
    monkeypatch.setattr(locks, "STORE_LOCK_TIMEOUT", 0.2)
    held = store.layout.locks / "store"
    held.write_bytes(b"held by elsewhere 17 4711 " + b"0" * 32 + b"\n")

    def work() -> None:
        with pytest.raises(StoreFailed, match="another program has held the model store"):
            store.delete(names.parse("a"))
        assert held.exists()
        os.utime(held, (time.time() - file_locking.FOREIGN_STALE_AFTER - 60,) * 2)
        store.delete(names.parse("a"))
        assert not list(store.layout.locks.iterdir())

    without_locks(work)


def test_a_file_of_who_was_ended_before_it_was_marked_holds_nothing_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_echo(tmp_path / "models", "a")
    store = Store(tmp_path / "models")
    monkeypatch.setattr(locks, "STORE_LOCK_TIMEOUT", 0.2)
    held = store.layout.locks / "store"
    held.touch()

    def work() -> None:
        with pytest.raises(StoreFailed, match="another program has held the model store"):
            store.delete(names.parse("a"))
        os.utime(held, (time.time() - 15,) * 2)
        store.delete(names.parse("a"))
        assert not list(store.layout.locks.iterdir())

    without_locks(work)


def test_two_who_clear_one_file_away_leave_what_a_third_has_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk that has no hard links either: the slower of the two finds another file than the one that it had looked at."""
    store = Store(tmp_path)
    rename, mark = Path.rename, b"held by elsewhere 17 4711 " + b"0" * 32 + b"\n"
    store.layout.locks.mkdir()
    held = store.layout.locks / f"blob-{DIGEST[7:]}"
    held.write_bytes(b"of the dead")
    os.utime(held, (0, 0))

    def late(path: Path, target: Path) -> Path:
        held.unlink()
        held.write_bytes(mark)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    assert without_locks(lambda: store.lock_blob(DIGEST)) is None
    assert held.read_bytes() == mark
    assert list(store.layout.locks.iterdir()) == [held]


def test_who_holds_a_file_touches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_locking, "TOUCH_INTERVAL", 0.05)
    store = Store(tmp_path)

    def work() -> None:
        lock = store.lock_blob(DIGEST)
        assert lock
        os.utime(lock.path, (0, 0))
        until(lambda: lock.path.stat().st_mtime > 0, "it is touched", at_rest=20)
        lock.release()
        assert not lock.path.exists()

    without_locks(work)


def test_who_has_locks_heeds_who_has_none(tmp_path: Path) -> None:
    """The same store under two mounts: what one holds by a file, the other does not take by a lock."""
    store = Store(tmp_path)
    lock = without_locks(lambda: store.lock_blob(DIGEST))
    assert lock
    assert store.lock_blob(DIGEST) is None
    lock.release()
    mine = store.lock_blob(DIGEST)
    assert mine
    assert without_locks(lambda: store.lock_blob(DIGEST)) is None
    mine.release()
    assert not list(store.layout.locks.iterdir())


def test_a_server_on_a_disk_without_locks(start: Start, tmp_path: Path) -> None:
    shelf, content = tmp_path / "shelf", gguf("pulled")
    shelf.mkdir()
    (shelf / "tiny.gguf").write_bytes(content)
    put_echo(tmp_path / "models", "echo")

    def work() -> None:
        server = start(tmp_path / "models", NDANI_SOURCES=str(shelf))
        sent = gguf("sent")
        assert server.http.post(f"/api/blobs/{digest_of(sent)}", content=sent).status_code == 201
        made = server.post("/api/create", {"model": "made", "files": {"m.gguf": digest_of(sent)}, "stream": False})
        assert made.json() == {"status": "success"}, made.text
        pulled = server.post("/api/pull", {"model": "tiny", "stream": False})
        assert pulled.json() == {"status": "success"}, pulled.text
        assert server.post("/api/copy", {"source": "tiny", "destination": "spare"}).status_code == 200
        assert server.http.request("DELETE", "/api/delete", json={"model": "made"}).status_code == 200
        assert {model["name"] for model in server.http.get("/api/tags").json()["models"]} == {"echo:latest", "tiny:latest", "spare:latest"}

    without_locks(work)


# ---------------------------------------------------------------- a disk that fills up


FILLED = """
set -e
mount -t tmpfs -o size=1m tmpfs "$1"
cp -r "$2" "$1/models"
mkdir -p "$1/models/.locks"
dd if=/dev/zero of="$1/fill" bs=4096 count=10000 2>/dev/null || true
truncate -s -"$4" "$1/fill"
"$3" -c 'import os, sys; from pathlib import Path; from ndani.errors import StoreFailed; from ndani.store import Store
store = Store(Path(sys.argv[1]))
before = os.listdir("/proc/self/fd")
try:
    with store.claim({f"sha256:{number:064x}" for number in range(400)}):
        print("claimed", sum(len(path.read_text().split()) for path in store.layout.locks.glob("claim-*")))
except StoreFailed as error:
    print(error)
print(len(os.listdir("/proc/self/fd")) - len(before), os.listdir(store.layout.locks))' "$1/models"
"""


@pytest.mark.parametrize("room", [0, 8192], ids=["no room", "room for a part of it"])
def test_a_claim_that_has_no_room_is_none_and_leaves_nothing(tmp_path: Path, room: int) -> None:
    put_echo(tmp_path / "models", "echo")
    (tmp_path / "disk").mkdir()
    command = ["sh", "-c", FILLED, "sh", str(tmp_path / "disk"), str(tmp_path / "models"), sys.executable, str(room)]
    done = run_among_own_mounts(command)
    assert done.stdout.startswith("no room in the model store"), done.stdout + done.stderr
    assert done.stdout.endswith("\n0 []\n"), done.stdout
