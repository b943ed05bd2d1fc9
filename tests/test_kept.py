"""What is typed at the prompt lies in no file but the history, and there for its owner alone, however it comes to be kept."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ndani.cli.repl import line_reader
from ndani.errors import Failed
from server import until

#: Leaves beside a file what editors leave there.
LEAVING = """#!/bin/sh
for name in "$1~" "$(dirname "$1")/.$(basename "$1").swp" "$1.save"; do cp "$1" "$name"; done
echo edited > "$1"
"""


@pytest.mark.parametrize("folder", [True, False], ids=["with a folder", "without a folder"])
def test_a_history_that_begins_later_is_its_owners_too(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / ".ndani" / "history"
    if folder:
        path.parent.mkdir()
    before = os.umask(0o022)
    try:
        history = line_reader.History(path, enabled=False)
        history.store_string("not this")
        history.set_enabled(False)
        assert not path.exists()
        history.set_enabled(True)
        history.store_string("this")
    finally:
        os.umask(before)
    assert not history.failure
    assert "+this" in path.read_text()
    assert "not this" not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert folder or stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_an_editor_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor, place = tmp_path / "editor", tmp_path / "tmp"
    editor.write_text(LEAVING)
    editor.chmod(0o755)
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    assert line_reader.edit("secret", str(editor)) == "edited"
    assert list(place.iterdir()) == []
    with pytest.raises(Failed, match="exit code 1"):
        line_reader.edit("secret", "false")
    assert list(place.iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_is_the_editors(tmp_path: Path) -> None:
    """Both get it from the terminal; an editor that does something else with it keeps the text that is in it."""
    editor = tmp_path / "editor"
    editor.write_text(
        f'#!/bin/sh\ntrap : INT\ntouch {tmp_path}/open\nwhile ! test -e {tmp_path}/hit; do sleep 0.05; done\nsleep 1\necho edited > "$1"\n'
    )
    editor.chmod(0o755)
    program = f"from ndani.cli.repl.line_reader import edit; print(edit('before', {str(editor)!r}))"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as running:  # fmt: skip
        until((tmp_path / "open").exists, "the editor is open", pause=0.05)
        os.killpg(running.pid, signal.SIGINT)
        (tmp_path / "hit").touch()
        assert running.communicate()[0] == "edited\n"
