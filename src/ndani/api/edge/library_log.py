"""Writes what libraries log with Python's logging as lines of our log.

Without this their records would go to stderr, without a timestamp and not to the log file. Of an exception only its type and
source line are written: its message, and what a library formats into its own, could quote a prompt.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator

from ndani.api.edge.faults import fault
from ndani.ledger.log import Log


class LibraryLogHandler(logging.Handler):
    """Writes every record into `log`."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line per record; none for a cancelled task."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, asyncio.CancelledError):
            return
        if error:
            self._log.warn(str(fault(error)))
        elif record.name.startswith("uvicorn"):  # uvicorn and `connection.py` log fixed sentences and numbers only
            self._log.warn(record.getMessage().partition("\n")[0])
        else:
            self._log.warn("a library reports a fault", library=record.name, place=f"{record.filename}:{record.lineno}")


@contextlib.contextmanager
def capture_library_logs(log: Log) -> Iterator[None]:
    """Within the block, every record of Python's logging becomes a line of the log."""
    handler = LibraryLogHandler(log)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
