"""The events and responses of the runner protocol, as types that decode within bounds: a compromised runner may send anything."""

from __future__ import annotations

from typing import Annotated

import msgspec

#: The range of numbers that an engine can really send. They are added up and logged, and a compromised runner may send absurd ones.
_Token = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**53)]
_Count = Annotated[int, msgspec.Meta(ge=-1, le=2**31)]
_Milliseconds = Annotated[float, msgspec.Meta(ge=-1.0, le=1e12)]


class Timings(msgspec.Struct):
    """What the engine measured: tokens and milliseconds, of the prompt (without cached ones) and of the answer."""

    cache_n: _Count = 0
    prompt_n: _Count = 0
    prompt_ms: _Milliseconds = 0.0
    predicted_n: _Count = 0
    predicted_ms: _Milliseconds = 0.0


class EngineError(msgspec.Struct):
    """What an engine says of a refusal: its kind, and for a prompt that is too long its tokens."""

    type: str = ""
    n_prompt_tokens: _Count = 0


class Refusal(msgspec.Struct):
    """The body of an error response."""

    error: EngineError = msgspec.field(default_factory=EngineError)


class PromptProgress(msgspec.Struct):
    """How much of a prompt has been processed, in tokens; `cache` of them were in the prefix cache."""

    total: _Count = 0
    cache: _Count = 0
    processed: _Count = 0


class Probability(msgspec.Struct):
    """A token's natural log-probability, its bytes, and the most probable tokens at its place."""

    token: str = ""
    bytes: Annotated[list[Annotated[int, msgspec.Meta(ge=0, le=255)]], msgspec.Meta(max_length=4096)] = []
    logprob: Annotated[float, msgspec.Meta(le=0.001)] = 0.0
    top_logprobs: Annotated[list[Probability], msgspec.Meta(max_length=64)] = []


class Chunk(msgspec.Struct):
    """One event of `/completion`. `prompt_progress` is set while the prompt is processed, `stop` only in the last event."""

    content: str = ""
    tokens: Annotated[list[_Token], msgspec.Meta(max_length=1024)] = []
    stop: bool = False
    stop_type: str = ""
    stopping_word: str = ""
    completion_probabilities: Annotated[list[Probability], msgspec.Meta(max_length=64)] = []
    tokens_evaluated: _Count = 0
    timings: Timings | None = None
    prompt_progress: PromptProgress | None = None
    error: EngineError | None = None


class CallDelta(msgspec.Struct):
    """A part of a tool call: the parts of one `index` are joined."""

    class Function(msgspec.Struct):
        name: str = ""
        arguments: str = ""

    index: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0
    function: Function = msgspec.field(default_factory=Function)


class Delta(msgspec.Struct):
    """What one event of a chat adds to the answer."""

    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: Annotated[list[CallDelta], msgspec.Meta(max_length=256)] = []


class _Choice(msgspec.Struct):
    delta: Delta = msgspec.field(default_factory=Delta)
    finish_reason: str | None = None


class ChatChunk(msgspec.Struct):
    """One event of `/v1/chat/completions`. `finish_reason` is set only in the last event."""

    choices: Annotated[list[_Choice], msgspec.Meta(max_length=1)] = []
    timings: Timings | None = None
    prompt_progress: PromptProgress | None = None
    error: EngineError | None = None

    @property
    def delta(self) -> Delta:
        """What this event adds."""
        return self.choices[0].delta if self.choices else Delta()

    @property
    def finish_reason(self) -> str | None:
        """Why the answer has ended, or None."""
        return self.choices[0].finish_reason if self.choices else None


class _Vector(msgspec.Struct):
    """One vector, as base64 of little-endian 32-bit floats: a quarter of the size of decimal numbers."""

    index: _Count
    embedding: bytes


class _Usage(msgspec.Struct):
    prompt_tokens: _Count = 0


class VectorsResponse(msgspec.Struct):
    """The response of `/v1/embeddings`."""

    data: list[_Vector]
    usage: _Usage = msgspec.field(default_factory=_Usage)


class _Score(msgspec.Struct):
    index: _Count
    relevance_score: float


class ScoresResponse(msgspec.Struct):
    """The response of `/v1/rerank`."""

    results: list[_Score]
    usage: _Usage = msgspec.field(default_factory=_Usage)


class PromptResponse(msgspec.Struct):
    """The response of `/apply-template`."""

    prompt: str


class ContentResponse(msgspec.Struct):
    """The response of `/detokenize`."""

    content: str


class TokensResponse(msgspec.Struct):
    """The response of `/tokenize`."""

    tokens: list[_Token]


class RawTokensResponse(msgspec.Struct):
    """As TokensResponse, its list not decoded."""

    tokens: msgspec.Raw


class PromptWithImages(msgspec.Struct, frozen=True):
    """A prompt that has the engine's marker where an image belongs, and the images, in this order."""

    text: str = msgspec.field(name="prompt_string")
    images: list[bytes] = msgspec.field(name="multimodal_data")
