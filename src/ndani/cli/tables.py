"""Tables of plain text, column for column as Ollama draws them: `columns` for listings, `section` for `show`.

Nothing here prints, and nothing knows what a model is.
"""

from __future__ import annotations

from collections.abc import Sequence

from ndani.cli.formatting import width

_GAP = "    "


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A heading and its rows, each column as wide as its widest cell, ended by a newline."""
    widths = _widths([head, *rows])
    # Ollama's table ends the heading with one space and each row with the full gap; scripts cut at columns, so we do too.
    lines = [_GAP.join(_fill(head, widths)) + " "]
    lines += ["".join(cell + _GAP for cell in _fill(row, widths)) for row in rows]
    return "\n".join(lines) + "\n"


def section(title: str, rows: Sequence[Sequence[str]]) -> str:
    """A title indented by two, its rows by four, and an empty line; nothing at all where there are no rows."""
    if not rows:
        return ""
    widths = _widths(rows)
    lines = [f"  {title}", *("    " + "".join(cell + _GAP for cell in _fill(row, widths)) for row in rows)]
    return "\n".join(lines) + "\n\n"


def pairs(rows: Sequence[Sequence[str]], indent: str = "  ") -> str:
    """Aligned rows without a heading and without spaces at their ends."""
    widths = _widths(rows)
    return "".join((indent + "  ".join(_fill(row, widths))).rstrip() + "\n" for row in rows)


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(width(cell) for cell in column) for column in zip(*rows, strict=True)]


def _fill(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [cell + " " * (wide - width(cell)) for cell, wide in zip(row, widths, strict=True)]
