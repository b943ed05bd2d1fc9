"""A file that is linked into the store instead of sent: what the server verifies of it, and when the command line does so."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from cli_server import free_port
from cli_server import serving as cli_serving
from conftest import Start
from golden_cli import run
from ndani.cli import handover as linking
from ndani.errors import BadRequest, Busy, NdaniError, NotFound, StoreFailed
from ndani.store import Store
from ndani.store.handover import accept_file, create_slot
from ndani.store.maintenance import PruneResult, prune
from server import Server, serving, until
from steps import at_first, listed
from stores import gguf, put_echo
from test_malformed import judge

pytestmark = pytest.mark.slow  # servers and large files

WEIGHTS = gguf("linked") + bytes(3 << 20)
DIGEST = f"sha256:{sha256(WEIGHTS).hexdigest()}"


def placed(store: Store) -> tuple[str, Path]:
    """A place, and the path of the file that is to be in it."""
    place = create_slot(store.layout)
    return place, store.layout.handover / place / "file"


def test_a_file_becomes_a_blob_and_its_place_is_gone(store: Store) -> None:
    place, path = placed(store)
    for folder in (path.parent, path.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert folder.stat().st_uid == os.geteuid()
    path.write_bytes(WEIGHTS)
    inode = path.stat().st_ino
    steps = listed(accept_file, store, place)
    assert steps[0].status == "verifying sha256 digest"
    assert steps[-2].completed == steps[-2].total == len(WEIGHTS)
    assert (steps[-1].status, steps[-1].digest) == ("success", DIGEST)
    blob = store.layout.blob(DIGEST)
    assert blob.stat().st_ino == inode
    assert blob.read_bytes() == WEIGHTS
    assert list(store.layout.handover.iterdir()) == []
    again, path = placed(store)
    path.write_bytes(WEIGHTS)
    assert listed(accept_file, store, again)[-1].digest == DIGEST
    assert blob.stat().st_ino == inode, "what is there already stays"
    assert not path.parent.exists()


def wrongs(path: Path, what: str) -> None:
    if what == "a link":
        path.symlink_to("/etc/passwd")
    elif what == "a folder":
        path.mkdir()
    elif what == "a pipe":
        os.mkfifo(path)
    elif what == "somebody else's":
        path.write_bytes(b"x")
        os.chown(path, 12345, 12345)
    elif what == "open to others":
        path.write_bytes(b"x")
        path.parent.chmod(0o755)
    elif what == "no place":
        path.parent.rmdir()
    elif what == "a linked place":
        other = path.parent.parent.parent / "other"
        other.mkdir(mode=0o700)
        (other / "file").write_bytes(b"x")
        path.parent.rmdir()
        path.parent.symlink_to(other)


@pytest.mark.parametrize(
    ("what", "kind"),
    [("nothing", NotFound), ("a link", BadRequest), ("a folder", BadRequest), ("a pipe", BadRequest), ("somebody else's", BadRequest),
     ("open to others", NotFound), ("no place", NotFound), ("a linked place", NdaniError)],
)  # fmt: skip
def test_what_is_not_the_owners_own_file_is_refused(store: Store, what: str, kind: type[NdaniError]) -> None:
    if what == "somebody else's" and os.geteuid() != 0:
        pytest.skip("only root can make a file somebody else's")
    place, path = placed(store)
    wrongs(path, what)
    with pytest.raises(kind) as met:
        listed(accept_file, store, place)
    assert not store.layout.blobs.exists()
    assert "\n" not in str(met.value)
    assert str(met.value).endswith("; send the file to /api/blobs instead"), met.value


def test_a_file_that_changes_while_it_is_read_is_no_blob(store: Store) -> None:
    for change in (lambda p: p.write_bytes(b"y" * (9 << 20)), lambda p: p.rename(p.parent / "gone"), lambda p: os.utime(p, (1, 1))):
        place, path = placed(store)
        path.write_bytes(b"x" * (9 << 20))
        with pytest.raises((BadRequest, StoreFailed)):
            accept_file(store, place, at_first(partial(change, path)))
        assert not store.layout.blobs.exists()


def test_places_that_nobody_came_back_to_are_swept_and_there_is_an_end_to_them(store: Store) -> None:
    left, path = placed(store)
    path.write_bytes(b"x")
    os.utime(path.parent, (1000, 1000))
    create_slot(store.layout)
    assert not (store.layout.handover / left).exists()
    for _ in range(63):
        create_slot(store.layout)
    with pytest.raises(Busy, match="too many files are being handed over at once"):
        create_slot(store.layout)
    store.layout.handover.chmod(0o755)
    with pytest.raises(StoreFailed, match="can be entered by others"):
        create_slot(store.layout)


def test_a_server_sweeps_them_when_it_starts(start: Start, store: Store) -> None:
    young, _ = placed(store)
    _, path = placed(store)
    path.write_bytes(b"x")
    os.utime(path.parent, (1000, 1000))
    start(store.layout.root)
    until(lambda: [p.name for p in store.layout.handover.iterdir()] == [young], "only the young one is left", at_rest=20)


def test_a_linked_blob_of_an_old_file_is_young_when_it_comes(store: Store, tmp_path: Path) -> None:
    old = tmp_path / "old.gguf"
    old.write_bytes(WEIGHTS)
    os.utime(old, (1000, 1000))
    place, path = placed(store)
    path.hardlink_to(old)
    listed(accept_file, store, place)
    assert store.prune() == ()
    assert store.blobs.has(DIGEST), "nothing names it yet, and somebody is about to"
    assert listed(prune, store)[-1] == PruneResult(0, 0, 0), "nor by `ndani prune`"


# ---------------------------------------------------------------- over HTTP


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("handover")
    put_echo(folder / "models", "echo")
    with serving(folder, folder / "models") as started:
        yield started


@pytest.mark.parametrize(
    ("body", "status", "begins"),
    [({"place": "../blobs"}, 400, "place must be a name that this server gave"), ({"place": "/etc"}, 400, "place must be"),
     ({"place": "A" * 32}, 400, "place must be"), ({"place": "0" * 31}, 400, "place must be"), ({"place": "0" * 33}, 400, "place must be"),
     ({"place": "0" * 32 + "\n"}, 400, "place must be"), ({"place": 3}, 400, "place must be a string"),
     ({"place": "0" * 32}, 404, "nothing was handed over in this place"), ({"place": "0" * 32, "stream": 3}, 400, "stream must be")],
)  # fmt: skip
def test_a_client_says_a_name_and_never_a_path(server: Server, body: Any, status: int, begins: str) -> None:
    answer = server.post("/api/handover", body)
    assert answer.status_code == status, answer.text
    judge(answer.json()["error"], begins)


def test_no_path_of_the_server_is_told(server: Server) -> None:
    answer = server.post("/api/handover", {})
    assert answer.status_code == 200
    assert list(answer.json()) == ["place"]
    assert str(server.models) not in answer.text
    (server.models / ".handover" / answer.json()["place"] / "file").write_bytes(WEIGHTS)
    told = server.post("/api/handover", {"place": answer.json()["place"], "stream": False})
    assert told.json() == {"status": "success", "digest": DIGEST}


# ---------------------------------------------------------------- at the terminal


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with cli_serving(tmp_path_factory.mktemp("linked"), free_port(), NDANI_OFFLINE="1") as found:
        yield found


def clones(folder: Path) -> bool:
    """Whether files on this disk can share their blocks."""
    (folder / "a").write_bytes(b"x" * 8192)
    import fcntl

    with (folder / "a").open("rb") as source, (folder / "b").open("wb") as target:
        try:
            fcntl.ioctl(target.fileno(), linking._FICLONE, source.fileno())
        except OSError as error:
            assert error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS)
            return False
    return True


def create_from_file(folder: Path, environment: dict[str, str], salt: str, mode: int) -> tuple[Any, os.stat_result, os.stat_result]:
    """Create a model of a file with this mode: what was printed, and what the disk says of the file and of the blob."""
    weights = gguf(salt) + bytes(2 << 20)
    (folder / "m.gguf").write_bytes(weights)
    (folder / "m.gguf").chmod(mode)
    (folder / "Modelfile").write_text("FROM ./m.gguf\n")
    done = run(("create", salt), environment, folder=folder)
    assert done.exit == 0, done.stderr
    layout = Store(Path(environment["NDANI_MODELS"])).layout
    assert not list(layout.handover.iterdir())
    blob = layout.blob(f"sha256:{sha256(weights).hexdigest()}")
    assert blob.read_bytes() == weights
    return done, (folder / "m.gguf").stat(), blob.stat()


def test_a_file_that_nobody_may_write_to_is_linked(tmp_path: Path, environment: dict[str, str]) -> None:
    done, file, blob = create_from_file(tmp_path, environment, "readonly", 0o444)
    assert "linking m.gguf" in done.stderr
    assert "copying" not in done.stderr
    assert "reading" not in done.stderr
    assert clones(tmp_path) or (file.st_ino, file.st_nlink) == (blob.st_ino, 2)
    assert run(("rm", "readonly"), environment).exit == 0
    assert (tmp_path / "m.gguf").read_bytes().startswith(b"GGUF"), "what is the user's stays the user's"


def test_a_file_that_may_change_is_cloned_or_sent_and_never_shared(tmp_path: Path, environment: dict[str, str]) -> None:
    done, file, blob = create_from_file(tmp_path, environment, "writable", 0o644)
    assert file.st_ino != blob.st_ino
    assert file.st_nlink == blob.st_nlink == 1
    assert ("linking" in done.stderr) is clones(tmp_path)
    assert ("copying" in done.stderr) is not clones(tmp_path)
    with (tmp_path / "m.gguf").open("r+b") as edited:
        edited.write(b"XXXX")
    assert Store(Path(environment["NDANI_MODELS"])).layout.blob(f"sha256:{sha256(gguf('writable') + bytes(2 << 20)).hexdigest()}").exists()
    listed = run(("show", "writable"), environment)
    assert listed.exit == 0
    assert "llama" in listed.stdout


def test_a_server_with_another_store_is_sent_the_file(tmp_path: Path, environment: dict[str, str]) -> None:
    elsewhere = environment | {"NDANI_MODELS": str(tmp_path / "mine")}
    (tmp_path / "m.gguf").write_bytes(gguf("elsewhere"))
    (tmp_path / "m.gguf").chmod(0o444)
    (tmp_path / "Modelfile").write_text("FROM ./m.gguf\n")
    done = run(("create", "elsewhere"), elsewhere, folder=tmp_path)
    assert done.exit == 0, done.stderr
    assert "linking" not in done.stderr
    assert "copying" in done.stderr
    assert not (tmp_path / "mine").exists()
    assert (tmp_path / "m.gguf").stat().st_nlink == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file somebody else's")
def test_a_file_of_somebody_else_is_sent(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf("theirs"))
    os.chown(tmp_path / "m.gguf", 12345, 12345)
    (tmp_path / "m.gguf").chmod(0o444)
    (tmp_path / "Modelfile").write_text("FROM ./m.gguf\n")
    done = run(("create", "theirs"), environment, folder=tmp_path)
    assert done.exit == 0, done.stderr
    assert clones(tmp_path) or "linking" not in done.stderr


@pytest.mark.slow
def test_linking_costs_one_reading(tmp_path: Path, environment: dict[str, str]) -> None:
    """A gigabyte that takes no room on the disk: sent, it would be hashed twice and written once."""
    with (tmp_path / "m.gguf").open("wb") as file:
        file.write(gguf("large"))
        file.truncate(256 << 20)
    (tmp_path / "m.gguf").chmod(0o444)
    (tmp_path / "Modelfile").write_text("FROM ./m.gguf\n")
    began = time.monotonic()
    done = run(("create", "large"), environment, folder=tmp_path)
    assert done.exit == 0
    assert "linking" in done.stderr
    blobs = Store(Path(environment["NDANI_MODELS"])).layout.blobs
    assert sum(path.stat().st_blocks for path in blobs.iterdir()) * 512 < 64 << 20, "nothing was written"
    assert time.monotonic() - began < 60
