"""The bodies that OpenAI's routes read, as Structs. Every field may be null, which is as if it were missing.

Fields that are not OpenAI's: `num_ctx`, `keep_alive`, `options`, `truncate` and `think` are as in Ollama's API; `top_k`, `min_p`,
`repeat_penalty`, `regex` and `grammar` as other servers of this API have them; `random_seed` and `ttl` are Foundry Local's names
for `seed` and `keep_alive`.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

#: How many answers to one prompt a request may ask for.
MAX_CHOICES = 128

_Count = Annotated[int, msgspec.Meta(ge=-1, le=2**31 - 1)]
_Choices = Annotated[int, msgspec.Meta(ge=1, le=MAX_CHOICES)]
_Top = Annotated[int, msgspec.Meta(ge=0, le=20)]


class TextPart(msgspec.Struct, tag_field="type", tag="text"):
    """A part of a message: text."""

    text: str


class RefusalPart(msgspec.Struct, tag_field="type", tag="refusal"):
    """A part of an assistant's message: the text with which it refused."""

    refusal: str


class ImageUrl(msgspec.Struct):
    """An image, as a data URL. `detail` has no effect: a model sees every image in one way."""

    url: str
    detail: str | None = None


class ImagePart(msgspec.Struct, tag_field="type", tag="image_url"):
    """A part of a message: an image."""

    image_url: ImageUrl | str


class AudioPart(msgspec.Struct, tag_field="type", tag="input_audio"):
    """A part that is refused: no model here hears."""


class FilePart(msgspec.Struct, tag_field="type", tag="file"):
    """A part that is refused: no model here reads files."""


Part = TextPart | RefusalPart | ImagePart | AudioPart | FilePart


class CalledFunction(msgspec.Struct):
    """What the assistant called: a function, its arguments as the text of a JSON object."""

    name: str
    arguments: str | dict[str, Any] = ""


class AssistantToolCall(msgspec.Struct):
    """A call that the assistant made earlier in the conversation."""

    function: CalledFunction
    id: str | None = None
    type: str | None = None


class ChatMessage(msgspec.Struct):
    """A turn of the conversation. `name` is that of a tool; elsewhere it has no effect. Both names of the reasoning are read."""

    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[AssistantToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class TextFormat(msgspec.Struct, tag_field="type", tag="text"):
    """Free text."""


class JsonObjectFormat(msgspec.Struct, tag_field="type", tag="json_object"):
    """Any JSON object."""


class JsonSchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema"):
    """A document of a JSON Schema: `{"name", "schema", "strict"}`, or, as Foundry Local has it, the schema itself."""

    json_schema: dict[str, Any]


class LarkFormat(msgspec.Struct, tag_field="type", tag="lark_grammar"):
    """A text of a grammar in Lark (Foundry Local's)."""

    lark_grammar: str


class RegexFormat(msgspec.Struct, tag_field="type", tag="regex"):
    """A text that matches a regular expression."""

    regex: str


class GrammarFormat(msgspec.Struct, tag_field="type", tag="grammar"):
    """A text of a grammar in llama.cpp's GBNF."""

    grammar: str


ResponseFormatField = TextFormat | JsonObjectFormat | JsonSchemaFormat | LarkFormat | RegexFormat | GrammarFormat


class StreamOptions(msgspec.Struct):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Reasoning(msgspec.Struct):
    """How much to think: another way to write `reasoning_effort`."""

    effort: str | None = None


class AnswerBody(msgspec.Struct, kw_only=True):
    """What a chat and a completion have in common. `user` is a label without effect, by its definition."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: _Choices | None = None
    max_tokens: _Count | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    regex: str | None = None
    grammar: str | None = None
    random_seed: int | None = None
    ttl: float | None = None
    num_ctx: int | None = None
    keep_alive: float | str | None = None
    options: dict[str, Any] | None = None
    truncate: bool | None = None


class ChatBody(AnswerBody, kw_only=True):
    """The body of a chat.

    Labels without effect, by their definition: `metadata`, `safety_identifier`, and `prompt_cache_key`, since every prompt is
    looked up in the prefix cache.
    """

    messages: list[ChatMessage] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormatField | None = None
    max_completion_tokens: _Count | None = None
    logprobs: bool | None = None
    top_logprobs: _Top | None = None
    reasoning_effort: str | None = None
    reasoning: Reasoning | None = None
    think: bool | str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class CompletionBody(AnswerBody, kw_only=True):
    """The body of a completion. Each prompt of a list has its own choices."""

    prompt: str | list[str | int | list[int]] | None = None
    suffix: str | None = None
    logprobs: _Top | None = None
    echo: bool | None = None
    best_of: _Choices | None = None


class EmbeddingsBody(msgspec.Struct, kw_only=True):
    """The body of a request for embeddings. `user` is a label without effect, by its definition."""

    model: str | None = None
    input: str | list[str | int | list[int]] | None = None
    encoding_format: str | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None
    user: str | None = None
    num_ctx: int | None = None
    keep_alive: float | str | None = None
    ttl: float | None = None
    options: dict[str, Any] | None = None
    truncate: bool | None = None
