"""Printing of everything but answers (`word_wrap`); control characters are removed on a terminal.

A pipe or a file gets the text unchanged. A terminal gets it without control characters, because models, licences,
templates and errors come from others and are not trusted.
"""

from __future__ import annotations

import sys

from ndani.control_characters import replace_controls


def emit(text: str = "", *, nl: bool = True, err: bool = False) -> None:
    """Print a text on stdout, or on stderr, where control characters are removed in a pipe too. Raises OSError."""
    stream = sys.stderr if err else sys.stdout
    printable = replace_controls(text) if err or stream.isatty() else text
    stream.write(f"{printable}\n" if nl else printable)
    stream.flush()
