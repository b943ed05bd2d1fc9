"""The bodies of Anthropic's requests and responses. Fields that are not named here are ignored.

`num_ctx` and `keep_alive` are additions of ours, with their meaning in Ollama's API. What is here only to be refused says so.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class CacheControl(msgspec.Struct):
    """A place up to which a prompt is to be cached. Every prompt is, so it changes nothing."""

    type: Literal["ephemeral"]


class Block(msgspec.Struct, tag_field="type", kw_only=True):
    """A part of a turn; its `type` says which."""

    cache_control: CacheControl | None = None


class TextBlock(Block, tag="text", kw_only=True):
    """A text."""

    text: str


class Base64Source(msgspec.Struct, tag_field="type", tag="base64"):
    """An image in the request itself."""

    data: str
    media_type: str = ""


class UrlSource(msgspec.Struct, tag_field="type", tag="url"):
    """An image somewhere else; refused."""


class FileSource(msgspec.Struct, tag_field="type", tag="file"):
    """An image in Anthropic's store of files; refused."""


class ImageBlock(Block, tag="image", kw_only=True):
    """An image."""

    source: Base64Source | UrlSource | FileSource


class DocumentBlock(Block, tag="document", kw_only=True):
    """A document; refused."""


class SearchResultBlock(Block, tag="search_result", kw_only=True):
    """A passage to be cited; refused."""


class ThinkingBlock(Block, tag="thinking", kw_only=True):
    """What the assistant thought. The signature is empty in our answers, and not looked at."""

    thinking: str
    signature: str = ""


class RedactedThinkingBlock(Block, tag="redacted_thinking", kw_only=True):
    """Thoughts that only Anthropic can read."""


class ToolUseBlock(Block, tag="tool_use", kw_only=True):
    """A call of a tool that the assistant made."""

    id: str
    name: str
    input: dict[str, Any]


class ToolResultBlock(Block, tag="tool_result", kw_only=True):
    """What a tool returned for an earlier call."""

    tool_use_id: str
    content: str | list[TextBlock | ImageBlock | DocumentBlock | SearchResultBlock] | None = None
    is_error: bool | None = None


ContentBlock = (
    TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock
)


class Turn(msgspec.Struct):
    """One turn of the conversation. A `system` turn in the middle of it holds only text."""

    role: Literal["user", "assistant", "system"]
    content: str | list[ContentBlock]


class ToolBody(msgspec.Struct):
    """A tool of the client's own. One that Anthropic runs has another `type`, and is refused.

    A call that must be made is held to its schema, `strict` or not; for other calls, and for `eager_input_streaming`, a header says
    that they have no effect: a call is sent once it is whole.
    """

    name: str
    input_schema: dict[str, Any] | None = None
    description: str | None = None
    type: str | None = None
    strict: bool | None = None
    eager_input_streaming: bool | None = None
    cache_control: CacheControl | None = None
    defer_loading: bool | None = None
    allowed_callers: list[str] | None = None
    input_examples: list[Any] | None = None


class ToolChoiceBody(msgspec.Struct):
    """Whether a tool must be called, and which. `any` is one of them, `tool` the named one."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingBody(msgspec.Struct):
    """Whether the model thinks before it answers. `display`: whether the answer shows the thoughts or leaves them out."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(msgspec.Struct):
    """A JSON Schema that the answer's text must obey."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct):
    """How hard the model thinks, and the form of its answer."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class Metadata(msgspec.Struct):
    """A label of the user who asks."""

    user_id: str | None = None


class ConversationBody(msgspec.Struct, kw_only=True):
    """What both routes read: the model, and everything that its prompt is made of.

    `container`, `mcp_servers` and `context_management` are Anthropic's services, and refused where they ask for something.
    """

    model: str = ""
    messages: list[Turn] | None = None
    system: str | list[TextBlock] | None = None
    tools: list[ToolBody] | None = None
    tool_choice: ToolChoiceBody | None = None
    thinking: ThinkingBody | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    cache_control: CacheControl | None = None
    num_ctx: int | None = None
    keep_alive: float | str | None = None
    container: Any = None
    mcp_servers: list[Any] | None = None
    context_management: dict[str, Any] | None = None


class CountTokensBody(ConversationBody, kw_only=True):
    """The body of POST /v1/messages/count_tokens."""


class MessagesBody(ConversationBody, kw_only=True):
    """The body of POST /v1/messages. `speed` and `inference_geo` are refused where they ask for something that is not here."""

    max_tokens: int | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stream: bool | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    speed: str | None = None
    inference_geo: str | None = None
    diagnostics: dict[str, Any] | None = None


class TokenCountBody(msgspec.Struct):
    """The answer of POST /v1/messages/count_tokens."""

    input_tokens: int


class TextOut(msgspec.Struct, tag_field="type", tag="text"):
    """A text of the answer."""

    text: str


class ThinkingOut(msgspec.Struct, tag_field="type", tag="thinking"):
    """What the model thought."""

    thinking: str
    signature: str = ""


class ToolUseOut(msgspec.Struct, tag_field="type", tag="tool_use"):
    """A tool call."""

    id: str
    name: str
    input: dict[str, Any]


class UsageBody(msgspec.Struct):
    """Tokens: the prompt's is the sum of those that were read and those that were in the prefix cache."""

    input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens: int = 0


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class MessageBody(msgspec.Struct):
    """The answer of POST /v1/messages. Without a `stop_reason` it has only begun."""

    id: str
    model: str
    content: list[TextOut | ThinkingOut | ToolUseOut]
    usage: UsageBody
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"


class ErrorDetail(msgspec.Struct):
    """What is wrong: its kind, and one sentence."""

    type: str
    message: str


class ErrorBody(msgspec.Struct):
    """An error, as a body or as the last event of a stream."""

    error: ErrorDetail
    request_id: str
    type: Literal["error"] = "error"
