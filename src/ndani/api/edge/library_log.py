"""What the libraries below the server say by Python's logging, as lines of our log.

Without this they would go to stderr, without a stamp and past the log's file. Of an error only its kind and place are
written: its words, and what a library makes of the objects in its hands, could quote a prompt.
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
        """One record, one line; none for what was only cancelled."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, asyncio.CancelledError):
            return
        if error:
            self._log.warn(str(fault(error)))
        elif record.name.startswith("uvicorn"):  # its lines are its own words and numbers, and ours of `connection.py`
            self._log.warn(record.getMessage().partition("\n")[0])
        else:
            self._log.warn("a library reports a fault", library=record.name, place=f"{record.filename}:{record.lineno}")


@contextlib.contextmanager
def capture_library_logs(log: Log) -> Iterator[None]:
    """Within the block, whatever is said by Python's logging is a line of the log."""
    handler = LibraryLogHandler(log)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
