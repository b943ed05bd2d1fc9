"""Tables of plain text in Ollama's layout: `columns` for listings, `section` for `show`. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from ndani.cli.formatting import width

_GAP = "    "


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A header and rows, each column as wide as its widest cell, with a final newline."""
    widths = _widths([header, *rows])
    # As in Ollama, the header ends with one space and each row with the full gap: scripts cut the table by columns.
    lines = [_GAP.join(_fill(header, widths)) + " "]
    lines += ["".join(cell + _GAP for cell in _fill(row, widths)) for row in rows]
    return "\n".join(lines) + "\n"


def section(title: str, rows: Sequence[Sequence[str]]) -> str:
    """A title indented by two, its rows by four, and an empty line; an empty text when there are no rows."""
    if not rows:
        return ""
    widths = _widths(rows)
    lines = [f"  {title}", *("    " + "".join(cell + _GAP for cell in _fill(row, widths)) for row in rows)]
    return "\n".join(lines) + "\n\n"


def pairs(rows: Sequence[Sequence[str]]) -> str:
    """Rows indented by two and aligned, without a header and without trailing spaces."""
    widths = _widths(rows)
    return "".join(("  " + "  ".join(_fill(row, widths))).rstrip() + "\n" for row in rows)


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(width(cell) for cell in column) for column in zip(*rows, strict=True)]


def _fill(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [cell + " " * (column_width - width(cell)) for cell, column_width in zip(row, widths, strict=True)]
