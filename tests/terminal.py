"""A program at a terminal, driven by keys: inside tmux where it is installed, else on a pseudo-terminal.

Both work alike: keys have tmux's names, and `lines()` is what a user sees, with the lines that have scrolled off.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import struct
import subprocess
import tempfile
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from server import PATIENCE, until

COLUMNS, ROWS = 120, 50

KEYS = {"Enter": "\r", "Tab": "\t", "Up": "\x1b[A", "Escape": "\x1b"} | {f"C-{chr(n + 96)}": chr(n) for n in range(1, 27)}


class Terminal(Protocol):
    """One program at one terminal."""

    def type(self, text: str) -> None:
        """Type text, without Enter."""

    def press(self, *keys: str) -> None:
        """Press keys, by tmux's names."""

    def lines(self) -> list[str]:
        """Every line that was shown, without spaces at its end."""

    def exit(self) -> int:
        """Wait until the program has ended; its exit code."""


class Tmux:
    """A terminal inside tmux, with a tmux server of its own."""

    def __init__(self, argv: list[str], environment: dict[str, str]) -> None:
        self._folder = tempfile.mkdtemp(prefix="nd-tmux-")
        # By default tmux moves a cleared screen into its history, and `lines` would show it twice.
        (Path(self._folder) / "conf").write_text("set -gq scroll-on-clear off\n")
        self._tmux = ["tmux", "-S", f"{self._folder}/socket", "-f", f"{self._folder}/conf"]
        self._code = Path(self._folder) / "exit"
        # The trap keeps the shell alive when the program gets a Ctrl-C.
        command = f"trap : INT; {shlex.join(argv)}; echo $? > {self._code}; exec sleep 1000"
        subprocess.run(
            [*self._tmux, "new-session", "-d", "-x", str(COLUMNS), "-y", str(ROWS), "sh", "-c", command],
            env={**environment, "LC_ALL": "C.UTF-8"},
            check=True,
        )

    def _run(self, *words: str) -> str:
        return subprocess.run([*self._tmux, *words], check=True, capture_output=True, text=True).stdout

    def type(self, text: str) -> None:
        self._run("send-keys", "-l", "--", text)

    def press(self, *keys: str) -> None:
        self._run("send-keys", *keys)

    def lines(self) -> list[str]:
        return [line.rstrip() for line in self._run("capture-pane", "-p", "-J", "-S", "-").rstrip().splitlines()]

    def exit(self) -> int:
        return int(until(lambda: self._code.exists() and self._code.read_text(), "the program ends", pause=0.05))

    def close(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            self._run("kill-server")
        shutil.rmtree(self._folder, ignore_errors=True)


class Pty:
    """A pseudo-terminal, with the screen control that line editing needs."""

    def __init__(self, argv: list[str], environment: dict[str, str]) -> None:
        self._here, there = os.openpty()
        fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self._process = subprocess.Popen(
            argv,
            stdin=there,
            stdout=there,
            stderr=there,
            env={**environment, "TERM": "xterm", "LC_ALL": "C.UTF-8"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(there)
        self._raw = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO when the program has gone
            while piece := os.read(self._here, 65536):
                self._raw += piece

    def type(self, text: str) -> None:
        self.send(text.encode())

    def send(self, typed: bytes) -> None:
        """Type bytes, which need not be text."""
        os.write(self._here, typed)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.type(KEYS.get(key, key))

    def lines(self) -> list[str]:
        return drawn(self._raw.decode("utf-8", "replace"))

    @property
    def raw(self) -> bytes:
        """Every byte that the program has written to its terminal."""
        return self._raw

    def exit(self) -> int:
        code = self._process.wait(PATIENCE)
        self._reader.join(5)
        return code if code >= 0 else 128 - code  # as a shell reports a program that a signal has ended

    def kill(self, number: int) -> None:
        """Send the program a signal."""
        self._process.send_signal(number)

    def modes(self) -> int:
        """The terminal's local modes, such as echo and line input."""
        return int(termios.tcgetattr(self._here)[3])

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(PATIENCE)
        self._reader.join(5)
        os.close(self._here)


def drawn(raw: str) -> list[str]:
    """The lines that a terminal shows after these characters, scrolled-off ones included; colours are dropped."""
    rows: list[list[str]] = [[]]
    row = column = 0
    for escape, count, verb, letter in re.findall(
        r"(\x1b(?:\[[?>]?([\d;]*)([a-zA-Z@`])|\][^\x07\x1b]*(?:\x07|\x1b\\)|[=>()][B0]?))|(.|\n|\r)", raw
    ):
        many = int(count) if count.isdigit() else 1
        if escape:
            if verb == "A":
                row = max(row - many, 0)
            elif verb == "B":
                row += many
            elif verb == "C":
                column += many
            elif verb == "D":
                column = max(column - many, 0)
            elif verb == "K":
                del rows[row][column:]
            elif verb == "J":
                del rows[row][column:]
                del rows[row + 1 :]
        elif letter == "\n":
            row += 1
        elif letter == "\r":
            column = 0
        elif letter == "\b":
            column = max(column - 1, 0)
        elif letter >= " ":
            line = rows[row]
            line += [" "] * (column - len(line))
            line[column : column + 1] = [letter]
            column += 1
        while len(rows) <= row:
            rows.append([])
    shown = ["".join(cells).rstrip() for cells in rows]
    while shown and not shown[-1]:
        shown.pop()
    return shown


KINDS = {"pty": Pty, "tmux": Tmux}


def best() -> str:
    """The kind of terminal to use on this machine."""
    return "tmux" if shutil.which("tmux") else "pty"


@contextlib.contextmanager
def terminal(argv: list[str], environment: dict[str, str], kind: str = "") -> Iterator[Pty | Tmux]:
    """A program at a terminal, ended when the block is left."""
    found = KINDS[kind or best()](argv, environment)
    try:
        yield found
    finally:
        found.close()


class Prompt:
    """`ndani run` at a terminal: type a line, read what is shown for it."""

    READY = ">>> Send a message (/? for help)"

    def __init__(self, screen: Pty | Tmux) -> None:
        self.screen = screen
        self.wait()

    def wait(self, before: int = 0) -> list[str]:
        """Wait until more than `before` prompts are shown and the last line is one; every line."""

        def ready() -> list[str] | None:
            lines = self.screen.lines()
            return lines if lines and lines[-1] == self.READY and _prompts(lines) > before else None

        try:
            return list(until(ready, "the prompt comes", pause=0.03))
        except AssertionError:
            raise AssertionError("no prompt came:\n" + "\n".join(self.screen.lines())) from None

    def say(self, *lines: str) -> list[str]:
        """Type lines and wait for the next prompt; the lines shown in between, without empty ones."""
        before = self.wait()
        for number, line in enumerate(lines):
            if number:  # what is typed before the prompt appears would be shown twice
                self.until_shown("... Press Enter to send")
            self.screen.type(line)
            self.screen.press("Enter")
        shown = self.wait(_prompts(before))
        return [line for line in shown[len(before) : -1] if line]

    def until_shown(self, text: str) -> list[str]:
        """Wait until some text is on the screen."""
        return list(until(lambda: (lines := self.screen.lines()) and any(text in line for line in lines) and lines, text, pause=0.03))

    def until_more(self, lines: int) -> None:
        """Wait until there are more than so many lines, or the last of them has text that is no prompt."""
        until(lambda: len(self.screen.lines()) > lines, "more is shown", pause=0.03)


def _prompts(lines: list[str]) -> int:
    return sum(line.startswith((">>>", "...")) for line in lines)
