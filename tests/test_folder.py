"""The sockets' folder: private, and cleared of what dead servers left."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ndani.errors import Misconfigured
from ndani.runtime.folder import runtime_folder

HOLD = """
import sys, time
from ndani.runtime.folder import runtime_folder
with runtime_folder() as folder:
    (folder / "left").touch()
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _own_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def test_private_and_removed() -> None:
    with runtime_folder() as folder:
        state = folder.lstat()
        assert stat.S_IMODE(state.st_mode) == 0o700
        assert state.st_uid == os.getuid()
        assert folder.parent == Path(os.environ["XDG_RUNTIME_DIR"])
    assert not folder.exists()


def test_a_path_that_is_no_text_is_passed_over_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    try:
        odd.mkdir(mode=0o700)
    except OSError:
        pytest.skip("this file system takes no such name")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(odd))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with runtime_folder() as folder:
        assert folder.parent == tmp_path
    monkeypatch.setattr("tempfile.tempdir", str(odd))
    with pytest.raises(Misconfigured, match="no text in UTF-8; set TMPDIR"), runtime_folder():
        pass


def test_dead_servers_are_swept_and_living_ones_left() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        theirs = Path(server.stdout.readline().strip())
        try:
            with runtime_folder():
                assert (theirs / "left").exists()
        finally:
            server.send_signal(signal.SIGKILL)
    assert theirs.exists()
    with runtime_folder():
        assert not theirs.exists()


def test_a_folder_that_died_while_it_was_made(tmp_path: Path) -> None:
    half = tmp_path / f"ndani-{os.getuid()}-half"
    half.mkdir(mode=0o700)
    with runtime_folder():
        assert half.exists()
    os.utime(half, (time.time() - 120, time.time() - 120))
    with runtime_folder():
        assert not half.exists()


def test_a_link_or_an_open_folder_is_not_swept(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    (other / "lock").touch()
    link = tmp_path / f"ndani-{os.getuid()}-link"
    link.symlink_to(other)
    with runtime_folder():
        pass
    assert link.is_symlink()
    assert (other / "lock").exists()


def test_a_parent_that_others_may_enter_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o755)
    with runtime_folder() as folder:
        assert folder.parent != tmp_path


def test_too_long_for_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with pytest.raises(Misconfigured, match="set TMPDIR"), runtime_folder():
        pass
    assert list(long.iterdir()) == []
