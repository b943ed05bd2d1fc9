"""One running completion: takes the engine's chunks, gives the pieces of an answer, and at the end what it cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ndani.engines.measured import Measured, shifted_out
from ndani.engines.wire import Chunk, Probability, Timings
from ndani.outputs import Accumulator, AnswerParser
from ndani.types import Called, Done, Piece, Sink, Text, Thought, TokenLogprob


class Completion(Measured):
    """The state of one completion. With a `parser`, its text is read for thinking and tool calls; without, all of it is text.

    `one_call` ends the answer with its first tool call. `thought` makes all of the text a thought.
    """

    def __init__(
        self,
        accumulator: Accumulator,
        parser: AnswerParser | None = None,
        *,
        logprobs: bool = False,
        one_call: bool = False,
        thought: bool = False,
    ) -> None:
        super().__init__()
        self._accumulator, self._parser = accumulator, parser
        self._keeps_logprobs, self._one_call, self._thought = logprobs, one_call, thought
        self._called = False  # with `one_call`: the call has come
        self._logprobs: list[TokenLogprob] = []  # of tokens whose text has not come yet
        self._last = Chunk()  # the last chunk that arrived

    @property
    def over(self) -> bool:
        """Whether it is complete: the engine has ended it, or something here stops it."""
        return self._last.stop or self._accumulator.over or self._called

    @property
    def tokens(self) -> list[int]:
        """The ids of the tokens so far, where they are kept."""
        return self._accumulator.tokens

    def take(self, chunk: Chunk) -> Sequence[Piece]:
        """The pieces of a chunk."""
        if chunk.prompt_progress is not None:
            self._measure(chunk.prompt_progress)
            return ()
        self._last = chunk
        accumulate = self._accumulator.finish if chunk.stop else self._accumulator.take
        return self._pieces(accumulate(chunk.content, chunk.tokens), chunk)

    def end(self) -> Sequence[Piece]:
        """What a parser has held back, once no more chunks will come."""
        if self._parser is None:
            return ()
        if not self._called:
            return self._first_call(self._parser.finish())
        # The tokens of the call, which it has not, still count among the log-probabilities.
        rest = self._parser.finish()
        logprobs = tuple(logprob for piece in rest if isinstance(piece, Text | Thought) for logprob in piece.logprobs)
        return (Text("", (), logprobs),) if logprobs else ()

    def _pieces(self, text: Text | None, chunk: Chunk) -> Sequence[Piece]:
        if self._keeps_logprobs:
            self._logprobs += map(_logprob, chunk.completion_probabilities)
        if text is None:
            return ()
        logprobs, self._logprobs = tuple(self._logprobs), []
        if self._parser is not None:
            pieces = self._first_call(self._parser.take(text.text, text.tokens, logprobs))
            self._thoughts += any(isinstance(piece, Thought) for piece in pieces)
            return pieces
        if self._thought:
            self._thoughts += 1
            return (Thought(text.text, text.tokens, logprobs),)
        return (Text(text.text, text.tokens, logprobs) if logprobs else text,)

    def _first_call(self, pieces: Sequence[Piece]) -> Sequence[Piece]:
        """The pieces up to the first call, where only one is wanted."""
        if not self._one_call:
            return pieces
        for index, piece in enumerate(pieces):
            if isinstance(piece, Called):
                self._called = True
                return pieces[: index + 1]
        return pieces

    def tap(self, sink: Sink) -> Callable[[Chunk], bool]:
        """A tap that puts the pieces of an answer into `sink` directly from the socket callback, past all waiting generators.

        The engine has only two cores, and waking the generators costs more than everything else that is done for a token.
        """
        accumulator, accumulate, ready, put = self._accumulator, self._accumulator.take, sink.ready, sink.put
        self._sink = sink
        plain = self._parser is None and not self._keeps_logprobs and not self._thought

        def offer(chunk: Chunk) -> bool:
            if chunk.stop or chunk.error is not None or accumulator.over or self._called or not ready():
                return False
            if chunk.prompt_progress is not None:
                self._measure(chunk.prompt_progress)
                return True
            self._last = chunk
            text = accumulate(chunk.content, chunk.tokens)
            if not plain:
                for piece in self._pieces(text, chunk):
                    put(piece)
            elif text:
                put(text)
            # The first call may have ended the answer: the reader must wake to see it.
            return True

        return offer

    def done(self, *, silent: bool, slot_ctx: int, context: tuple[int, ...] | None, truncated: int) -> Done:
        """The Done event with the usage."""
        last, stopped_by_us = self._last, not self._last.stop
        measured = Timings(cache_n=self._prompt.cache, predicted_n=self._accumulator.count, predicted_ms=self._elapsed_ms())
        timings = last.timings if last.timings and not stopped_by_us else measured
        usage = self._usage(timings, last.tokens_evaluated, silent=silent)
        is_length = (stopped_by_us and not self._called) or last.stop_type == "limit"
        stop_sequence = last.stopping_word if last.stop_type == "word" else None
        return Done("length" if is_length else "stop", usage, context, truncated + shifted_out(usage, slot_ctx), stop_sequence)


def _logprob(probability: Probability) -> TokenLogprob:
    """A token's log-probability as the engine reports it. It writes a token of no probability as the smallest float."""
    top = tuple(map(_logprob, probability.top_logprobs))
    return TokenLogprob(probability.token, max(probability.logprob, -9999.0), bytes(probability.bytes), top)
