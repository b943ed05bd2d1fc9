"""The words of the house: what travels between rooms. Frozen, and importing nothing of ours.

"Not said" is None, never the default: request over model over settings is merged in one place
(`engines.sampling.merge`). Durations are integer nanoseconds, sizes bytes, times POSIX seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `thinking` is what an assistant thought before it; the tool's two say what a tool's turn answers."""

    role: str
    content: str
    thinking: str = ""
    tool_name: str = ""
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Every option of a request or of a model that shapes an answer; names and meanings are Ollama's (None: not said)."""

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


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A conversation to be continued. `model` is the name as the client spelt it; `keep_alive` is in seconds, negative: forever.

    `render_only` asks for the prompt that would be sent, and for nothing else. `think` is what the template is told of
    thinking, None where nothing was said. `asks` is what is wanted beyond text: thinking, tools, tool_calls, images, format,
    logprobs. `wrong` is what is wrong with its options, said once the model is known to be
    there and able.
    """

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    keep_alive: float | None = None
    truncate: bool = True
    shift: bool = True
    render_only: bool = False
    think: bool | None = None
    asks: frozenset[str] = frozenset()
    wrong: str = ""


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A prompt to be answered. `raw` sends it as it is; `context` is the token ids of an earlier exchange.

    `system` and `template` count instead of the model's, where they are not empty; with `suffix`, what is wanted stands
    between the prompt and it. A `context` without ids is said, too: the model's MESSAGE turns are left out. `think`, `asks`
    and `wrong` are as in a ChatRequest.
    """

    model: str
    prompt: str
    system: str = ""
    template: str = ""
    suffix: str = ""
    raw: bool = False
    context: tuple[int, ...] | None = None
    sampling: Sampling = field(default_factory=Sampling)
    keep_alive: float | None = None
    truncate: bool = True
    shift: bool = True
    render_only: bool = False
    think: bool | None = None
    asks: frozenset[str] = frozenset()
    wrong: str = ""


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """Texts to be made vectors. `dimensions` is how many numbers of each are wanted, 0 for all.

    With `truncate`, a text that is too long loses its end; without, it is an error. `wrong` is as in a ChatRequest.
    """

    model: str
    texts: tuple[str, ...]
    truncate: bool = True
    dimensions: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    keep_alive: float | None = None
    wrong: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer cost. `prompt_tokens` counts those served from the prefix cache too; `cached_tokens` only those."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    prompt_ns: int = 0
    output_ns: int = 0
    load_ns: int = 0
    total_ns: int = 0


class Text(msgspec.Struct, frozen=True):
    """A piece of an answer, as it is made; `tokens` are the ids it came from, where the engine says.

    One is made for every token, which takes a frozen dataclass six times as long.
    """

    text: str
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """The end of an answer; every request ends in exactly one of these or in one error.

    `reason` is stop, length, load or unload. `context` is the ids of prompt and answer (generate only).
    `truncated` is how many tokens left the model's sight: of the prompt before the answer, or while it went on past the
    context's end.
    """

    reason: str
    usage: Usage = field(default_factory=Usage)
    context: tuple[int, ...] | None = None
    truncated: int = 0


@dataclass(frozen=True, slots=True)
class Vectors:
    """A vector for each text, in order, each of length 1; `truncated` is how many tokens were left out of the texts."""

    vectors: tuple[tuple[float, ...], ...]
    usage: Usage = field(default_factory=Usage)
    truncated: int = 0


@dataclass(frozen=True, slots=True)
class Rendered:
    """The prompt as the engine would have been sent it; the one event of a request that asked for no more."""

    prompt: str


Event = Text | Done | Rendered


class Sink(Protocol):
    """Where texts of an answer may go at once, instead of as events. Whoever reads the answer brings it.

    It is asked before each text, and between two texts may become ready, or cease to be.
    """

    def ready(self) -> bool:
        """Whether its reader has begun and keeps up. When not, the text comes as an event."""
        ...

    def put(self, text: Text) -> None:
        """Take a text. Called only when it is ready."""
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of long work, as the user reads it; bytes where it has a size."""

    status: str
    digest: str | None = None
    total: int | None = None
    completed: int | None = None


#: What long work is given, and calls with each of its steps; it returns at once.
Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Details:
    """What a model is, as a listing shows it; `parent` is the name of the model that it was made from."""

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
    """A model in the store: its name, the digest of its manifest (bare hex), its size with everything it needs."""

    name: str
    digest: str
    size: int
    modified: float
    details: Details
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Resident:
    """A model in memory. `expires` is POSIX seconds, or None for never; `confined` is the word the jail earned."""

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
