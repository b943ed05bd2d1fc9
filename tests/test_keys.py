"""Keys at a terminal that other programs have a say in: Ctrl-Z and `fg` under a real shell, Ctrl-\\, and what is typed as an answer."""

from __future__ import annotations

import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_server import NDANI, free_port, serving
from server import until
from stores import put_echo
from terminal import Pty, terminal

pytestmark = pytest.mark.slow

LINES = termios.ECHO | termios.ICANON
BARS = """
import time
from ndani.cli import progress
def steps():
    for done in range(2000):
        for digest in "ab":
            yield {"status": f"pulling {digest}", "digest": digest, "total": 2000, "completed": done}
        time.sleep(0.05)
progress.follow(steps(), "it ended")
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("pausing")
    put_echo(folder / "models", "parrot", params={"num_predict": 100000})
    with serving(folder, free_port()) as environment:
        yield environment


@pytest.fixture
def shell(home: dict[str, str]) -> Iterator[Pty]:
    """A shell that edits no lines and mends no terminal by itself, with jobs."""
    with terminal(["env", "TERM=dumb", "sh", "-i"], {**home, "PS1": "shell> ", "ENV": ""}, "pty") as screen:
        assert isinstance(screen, Pty)
        shows(screen, "shell>")
        yield screen


def shows(screen: Pty, text: str) -> None:
    until(lambda: any(text in line for line in screen.lines()), f"{text} is shown", pause=0.03)


def begin_answer(screen: Pty, model: str = "parrot") -> None:
    """Start a conversation and a long answer."""
    screen.type(f"TERM=xterm {' '.join(NDANI)} run {model}\r")
    shows(screen, "Send a message")
    screen.type("mango @delay=0.05\r")
    shows(screen, "mango mango")


def test_an_answer_stops_and_goes_on(shell: Pty) -> None:
    begin_answer(shell)
    assert not shell.modes() & LINES
    shell.press("C-z")
    until(lambda: shell.modes() & LINES == LINES, "the shell has its terminal back", pause=0.03)
    shell.type("echo the $((20 + 1))st\r")
    shows(shell, "the 21st")
    said = len(shell.raw)
    shell.type("fg\r")
    until(lambda: shell.raw.count(b"mango", said) > 3, "the answer goes on", pause=0.03)
    assert not shell.modes() & LINES
    shell.type("kiwi")
    shows(shell, "mango")
    shell.press("C-c")
    until(lambda: shell.lines()[-1].startswith(">>>"), "the prompt comes", pause=0.03)
    assert not any("kiwi" in line for line in shell.lines()), "nothing that was typed shows among the answer"


def test_ctrl_backslash_leaves_the_terminal_as_it_was_and_no_dump(shell: Pty, tmp_path: Path) -> None:
    shell.type(f"cd {tmp_path}; ulimit -S -c unlimited\r")
    begin_answer(shell)
    shell.press("\x1c")
    until(lambda: shell.modes() & LINES == LINES, "the shell has its terminal back", pause=0.03)
    shell.type("echo code $?\r")
    shows(shell, "code 131")
    assert list(tmp_path.iterdir()) == []


def test_a_shell_has_its_cursor_while_a_pull_stands(shell: Pty, tmp_path: Path) -> None:
    (tmp_path / "bars.py").write_text(BARS)
    shell.type(f"TERM=xterm {sys.executable} {tmp_path / 'bars.py'}\r")
    shows(shell, "pulling b")
    assert hidden(shell)
    shell.press("C-z")
    until(lambda: not hidden(shell), "the cursor is shown", pause=0.03)
    shell.type("echo the $((20 + 1))st\r")
    shows(shell, "the 21st")
    said = len(shell.raw)
    shell.type("fg\r")
    until(lambda: hidden(shell) and shell.raw.count(b"pulling b", said) > 2, "the bars go on", pause=0.03)
    shows(shell, "the 21st")
    assert any(line.endswith("> fg") for line in shell.lines()), "no row of the shell's is drawn over"


def hidden(screen: Pty) -> bool:
    return screen.raw.rfind(b"\x1b[?25l") > screen.raw.rfind(b"\x1b[?25h")


def test_flags_of_vectors_are_no_flags_of_a_conversation(home: dict[str, str]) -> None:
    with terminal([*NDANI, "run", "parrot", "--dimensions", "5"], home) as screen:
        assert screen.exit() == 1
        assert screen.lines()[-1] == "Error: --dimensions and --truncate are for models of embeddings; leave them out"


def test_an_answer_that_is_no_text_is_no_yes(tmp_path: Path) -> None:
    put_echo(tmp_path / "models", "parrot")
    for blob in (tmp_path / "models" / "blobs").iterdir():
        blob.write_bytes(bytes(blob.stat().st_size))
    strict = {"PYTHONIOENCODING": "utf-8:strict"}  # as it is in every language's locale but C
    with serving(tmp_path, free_port()) as environment, terminal([*NDANI, "verify"], environment | strict, "pty") as screen:
        assert isinstance(screen, Pty)
        shows(screen, "[y/N]")
        screen.send(b"\xff\r")
        assert screen.exit() == 1
        assert "damaged; `ndani verify --repair` pulls them again" in screen.lines()[-1]
