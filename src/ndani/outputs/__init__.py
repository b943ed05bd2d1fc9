"""Outputs: processing of a model's text before a client gets it. Pure, incremental, and the same for every engine.

`accumulator` takes the chunks of one answer and returns the text for the client.
"""

from __future__ import annotations

from ndani.outputs.accumulator import MAX_REPEATS, Accumulator

__all__ = ["MAX_REPEATS", "Accumulator"]
