"""What an answer costs while it comes, and at its end: the same for a text that is read here and for what the engine has read."""

from __future__ import annotations

import time

from ndani.engines.wire import PromptProgress, Timings
from ndani.types import Sink, Usage


class Measured:
    """The size of the prompt, the tokens of thoughts and the time of one answer. A `sink` is told the size as soon as it is known."""

    def __init__(self) -> None:
        self._prompt = PromptProgress()
        self._thoughts = 0  # tokens that were thoughts
        self._sink: Sink | None = None
        self._began = time.monotonic_ns()

    def _measure(self, progress: PromptProgress) -> None:
        """The engine has told how much of the prompt it has processed."""
        self._prompt = progress
        if self._sink is not None:
            self._sink.measure(progress.total, progress.cache)

    def _elapsed_ms(self) -> float:
        return (time.monotonic_ns() - self._began) / 1e6

    def _usage(self, timings: Timings, prompt_tokens: int, *, silent: bool) -> Usage:
        return Usage(
            prompt_tokens=max(prompt_tokens, 0),
            cached_tokens=max(timings.cache_n, 0),
            output_tokens=0 if silent else max(timings.predicted_n, 0),
            thinking_tokens=self._thoughts,
            prompt_ns=max(int(timings.prompt_ms * 1e6), 1),
            output_ns=max(int(timings.predicted_ms * 1e6), 1),
        )


def shifted_out(usage: Usage, slot_ctx: int) -> int:
    """How many tokens have left the context of the slot (0: unknown): each token beyond it has shifted one earlier token out."""
    return max(0, usage.prompt_tokens + usage.output_tokens - slot_ctx) if slot_ctx else 0
