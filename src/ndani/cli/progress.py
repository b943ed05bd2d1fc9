"""The progress of long work, on stderr: bars on a terminal, plain lines without escape sequences in a pipe."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from ndani.cli.formatting import size
from ndani.cli.suspend import restoring_cursor_on_suspend
from ndani.control_characters import replace_controls
from ndani.errors import Failed

if TYPE_CHECKING:
    from rich.progress import Progress

_MAX_SILENCE_S = 5.0  # a slow download writes a line at least this often


class Display(Protocol):
    """Shows the events of long work."""

    def show(self, event: Mapping[str, Any]) -> None:
        """Show one `{status, digest?, total?, completed?}`."""
        ...

    def close(self) -> None:
        """Draw the final state."""
        ...


def follow(events: Iterator[Mapping[str, Any]], incomplete: str, *, hide_success: bool = False) -> None:
    """Show all events. Raises Failed with the message `incomplete` when the last status is not `success`.

    With `hide_success` this status is not shown, because the caller prints the result.
    """
    status = ""
    display = _display()
    try:
        for event in events:
            status = str(event.get("status") or "")
            if not (hide_success and status == "success"):
                # A registry or a file name may be part of the status, and neither is trusted.
                printable = replace_controls(status).replace("\n", " ")
                display.show({**event, "status": printable})
    finally:
        display.close()
    if status != "success":
        raise Failed(incomplete)


def _display() -> Display:
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return ProgressBars()
    return PlainLines(sys.stderr)


class PlainLines:
    """A line for each new status, and during a download a line for every tenth of it or every few seconds."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._status = ""
        self._tenth = -1
        self._last_written_at = 0.0

    def show(self, event: Mapping[str, Any]) -> None:
        """Write a line when one is due."""
        status, total = str(event.get("status") or ""), int(event.get("total") or 0)
        now, is_new_status = time.monotonic(), status != self._status
        if not total:
            if is_new_status:
                self._out.write(f"{status}\n")
        else:
            completed = int(event.get("completed") or 0)
            last_tenth = -1 if is_new_status else self._tenth
            percent = 100 * completed // total
            is_due = percent // 10 > last_tenth and (is_new_status or percent == 100 or now - self._last_written_at >= 1)
            if is_due or (now - self._last_written_at >= _MAX_SILENCE_S and percent > 0):
                self._out.write(f"{status}: {percent:3d}% of {size(total)}\n")
                last_tenth, self._last_written_at = percent // 10, now
            self._tenth = last_tenth
        self._status = status
        self._out.flush()

    def close(self) -> None:
        """Nothing to do: every line is complete."""


class ProgressBars:
    """A bar for each file in transfer, with bytes, speed and remaining time; other statuses are lines above the bars."""

    def __init__(self) -> None:
        self._bars = _rich_progress()
        self._tasks: dict[str, Any] = {}
        self._status = ""
        self._resources = contextlib.ExitStack()
        self._resources.enter_context(self._bars)
        self._resources.enter_context(restoring_cursor_on_suspend(lambda: len(self._tasks)))

    def show(self, event: Mapping[str, Any]) -> None:
        """Update a bar, or write a line."""
        status, total = str(event.get("status") or ""), int(event.get("total") or 0)
        if total:
            completed = int(event.get("completed") or 0)
            key = str(event.get("digest") or status)
            if key not in self._tasks:
                self._tasks[key] = self._bars.add_task(status, total=total, completed=completed)
            else:
                self._bars.update(self._tasks[key], description=status, completed=completed, total=total)
        elif status != self._status:
            self._bars.console.print(status, markup=False, highlight=False, emoji=False)
        self._status = status

    def close(self) -> None:
        """Draw the bars a last time and show the cursor."""
        self._resources.close()


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
    if console.width >= 80:  # a wider row would wrap on a narrow terminal
        columns += [DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    return Progress(*columns, console=console)
