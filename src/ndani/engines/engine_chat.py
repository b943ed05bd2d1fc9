"""An answer that the engine itself reads: it renders the conversation, and tells thinking, text and tool calls apart.

This is for models whose chat template is in the weights, when there are tools, or thinking in a form of its own: the engine
knows these forms. All other answers are completions of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec

from ndani.engines.measured import Measured, shifted_out
from ndani.engines.wire import ChatChunk, Timings
from ndani.outputs import Accumulator
from ndani.outputs.tool_calls import new_call_id
from ndani.types import Called, Done, Piece, Sink, Text, Thought, ToolCall


class EngineChat(Measured):
    """The state of one such answer: takes the engine's chunks, gives pieces, and at the end what it cost."""

    def __init__(self, accumulator: Accumulator, *, one_call: bool = False) -> None:
        super().__init__()
        self._accumulator, self._one_call = accumulator, one_call
        self._finish_reason: str | None = None
        self._timings: Timings | None = None
        self._call: tuple[int, str, list[str]] | None = None  # the call in progress: its index, its name, parts of its arguments
        self._calls = 0

    @property
    def over(self) -> bool:
        """Whether it is complete: the engine has ended it, or something here stops it."""
        return self._finish_reason is not None or self._accumulator.over or (self._one_call and self._calls > 0)

    def take(self, chunk: ChatChunk) -> Sequence[Piece]:
        """The pieces of a chunk."""
        if chunk.prompt_progress is not None:
            self._measure(chunk.prompt_progress)
            return ()
        delta, pieces = chunk.delta, list[Piece]()
        self._timings, self._finish_reason = chunk.timings or self._timings, chunk.finish_reason
        if delta.reasoning_content and (text := self._accumulator.take(delta.reasoning_content, ())):
            pieces.append(Thought(text.text))
            self._thoughts += 1
        if delta.content and (text := self._accumulator.take(delta.content, ())):
            pieces.append(Text(text.text))
        for part in delta.tool_calls:
            self._accumulator.take(part.function.arguments or part.function.name, ())
            if self._call is None or self._call[0] != part.index:
                pieces += self._finished_call()
                self._call = part.index, part.function.name, []
            self._call[2].append(part.function.arguments)
        if chunk.finish_reason is not None:
            pieces += self._finished_call(cut=chunk.finish_reason == "length")
        return pieces

    def end(self) -> Sequence[Piece]:
        """What is left when no more chunks will come."""
        return self._finished_call(cut=True)

    def _finished_call(self, *, cut: bool = False) -> list[Piece]:
        """The call in progress as a piece. One that was cut off is text, so that nothing is lost; it may be cut before its arguments."""
        if self._call is None or (self._one_call and self._calls):
            return []
        (_, name, parts), self._call = self._call, None
        written = "".join(parts)
        arguments = None
        with suppress(msgspec.DecodeError, RecursionError):
            arguments = msgspec.json.decode(written) if written or cut else {}
        if not isinstance(arguments, dict):
            return [Text(written)] if written else []
        self._calls += 1
        return [Called(ToolCall(name, arguments, new_call_id(), self._calls - 1))]

    def tap(self, sink: Sink) -> Callable[[ChatChunk], bool]:
        """As `Completion.tap`."""
        self._sink = sink
        ready, put = sink.ready, sink.put

        def offer(chunk: ChatChunk) -> bool:
            if chunk.finish_reason is not None or chunk.error is not None or self.over or not ready():
                return False
            for piece in self.take(chunk):
                put(piece)
            return True

        return offer

    def done(self, *, silent: bool, slot_ctx: int, truncated: int) -> Done:
        """The Done event with the usage."""
        timings = self._timings or Timings(  # it was stopped here, so the engine has not said
            cache_n=self._prompt.cache,
            prompt_n=self._prompt.total - self._prompt.cache,
            predicted_n=self._accumulator.count,
            predicted_ms=self._elapsed_ms(),
        )
        usage = self._usage(timings, max(timings.prompt_n, 0) + max(timings.cache_n, 0), silent=silent)
        is_length = self._finish_reason == "length" or (self._finish_reason is None and not self._calls)
        return Done("length" if is_length else "stop", usage, truncated=truncated + shifted_out(usage, slot_ctx))
