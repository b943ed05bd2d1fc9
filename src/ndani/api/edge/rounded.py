"""Numbers of a vector as JSON writes them."""

from __future__ import annotations

from collections.abc import Iterable


def rounded(vector: Iterable[float]) -> list[float]:
    """With nine digits per number: enough to restore every 32-bit float; all 17 digits of a 64-bit one would be half noise."""
    return [float(f"{number:.9g}") for number in vector]
