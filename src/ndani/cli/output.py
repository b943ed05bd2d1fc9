"""What commands print, and where foreign text is made fit for a terminal. (An answer has a way of its own: `wrap`.)

Into a pipe or a file a text goes to the letter. A terminal gets it without what it would obey, whoever wrote it: models,
licences, templates and errors are other people's. No escape of ours is written here.
"""

from __future__ import annotations

import sys

from ndani.control_characters import replace_controls


def emit(text: str = "", *, nl: bool = True, err: bool = False) -> None:
    """Print a text on stdout, or on stderr, which is for eyes and has it clean in a pipe too. Raises OSError."""
    stream = sys.stderr if err else sys.stdout
    shown = replace_controls(text) if err or stream.isatty() else text
    stream.write(f"{shown}\n" if nl else shown)
    stream.flush()
