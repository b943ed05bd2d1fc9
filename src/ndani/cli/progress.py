"""How long work gets on: bars on a terminal, plain lines in a pipe; always on stderr, never an escape into a pipe."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from ndani.cli.formatting import size
from ndani.cli.pausing import drawing
from ndani.control_characters import replace_controls
from ndani.errors import Failed

if TYPE_CHECKING:
    from rich.progress import Progress

_QUIET_S = 5.0  # a slow download still gives a sign of life this often


class Display(Protocol):
    """Something that shows one event after another."""

    def take(self, event: Mapping[str, Any]) -> None:
        """Show one `{status, digest?, total?, completed?}`."""
        ...

    def close(self) -> None:
        """Leave the screen as it should stay."""
        ...


def follow(events: Iterator[Mapping[str, Any]], incomplete: str, *, quiet_end: bool = False) -> None:
    """Show events to their end. Raises Failed with the sentence `incomplete` when the last was not `success`.

    With `quiet_end` that word is not shown: whoever calls says what it came to.
    """
    status = ""
    display = _display()
    try:
        for event in events:
            status = str(event.get("status") or "")
            if not (quiet_end and status == "success"):
                display.take(
                    {**event, "status": replace_controls(status).replace("\n", " ")}
                )  # a registry or a folder may have a say in it
    finally:
        display.close()
    if status != "success":
        raise Failed(incomplete)


def _display() -> Display:
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return ProgressBars()
    return PlainLines(sys.stderr)


class PlainLines:
    """A line for each change of status, and for a download one for every tenth of it or every few seconds."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._status = ""
        self._tenth = -1
        self._last = 0.0

    def take(self, event: Mapping[str, Any]) -> None:
        """Write a line, or not."""
        status, total = str(event.get("status") or ""), int(event.get("total") or 0)
        now, fresh = time.monotonic(), status != self._status
        if not total:
            if fresh:
                self._out.write(f"{status}\n")
        else:
            done = int(event.get("completed") or 0)
            tenth = -1 if fresh else self._tenth
            share = 100 * done // total
            due = share // 10 > tenth and (fresh or share == 100 or now - self._last >= 1)
            if due or (now - self._last >= _QUIET_S and share > 0):
                self._out.write(f"{status}: {share:3d}% of {size(total)}\n")
                tenth, self._last = share // 10, now
            self._tenth = tenth
        self._status = status
        self._out.flush()

    def close(self) -> None:
        """Nothing is left open."""


class ProgressBars:
    """A bar for each file that travels, with bytes, speed and the time it still needs; statuses stay as lines above."""

    def __init__(self) -> None:
        self._bars = _rich_progress()
        self._tasks: dict[str, Any] = {}
        self._status = ""
        self._drawn = contextlib.ExitStack()
        self._drawn.enter_context(self._bars)
        self._drawn.enter_context(drawing(lambda: len(self._tasks)))

    def take(self, event: Mapping[str, Any]) -> None:
        """Move a bar, or write a line."""
        status, total = str(event.get("status") or ""), int(event.get("total") or 0)
        if total:
            done = int(event.get("completed") or 0)
            key = str(event.get("digest") or status)
            if key not in self._tasks:
                self._tasks[key] = self._bars.add_task(status, total=total, completed=done)
            else:
                self._bars.update(self._tasks[key], description=status, completed=done, total=total)
        elif status != self._status:
            self._bars.console.print(status, markup=False, highlight=False, emoji=False)
        self._status = status

    def close(self) -> None:
        """Draw the bars a last time and give the cursor back."""
        self._drawn.close()


def _rich_progress() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
    ]
    if console.width >= 80:  # a row that does not fit would be broken over several lines
        columns += [DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    return Progress(*columns, console=console)
