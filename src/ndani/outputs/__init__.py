"""Outputs: processing of a model's text before a client gets it. Pure, incremental, and the same for every engine.

`accumulator` takes the chunks of one answer and returns the text for the client. `answer_parser` divides that text into pieces:
thoughts (`thinking`), calls of tools (`tool_calls` in JSON, `spelt_calls` as in a program, which `call_syntax` reads), and text.
`tags` finds a tag that may be spread over chunks.
"""

from __future__ import annotations

from ndani.outputs.accumulator import MAX_REPEATS, Accumulator
from ndani.outputs.answer_parser import AnswerParser

__all__ = ["MAX_REPEATS", "Accumulator", "AnswerParser"]
