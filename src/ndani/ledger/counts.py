"""Counters since the server started: numbers only."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ndani.types import Done


@dataclass(slots=True)
class Counts:
    """Counters of one server. `last_end` is when the latest request ended, on the monotonic clock."""

    requests: int = 0
    failures: int = 0
    answers: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    truncated_prompts: int = 0
    truncated_tokens: int = 0
    in_flight: int = 0
    last_end: float = field(default_factory=time.monotonic)

    def begin_request(self) -> None:
        """Count a request that starts."""
        self.requests += 1
        self.in_flight += 1

    def end_request(self, status: int) -> None:
        """Count the end of a request with this status (499: the client disconnected)."""
        self.in_flight -= 1
        self.last_end = time.monotonic()
        if status == 499:
            self.cancelled += 1
        elif status >= 500:
            self.failures += 1

    def count_answer(self, done: Done) -> None:
        """Count a complete answer."""
        self.answers += 1
        self.prompt_tokens += done.usage.prompt_tokens
        self.output_tokens += done.usage.output_tokens
        if done.truncated:
            self.truncated_prompts += 1
            self.truncated_tokens += done.truncated

    def as_dict(self) -> dict[str, int]:
        """The counters by name."""
        names = ("requests", "failures", "cancelled", "answers", "prompt_tokens", "output_tokens", "truncated_prompts", "truncated_tokens")
        return {name: getattr(self, name) for name in names}
