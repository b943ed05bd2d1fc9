"""Log lines: what happened, never prompts or answers. The fields are names, numbers and fixed texts.

`Log` writes `key=value` lines to stderr or a file. There is no call that takes a prompt, an answer, a header or a
body, and none may be added.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from ndani.control_characters import replace_controls
from ndani.errors import Misconfigured


@dataclass(slots=True)
class Log:
    """One stream of lines. `level` 0 writes info and warnings, 1 debug lines too."""

    level: int = 0
    stream: TextIO = field(default_factory=lambda: sys.stderr)

    def debug(self, event: str, **fields: object) -> None:
        """A line for debugging."""
        if self.level > 0:
            self._write("debug", event, fields)

    def info(self, event: str, **fields: object) -> None:
        """A line for the operator of the server."""
        self._write("info", event, fields)

    def warn(self, event: str, **fields: object) -> None:
        """A line that needs attention."""
        self._write("warn", event, fields)

    def _write(self, level: str, event: str, fields: dict[str, object]) -> None:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now)) + f".{int(now * 1000) % 1000:03d}"
        pairs = "".join(f" {key}={_quote(str(value))}" for key, value in fields.items())
        try:
            # A field may quote untrusted text: it must stay on its line, and contain no control character for a terminal.
            self.stream.write(replace_controls(f"{stamp} {level} {event}{pairs}").replace("\n", " ") + "\n")
            self.stream.flush()
        except (OSError, ValueError):
            pass  # a full disk or a closed terminal must not stop an answer


def _quote(value: str) -> str:
    return f'"{value}"' if " " in value else value


def open_log(file: str, level: int) -> Log:
    """The log of a server: a file to append to, or stderr where `file` is empty. Raises Misconfigured when it cannot be written."""
    if not file:
        return Log(level)
    path = Path(file).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return Log(level, path.open("a", encoding="utf-8"))
    except OSError as error:
        raise Misconfigured(f"NDANI_LOG_FILE is {file!r}, which cannot be written ({error.strerror}); name another file") from None
