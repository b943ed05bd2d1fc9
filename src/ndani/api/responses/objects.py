"""The bodies of requests and responses, as types."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ndani.api.responses.items import FunctionCall, Item, MessageItem, ReasoningItem

OutputItem = MessageItem | ReasoningItem | FunctionCall


class TextFormat(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What the text of an answer must be: any text, a JSON object, or a document of a JSON Schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextOptions(msgspec.Struct, kw_only=True):
    """The options of an answer's text. Its length cannot be steered, so only a medium verbosity is accepted."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(msgspec.Struct, kw_only=True):
    """Whether and how long a model thinks, and whether its thoughts are wanted."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: str | None = None


class StreamOptions(msgspec.Struct, kw_only=True):
    """Options of a stream. It always ends with the usage."""

    include_obfuscation: bool | None = None
    include_usage: bool | None = None


class ConversationReference(msgspec.Struct):
    """A conversation by its id."""

    id: str


class CreateResponse(msgspec.Struct, kw_only=True):
    """The body of POST /v1/responses. `num_ctx`, `keep_alive`, `seed`, `stop` and the penalties are additions of ours."""

    model: str
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    previous_response_id: str | None = None
    conversation: str | ConversationReference | None = None
    store: bool | None = None
    include: list[str] | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None
    background: bool | None = None
    prompt: dict[str, Any] | None = None
    context_management: list[Any] | None = None
    moderation: dict[str, Any] | None = None
    num_ctx: int | None = None
    keep_alive: float | str | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


class FunctionTool(msgspec.Struct, tag_field="type", tag="function", kw_only=True):
    """A function that a model may call; `parameters` is a JSON Schema."""

    name: str
    description: str | None = None
    strict: bool | None = None
    parameters: dict[str, Any] | None = None


class InputTokensDetails(msgspec.Struct, frozen=True):
    """How many tokens of the input were in the prefix cache, and how many were added to it."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct, frozen=True):
    """How many tokens of the output were thoughts."""

    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct, kw_only=True):
    """The tokens of an answer."""

    input_tokens: int = 0
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int = 0
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int = 0


class IncompleteDetails(msgspec.Struct):
    """Why an answer ended before the model ended it."""

    reason: str


class ResponseError(msgspec.Struct):
    """Why an answer failed after it had begun."""

    code: str
    message: str


class ResponseObject(msgspec.Struct, kw_only=True):
    """An answer, or its state while it is in progress. `output_text` is only in answers to Foundry Local's names."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    cancelled_at: int | None = None
    failed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"] = "in_progress"
    incomplete_details: IncompleteDetails | None = None
    error: ResponseError | None = None
    model: str
    instructions: str | None = None
    output: list[OutputItem] = []
    output_text: str | msgspec.UnsetType = msgspec.UNSET
    previous_response_id: str | None = None
    conversation: ConversationReference | None = None
    tools: list[FunctionTool] = []
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    text: dict[str, TextFormat] = {}
    reasoning: dict[str, str | None] | None = None
    temperature: int | float = 1
    top_p: int | float = 1
    presence_penalty: int | float = 0
    frequency_penalty: int | float = 0
    top_logprobs: int = 0
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    truncation: Literal["auto", "disabled"] = "disabled"
    store: bool = True
    background: bool = False
    service_tier: str = "default"
    metadata: dict[str, str] = {}
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    usage: ResponseUsage | None = None


class InputTokens(msgspec.Struct, kw_only=True):
    """How many tokens the prompt of a request has."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


class ItemList(msgspec.Struct, kw_only=True):
    """A page of items."""

    object: Literal["list"] = "list"
    data: list[Item] = []
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class DeletedObject(msgspec.Struct, kw_only=True):
    """What is said of a response or a conversation that was deleted."""

    id: str
    object: Literal["response.deleted", "conversation.deleted"]
    deleted: bool = True


class CreateConversation(msgspec.Struct, kw_only=True):
    """The body of POST /v1/conversations."""

    items: list[dict[str, Any]] | None = None
    metadata: dict[str, str] | None = None


class UpdateConversation(msgspec.Struct, kw_only=True):
    """The body of POST /v1/conversations/{id}: other metadata."""

    metadata: dict[str, str] | None


class CreateItems(msgspec.Struct, kw_only=True):
    """The body of POST /v1/conversations/{id}/items."""

    items: list[dict[str, Any]]


class ConversationObject(msgspec.Struct, kw_only=True):
    """A conversation without its items."""

    id: str
    object: Literal["conversation"] = "conversation"
    created_at: int
    metadata: dict[str, str] = {}
