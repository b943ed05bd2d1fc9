"""Signals that end a server: those that uvicorn handles, and those of a closing terminal."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Generator

import uvicorn


class HangupServer(uvicorn.Server):
    """uvicorn, which also ends by its `handle_exit` on SIGHUP (the terminal was closed) and SIGQUIT.

    A signal that is ignored (`nohup`) stays ignored. The command line's own handlers raise an exception, which an event loop
    swallows: the server would run on without a terminal.
    """

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Handle all of these signals inside the block."""
        with super().capture_signals():
            numbers = [getattr(signal, name) for name in ("SIGHUP", "SIGQUIT") if hasattr(signal, name)]
            previous = {
                number: signal.signal(number, self.handle_exit) for number in numbers if signal.getsignal(number) is not signal.SIG_IGN
            }
            try:
                yield
            finally:
                for number, previous_handler in previous.items():
                    signal.signal(number, previous_handler)
