"""Termination by a signal: it unwinds the stack like Ctrl-C, so that the terminal is restored, and then ends the process.

The process ends by the signal itself, not with an exit code: a shell then also ends a loop that runs several commands.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType


class Terminated(BaseException):
    """A signal of this number has requested the end of the process."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def unwind_on_signals() -> None:
    """Make SIGTERM, SIGHUP and SIGQUIT (the key Ctrl-\\) raise `Terminated` instead of ending the process at once.

    A signal that is ignored (`nohup`) stays ignored. Core dumps are turned off, because they would contain the prompt.
    """
    with contextlib.suppress(ImportError, OSError, ValueError):  # Windows has no resource limits and no core dumps
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    for name in ("SIGTERM", "SIGHUP", "SIGQUIT"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _unwind)


def exit_by_signal(number: int) -> int:
    """End this process by the default action of a signal; on Windows, return the exit code that a shell would report."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if sys.platform != "win32":
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    return 128 + number


def _unwind(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once
    raise Terminated(number)
