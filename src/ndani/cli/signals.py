"""How a signal ends a run: it unwinds like Ctrl-C does, so that the terminal is as it was, and only then ends the process.

A process that a signal has ended says so to whoever started it: a shell's loop over several commands ends with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType


class Terminated(BaseException):
    """A signal, of this number, that asks this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def unwind_on_signals() -> None:
    """Have what would end the process at once raise `Terminated`: SIGTERM, SIGHUP, and SIGQUIT (a key, as Ctrl-C is).

    One that is ignored (`nohup`) stays so. None leaves a core dump: a prompt would lie in it.
    """
    with contextlib.suppress(ImportError, OSError, ValueError):  # Windows has neither such limits nor such files
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    for name in ("SIGTERM", "SIGHUP", "SIGQUIT"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _unwind)


def end_by(number: int) -> int:
    """End this process by a signal's own action; where there is none, return the exit code that a shell would report."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if sys.platform != "win32":
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    return 128 + number


def _unwind(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # whoever asks twice does not want to wait
    raise Terminated(number)
