"""The log-probabilities of an answer that ends with its first tool call."""

from __future__ import annotations

from ndani.engines.completion import Completion
from ndani.engines.wire import Chunk, Probability
from ndani.outputs import Accumulator, AnswerParser
from ndani.types import Called, Piece, Text, Thought, Tool


def test_the_tokens_of_a_call_keep_their_log_probabilities() -> None:
    parser = AnswerParser(thinking=None, tool_tag=None, tools=(Tool("f", {}, {}),), called=True)
    completion = Completion(Accumulator(100), parser, logprobs=True, one_call=True)
    tokens = ['{"name": ', '"f", "arg', 'uments": {}', "}"]
    pieces: list[Piece] = []
    for token in tokens:
        pieces += completion.take(Chunk(token, [1], completion_probabilities=[Probability(token)]))
    pieces += completion.end()
    assert completion.over
    assert [piece.call.name for piece in pieces if isinstance(piece, Called)] == ["f"]
    texts = [piece for piece in pieces if isinstance(piece, Text | Thought)]
    assert [logprob.token for piece in texts for logprob in piece.logprobs] == tokens
    assert "".join(piece.text for piece in texts) == ""
