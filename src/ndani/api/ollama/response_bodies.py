"""The bodies that Ollama's routes answer with, as types. `responses`, `show` and `embed` write them; a field that can be left out says so.

What is an addition of ours: `truncated` (tokens that were left out), `ndani` beside the version, and in /api/ps `slots`, `pid` and
`confinement`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType


class Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A body that holds nothing but what its type names."""


class ErrorBody(Body, kw_only=True):
    """What went wrong and what to do, in one sentence."""

    error: str


class VersionBody(Body, kw_only=True):
    """The version of Ollama's API that is served, and the server's own."""

    version: str
    ndani: str


class CloudStatus(Body, kw_only=True):
    """There is no cloud here."""

    disabled: bool
    source: str


class StatusBody(Body, kw_only=True):
    """The state of the cloud."""

    cloud: CloudStatus


class TopLogprob(Body, kw_only=True):
    """A token that could have come, and its natural log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class Logprob(TopLogprob, kw_only=True):
    """A token, its natural log-probability, and the most probable ones at its place."""

    top_logprobs: list[TopLogprob] | UnsetType = UNSET


class CalledFunction(Body, kw_only=True):
    """The function that the model calls; `index` is the call's place in this answer."""

    index: int
    name: str
    arguments: dict[str, Any]


class ToolCall(Body, kw_only=True):
    """A call of a tool."""

    id: str
    function: CalledFunction


class DebugInfo(Body, kw_only=True):
    """The prompt as the engine would get it."""

    rendered_template: str
    image_count: int | UnsetType = UNSET


class AnswerLine(Body, kw_only=True):
    """What the lines of a generate and of a chat have in common; the counts are on the last one. Durations are nanoseconds."""

    model: str
    created_at: str
    done: bool
    done_reason: Literal["stop", "length", "load", "unload"] | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_cached_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET
    truncated: int | UnsetType = UNSET
    logprobs: list[Logprob] | UnsetType = UNSET
    debug_info: DebugInfo | UnsetType = msgspec.field(name="_debug_info", default=UNSET)


class GenerateLine(AnswerLine, kw_only=True):
    """A line of a streamed generate, or the whole of one that is not streamed."""

    response: str
    thinking: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET
    context: list[int] | UnsetType = UNSET


class AnswerMessage(Body, kw_only=True):
    """What the model says; its role is empty where a prompt was only rendered."""

    role: Literal["assistant", ""]
    content: str
    thinking: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatLine(AnswerLine, kw_only=True):
    """A line of a streamed chat, or the whole of one that is not streamed."""

    message: AnswerMessage


class EmbedAnswer(Body, kw_only=True):
    """A vector for each text."""

    model: str
    embeddings: list[list[float]]
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    truncated: int | UnsetType = UNSET


class EmbeddingsAnswer(Body, kw_only=True):
    """The vector of one text; empty where there was none."""

    embedding: list[float]
    truncated: int | UnsetType = UNSET


class ModelDetails(Body, kw_only=True):
    """A model's properties."""

    parent_model: str
    format: str
    family: str
    families: list[str] | None
    parameter_size: str
    quantization_level: str
    context_length: int | UnsetType = UNSET
    embedding_length: int | UnsetType = UNSET


class ListedModel(Body, kw_only=True):
    """A model in the store."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: ModelDetails
    capabilities: list[str]


class TagsBody(Body, kw_only=True):
    """The models in the store."""

    models: list[ListedModel]


class LoadedModel(Body, kw_only=True):
    """A model in memory."""

    name: str
    model: str
    size: int
    digest: str
    details: ModelDetails
    expires_at: str
    size_vram: int
    context_length: int
    slots: int
    pid: int
    confinement: str


class PsBody(Body, kw_only=True):
    """The models in memory."""

    models: list[LoadedModel]


class ShownMessage(Body, kw_only=True):
    """A turn that every conversation with the model begins with."""

    role: str
    content: str


class ShownTensor(Body, kw_only=True):
    """A tensor of the weights."""

    name: str
    type: str
    shape: list[int]


class ShowAnswer(Body, kw_only=True):
    """What a model is. `model_info` is the metadata of its weights."""

    license: str | UnsetType = UNSET
    modelfile: str | UnsetType = UNSET
    parameters: str | UnsetType = UNSET
    template: str | UnsetType = UNSET
    system: str | UnsetType = UNSET
    messages: list[ShownMessage] | UnsetType = UNSET
    renderer: str | UnsetType = UNSET
    parser: str | UnsetType = UNSET
    requires: str | UnsetType = UNSET
    warnings: list[str] | UnsetType = UNSET
    details: ModelDetails
    model_info: dict[str, Any]
    projector_info: dict[str, Any] | UnsetType = UNSET
    tensors: list[ShownTensor]
    capabilities: list[str]
    modified_at: str


class Step(Body, kw_only=True):
    """A step of long work. `total` and `completed` are bytes of the file of this `digest`. The last status is `success`."""

    status: str
    digest: str | UnsetType = UNSET
    total: int | UnsetType = UNSET
    completed: int | UnsetType = UNSET
