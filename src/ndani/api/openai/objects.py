"""The objects that OpenAI's routes write, as Structs: answers, chunks of answers, vectors, models.

Some fields are always null here, and written because clients of this API or of Foundry Local look for them.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from ndani.service.model_ids import is_id
from ndani.types import Answer, Done, TokenLogprob, ToolCall


class FunctionCall(msgspec.Struct):
    """The function that a model calls, with its arguments as the text of a JSON object."""

    name: str
    arguments: str


class ToolCallObject(msgspec.Struct):
    """A call; `index` is its place among the calls of a choice."""

    index: int
    id: str
    type: str
    function: FunctionCall


class TopLogprob(msgspec.Struct):
    """A token that could have been at this place."""

    token: str
    logprob: float
    bytes: list[int]


class LogprobObject(msgspec.Struct):
    """A token with its natural log-probability."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class Logprobs(msgspec.Struct):
    """The log-probabilities of a choice's tokens."""

    content: list[LogprobObject]
    refusal: None = None


class AssistantMessage(msgspec.Struct):
    """An answer. Its content is null where it only calls tools."""

    role: str
    content: str | None
    refusal: None = None
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallObject] | UnsetType = UNSET


class Choice(msgspec.Struct):
    """One answer among several to the same conversation."""

    index: int
    message: AssistantMessage
    logprobs: Logprobs | None
    finish_reason: str


class PromptDetails(msgspec.Struct):
    """How many of the prompt's tokens were in the prefix cache."""

    cached_tokens: int


class CompletionDetails(msgspec.Struct):
    """How many of the answer's tokens were thoughts."""

    reasoning_tokens: int


class UsageObject(msgspec.Struct):
    """The tokens of a request. A prompt counts once, however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class ChatCompletion(msgspec.Struct):
    """The answer to a chat."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[Choice]
    usage: UsageObject


class Delta(msgspec.Struct):
    """What a chunk adds to a choice."""

    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallObject] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct):
    """A choice as far as one chunk goes."""

    index: int
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class ChatChunk(msgspec.Struct):
    """One event of a streamed chat. `usage` is only in streams that were asked for it, and null in all chunks but the last."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[ChunkChoice]
    usage: UsageObject | UnsetType | None = UNSET


class TextLogprobs(msgspec.Struct):
    """The log-probabilities of a completion's tokens; `text_offset` is where each begins in the text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class TextChoice(msgspec.Struct):
    """One of the texts with which a prompt goes on, or in a stream a piece of it."""

    text: str
    index: int
    logprobs: TextLogprobs | None = None
    finish_reason: str | None = None


class TextCompletion(msgspec.Struct):
    """The answer to a completion, or one event of it."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[TextChoice]
    usage: UsageObject | UnsetType | None = UNSET


class EmbeddingObject(msgspec.Struct):
    """The vector of a text, as numbers, or as base64 of little-endian 32-bit floats."""

    object: str
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(msgspec.Struct):
    """The tokens of the texts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct):
    """The vectors of all texts."""

    object: str
    data: list[EmbeddingObject]
    model: str
    usage: EmbeddingsUsage


class ModelObject(msgspec.Struct):
    """A model in the store; `created` is when it was last changed, in POSIX seconds, `owned_by` its namespace."""

    id: str
    object: str
    created: int
    owned_by: str


class ModelList(msgspec.Struct):
    """The models in the store."""

    object: str
    data: list[ModelObject]


def new_id(prefix: str) -> str:
    """A random name of an answer."""
    return f"{prefix}-{secrets.token_hex(12)}"


def fingerprint(model: str) -> str | None:
    """What `system_fingerprint` is. Foundry Local has none, so a client that uses its names for models gets null."""
    return None if is_id(model) else "fp_ndani"


def usage_object(ends: Mapping[int, Done], choices_per_prompt: int) -> UsageObject:
    """The tokens of an answer; `ends` has the end of each choice by its index, those of one prompt side by side."""
    first = [ends[index].usage for index in range(0, len(ends), choices_per_prompt)]
    prompt, cached = sum(usage.prompt_tokens for usage in first), sum(usage.cached_tokens for usage in first)
    output, thoughts = (sum(getattr(end.usage, name) for end in ends.values()) for name in ("output_tokens", "thinking_tokens"))
    return UsageObject(prompt, output, prompt + output, PromptDetails(cached), CompletionDetails(thoughts))


def tool_call_object(call: ToolCall) -> ToolCallObject:
    """A tool call in OpenAI's form, with its arguments as text."""
    arguments = msgspec.json.encode(call.arguments).decode()
    return ToolCallObject(call.index, call.id or f"call_{secrets.token_hex(4)}", "function", FunctionCall(call.name, arguments))


def logprobs_object(logprobs: Sequence[TokenLogprob]) -> Logprobs | None:
    """Log-probabilities in the form of a chat; None for none."""
    if not logprobs:
        return None
    return Logprobs(
        [
            LogprobObject(item.token, item.logprob, list(item.data), [TopLogprob(t.token, t.logprob, list(t.data)) for t in item.top])
            for item in logprobs
        ]
    )


def finish_reason(end: Done, calls: bool) -> str:
    """Why a choice ended. A choice with a call ends in tool_calls, since the client has something to do."""
    return "tool_calls" if calls else end.reason


def assistant_message(answer: Answer) -> AssistantMessage:
    """A whole answer as a message."""
    return AssistantMessage(
        "assistant",
        answer.text if answer.text or not answer.tool_calls else None,
        reasoning=answer.thinking or UNSET,
        tool_calls=[tool_call_object(call) for call in answer.tool_calls] or UNSET,
    )
