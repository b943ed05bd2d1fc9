"""Suspend and resume (Ctrl-Z, `fg`) while the terminal's modes are changed: they are restored for the shell meanwhile.

Shells differ in which modes they restore themselves: in some, the terminal would stay without echo.
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
def restoring_on_suspend(before_stop: Callable[[], None], after_resume: Callable[[], None]) -> Iterator[None]:
    """Inside the block, call `before_stop` before Ctrl-Z stops this process, and `after_resume` (perhaps twice) when it continues."""
    if sys.platform == "win32" or signal.getsignal(signal.SIGTSTP) is not signal.SIG_DFL:
        yield
        return
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        before_stop()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)  # stops here, unless there is no shell that could continue it
        signal.signal(number, stop)
        stopping = False
        after_resume()

    def resume(number: int, frame: FrameType | None) -> None:
        if not stopping:  # it was stopped by SIGSTOP, or was in the background
            after_resume()

    previous_handler = signal.signal(signal.SIGCONT, resume)
    signal.signal(signal.SIGTSTP, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.signal(signal.SIGCONT, previous_handler)


@contextlib.contextmanager
def restoring_cursor_on_suspend(row_count: Callable[[], int]) -> Iterator[None]:
    """Inside the block, rows are redrawn on stderr with a hidden cursor. A suspend shows the cursor.

    A resume hides it and moves down by `row_count` rows, so that the shell's own rows stay.
    """

    def write(escapes: bytes) -> None:
        with contextlib.suppress(OSError):
            os.write(2, escapes)  # not through the stream: the signal may have interrupted one of its writes

    with restoring_on_suspend(lambda: write(_SHOW_CURSOR), lambda: write(b"\n" * (row_count() - 1) + _HIDE_CURSOR)):
        yield
