"""Durations as Go writes them."""

from __future__ import annotations

import pytest

from ndani.durations import parse_duration
from ndani.errors import BadRequest


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5m", 300), ("1h30m", 5400), ("-1s", -1), ("+2s", 2), ("1.5h", 5400), (".5s", 0.5), ("2.s", 2), ("250ms", 0.25),
        ("10us", 1e-5), ("10µs", 1e-5), ("10μs", 1e-5), ("3ns", 3e-9), ("1h2m3s4ms", 3723.004), ("0", 0), ("-1", -1), ("300", 300),
        ("1.5", 1.5), ("0s", 0),
    ],
)  # fmt: skip
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "-", "m", "5 m", "5x", "5m3", "1e3", "++1s", "--1s", "s5", "5m,", "1..5s", "0x10", "inf", "nan", "٣s", "٣"]
)
def test_what_is_no_duration_is_refused_in_gos_words(text: str) -> None:
    with pytest.raises(BadRequest) as met:
        parse_duration(text)
    assert str(met.value) == f'time: invalid duration "{text}"'


def test_a_duration_as_long_as_a_book_is_refused_at_once_and_not_repeated() -> None:
    for book in ("1s" * 10_000_000, "9" * 10_000_000, "x" * 10_000_000):
        with pytest.raises(BadRequest) as met:
            parse_duration(book)
        assert str(met.value) == f'time: invalid duration "{book[:80]}…"'
