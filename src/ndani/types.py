"""The types that pass between packages: requests, events of an answer, models. Immutable; this module imports nothing of ours.

An option that is not set is None, never its default; `engines.sampling` says what then decides it. Durations are integer
nanoseconds, sizes are bytes, times are POSIX seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool as a model made it; `arguments` is a JSON object, `index` its place among the calls of one answer."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""
    index: int = 0


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call. `parameters` is a JSON Schema.

    `definition` is the whole object `{"type": "function", "function": {…}}`, as templates get it.
    """

    name: str
    parameters: Mapping[str, Any]
    definition: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether a model may call tools (auto), must not (none) or must (required); with a `name`, it must call that one."""

    mode: Literal["auto", "none", "required"] = "auto"
    name: str = ""


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer's text must match.

    `value` is empty for `json` (any JSON object), a JSON Schema for `schema`, and a text for the others: a regular expression,
    a grammar in llama.cpp's GBNF, or one in Lark.
    """

    kind: Literal["json", "schema", "regex", "gbnf", "lark"]
    value: Mapping[str, Any] | bool | str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `thinking` is what an assistant thought before it; a tool's turn names the tool and the call.

    `images` are files (PNG, JPEG, …) that belong to the text.
    """

    role: str
    content: str
    thinking: str = ""
    tool_name: str = ""
    tool_call_id: str = ""
    images: tuple[bytes, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    """Every option of a request or of a model that shapes an answer. Names and meanings are Ollama's; None: not set."""

    num_ctx: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    use_mmap: bool | None = None
    num_thread: int | None = None
    num_keep: int | None = None
    seed: int | None = None
    num_predict: int | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_last_n: int | None = None
    temperature: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRequest:
    """What every request for an answer has. `model` is the name as the client spelt it; `keep_alive` is in seconds, negative: forever.

    `render_only` returns only the prompt that would be sent. `think` is True, False, a level (low, medium, high, max), or None
    where the request does not set it; `think_if_possible` is for clients that ask every model to think: one that cannot does not.
    `constraint` is what the text must match. `logprobs` is how many alternatives are wanted with each token's log-probability, None
    for no log-probabilities. `logit_bias` is added to the logits of token ids; minus infinity forbids a token.
    `options_error` is the sentence of an error in the options; it is raised once the model is found and supports what the request needs.
    """

    model: str
    sampling: Sampling = field(default_factory=Sampling)
    keep_alive: float | None = None
    truncate: bool = True
    shift: bool = True
    render_only: bool = False
    think: bool | str | None = None
    think_if_possible: bool = False
    constraint: Constraint | None = None
    logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    options_error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest(AnswerRequest):
    """A conversation to be continued. `parallel_tool_calls`: one answer may hold several calls."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest(AnswerRequest):
    """A prompt to be answered. `raw` sends it as it is; `context` is the token ids of an earlier exchange.

    `system` and `template` replace the model's where they are not empty. With `suffix`, the text between prompt and suffix is
    wanted. With a `context`, even an empty one, the model's MESSAGE turns are left out.
    """

    prompt: str
    system: str = ""
    template: str = ""
    suffix: str = ""
    raw: bool = False
    images: tuple[bytes, ...] = ()
    context: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """Texts to be embedded. `dimensions` is how many numbers of each vector are wanted, 0 for all.

    With `truncate`, a text that is too long loses its end; without, it is an error. `options_error` is as in AnswerRequest.
    """

    model: str
    texts: tuple[str, ...]
    truncate: bool = True
    dimensions: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    keep_alive: float | None = None
    options_error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRequest:
    """Documents to be scored for a query. With `truncate`, a document that is too long loses its end; without, it is an error.

    The other fields are as in AnswerRequest.
    """

    model: str
    query: str
    documents: tuple[str, ...]
    truncate: bool = True
    sampling: Sampling = field(default_factory=Sampling)
    keep_alive: float | None = None
    options_error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeRequest:
    """A text whose token ids are wanted. `add_special`: with the tokens that the model adds to every prompt; `parse_special`: the
    text of a special token becomes that token. The other fields are as in AnswerRequest.
    """

    model: str
    text: str
    add_special: bool = False
    parse_special: bool = True
    sampling: Sampling = field(default_factory=Sampling)
    keep_alive: float | None = None
    options_error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DetokenizeRequest:
    """Token ids whose text is wanted. The other fields are as in AnswerRequest."""

    model: str
    tokens: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    keep_alive: float | None = None
    options_error: str = ""


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


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of long work (pull, push, create, …), as the user reads it. `total` and `completed` are bytes.

    `warning` marks a status that is a warning, for callers that show only some of the steps. No client is sent it.
    """

    status: str
    digest: str | None = None
    total: int | None = None
    completed: int | None = None
    warning: bool = False


#: The step before a manifest is written, and the last step of work that has succeeded, in Ollama's words.
WRITING_MANIFEST = Progress("writing manifest")
SUCCESS = Progress("success")


#: The callback that long work calls with each of its steps; it returns immediately.
Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Details:
    """A model's properties, as a listing shows them; `parent` is the name of the model that it was made from."""

    format: str = "gguf"
    family: str = ""
    families: tuple[str, ...] = ()
    parameter_size: str = ""
    quantization_level: str = ""
    context_length: int = 0
    embedding_length: int = 0
    parent: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """A model in the store. `digest` is its manifest's, as bare hex; `size` includes every file that it needs."""

    name: str
    digest: str
    size: int
    modified: float
    details: Details
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Resident:
    """A model in memory. `expires` is POSIX seconds, or None for never; `confined` says how its runner is jailed ("confined" if fully)."""

    name: str
    digest: str
    size: int
    size_vram: int
    details: Details
    context_length: int
    slots: int
    expires: float | None
    stopping: bool
    pid: int
    confined: str
