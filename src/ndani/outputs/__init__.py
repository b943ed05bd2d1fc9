"""Outputs: what is made of a model's text before anybody reads it. Pure and incremental, and the same for every engine.

`accumulator` takes the pieces of one answer and hands on what is to be told of them.
"""

from __future__ import annotations

from ndani.outputs.accumulator import MOST_REPEATS, Accumulator

__all__ = ["MOST_REPEATS", "Accumulator"]
