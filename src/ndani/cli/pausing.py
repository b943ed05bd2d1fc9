"""What Ctrl-Z does to a terminal that is not as a shell left it: the shell has it back until `fg`, and then it is ours again.

Shells differ in what they mend by themselves: after some, a terminal that does not echo would stay so.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

_SHOW_CURSOR, _HIDE_CURSOR = b"\x1b[?25h", b"\x1b[?25l"


@contextlib.contextmanager
def pausing(leave: Callable[[], None], back: Callable[[], None]) -> Iterator[None]:
    """Inside the block Ctrl-Z calls `leave` before it stops this process, and whatever continues it calls `back`, perhaps twice."""
    if sys.platform == "win32" or signal.getsignal(signal.SIGTSTP) is not signal.SIG_DFL:
        yield
        return
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        leave()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)  # it stands here; not at all where no shell is there that could continue it
        signal.signal(number, stop)
        stopping = False
        back()

    def go_on(number: int, frame: FrameType | None) -> None:
        if not stopping:  # it was stopped without being asked (SIGSTOP), or stood in the background
            back()

    before = signal.signal(signal.SIGCONT, go_on)
    signal.signal(signal.SIGTSTP, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.signal(signal.SIGCONT, before)


@contextlib.contextmanager
def drawing(rows: Callable[[], int]) -> Iterator[None]:
    """While so many rows are drawn on stderr again and again, without a cursor: a shell in between has one, and keeps its own rows."""

    def write(escapes: bytes) -> None:
        with contextlib.suppress(OSError):
            os.write(2, escapes)  # not by the stream: the signal may have come in the middle of its own work

    with pausing(lambda: write(_SHOW_CURSOR), lambda: write(b"\n" * (rows() - 1) + _HIDE_CURSOR)):
        yield
