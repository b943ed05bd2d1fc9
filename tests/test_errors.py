"""The tree of errors is the one that is drawn, and every leaf can cross a process border."""

from __future__ import annotations

import re

from ndani import errors
from ndani.errors import NdaniError, errors_by_code

LINE = re.compile(r"^( {4}[│├└─ ]*)(\w+)(?: +(\d{3})  (.*))?$")


def drawn() -> dict[str, tuple[str | None, int]]:
    """Each class of the drawing: its parent and its status."""
    found: dict[str, tuple[str | None, int]] = {}
    above: dict[int, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        if match := LINE.match(line):
            depth = (len(match[1]) - 4) // 4
            found[match[2]] = (above.get(depth - 1), int(match[3] or 500))
            above[depth] = match[2]
    return found


def classes(root: type[NdaniError] = NdaniError) -> list[type[NdaniError]]:
    return [root, *(found for leaf in root.__subclasses__() for found in classes(leaf))]


def test_the_drawing_is_the_tree() -> None:
    # Classes outside errors.py would be errors that no drawing shows.
    real = {c.__name__: (None if c is NdaniError else c.__bases__[0].__name__, c.status) for c in classes()}
    assert drawn() == real
    assert len(real) >= 19
    assert all(c.__module__ == "ndani.errors" and len(c.__bases__) == 1 for c in classes())


def test_codes_are_unique_words() -> None:
    codes = [c.__dict__.get("code") for c in classes()]
    assert len(set(codes)) == len(codes)
    assert all(code and re.fullmatch(r"[a-z_]+", code) for code in codes), "each class has a code of its own"


def test_a_code_gives_its_class_back() -> None:
    assert errors_by_code() == {c.code: c for c in classes()}
    assert str(errors_by_code()["busy"]("one sentence")) == "one sentence"
