"""What a model answers: events, whole answers, vectors, scores, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec

from ndani.types.conversation import ToolCall


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and time of an answer. `prompt_tokens` includes tokens from the prefix cache; `cached_tokens` counts only these.

    `output_tokens` includes those of thoughts; `thinking_tokens` counts only these.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    thinking_tokens: int = 0
    prompt_ns: int = 0
    output_ns: int = 0
    load_ns: int = 0
    total_ns: int = 0


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token with its natural log-probability, and in `top` the most probable tokens at its place. `data` is the token's bytes."""

    token: str
    logprob: float
    data: bytes
    top: tuple[TokenLogprob, ...] = ()


class Text(msgspec.Struct, frozen=True):
    """A chunk of an answer's text; `tokens` are the ids it came from, where the engine reports them, `logprobs` if they are wanted.

    One is created per token, and a frozen dataclass takes six times as long to create as this.
    """

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class Thought(msgspec.Struct, frozen=True):
    """A chunk of what a model thinks before it answers; the fields are as in Text."""

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class Called(msgspec.Struct, frozen=True):
    """A tool call, whole."""

    call: ToolCall


#: What an answer is made of; a model's thoughts come before its text and its calls.
Piece = Text | Thought | Called


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: its pieces, joined. `logprobs` are those of all its tokens, in order."""

    text: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """The end of an answer; every request ends in exactly one of these or in one error.

    `reason` is stop, length, load or unload. `stop_sequence` is the one of the request's stop sequences that ended the answer, or
    None. `context` is the ids of prompt and answer (generate only).
    `truncated` is how many tokens were dropped from the context: of the prompt, to make it fit, or later, when the answer
    went past the context's end.
    """

    reason: str
    usage: Usage = field(default_factory=Usage)
    context: tuple[int, ...] | None = None
    truncated: int = 0
    stop_sequence: str | None = None


@dataclass(frozen=True, slots=True)
class Vectors:
    """A unit vector for each text, in order; `truncated` is how many tokens of the texts were left out."""

    vectors: tuple[tuple[float, ...], ...]
    usage: Usage = field(default_factory=Usage)
    truncated: int = 0


@dataclass(frozen=True, slots=True)
class Ranking:
    """A score for each document, in order; more is better. Scores of a rank head are the model's own numbers, cosines are from -1 to 1.

    `truncated` is how many tokens of the documents were left out.
    """

    scores: tuple[float, ...]
    method: Literal["rank", "cosine"]
    usage: Usage = field(default_factory=Usage)
    truncated: int = 0


@dataclass(frozen=True, slots=True)
class Rendered:
    """The prompt as it would be sent to the engine, and how many images are in it: the only event of a `render_only` request."""

    prompt: str
    images: int = 0


Event = Piece | Done | Rendered


class Sink(Protocol):
    """A shortcut for an answer's pieces: they are put here instead of becoming events. The reader of the answer passes it in.

    `ready` is called before each chunk, since it may change between two of them.
    """

    def measure(self, prompt_tokens: int, cached_tokens: int) -> None:
        """The size of the prompt, as in Usage. Told when the engine begins to read it, so before the first piece."""
        ...

    def ready(self) -> bool:
        """Whether the reader has begun and keeps up. If not, the piece becomes an event."""
        ...

    def put(self, piece: Piece) -> None:
        """Take a piece. Called only when it is ready."""
        ...
