"""The bodies that Ollama's routes read, as types. A parser sees only the fields that stand here; names may be in any case.

Every field may be null, which is as if it were missing. The parsers say what is wrong in Ollama's words.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from ndani.api.edge.described_fields import Open
from ndani.engines.sampling import FLOAT_OPTIONS, INTEGER_OPTIONS, range_of

_TokenId = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
_TopLogprobs = Annotated[int, msgspec.Meta(ge=0, le=20)]
_Dimensions = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
_Base64 = Annotated[str, msgspec.Meta(description="A file as base64, or as a data URL of it.")]
_KeepAlive = Annotated[
    int | float | str | None,
    msgspec.Meta(description="Seconds, or a duration such as 5m, that the model stays loaded; 0: not at all, negative: for ever."),
]
_Stream = Annotated[bool | None, msgspec.Meta(description="Whether the answer is a stream of JSON lines (true), or one object.")]
_Think = bool | Literal["high", "medium", "low", "max", "true", "false", ""] | None


def _options_type() -> type[msgspec.Struct]:
    """The options by name, each with its range: a fraction where an integer is needed is cut off."""

    def numbers(name: str) -> Any:
        low, high = range_of(name)
        return Annotated[float, msgspec.Meta(ge=float(low), le=float(high))] | None

    fields = [(name, numbers(name), None) for name in (*INTEGER_OPTIONS, *FLOAT_OPTIONS)]
    more = [("use_mmap", bool | None, None), ("stop", list[str] | None, None)]
    return msgspec.defstruct("Options", [*fields, *more], bases=(Open,), module=__name__, kw_only=True)


Options = _options_type()
Options.__doc__ = (
    "Options of an answer and of its model's runner. One that is not named here is ignored, and named in the header X-Ndani-Ignored."
)


class PastFunction(msgspec.Struct):
    """The function that was called, with its arguments, and its place among the calls of one answer."""

    name: str
    arguments: dict[str, Any] | None = None
    index: Any = None


class PastToolCall(msgspec.Struct):
    """A call that the assistant made earlier in the conversation."""

    function: PastFunction
    id: str | None = None


class Message(msgspec.Struct):
    """A turn of a conversation."""

    role: str | None = None
    content: str | None = None
    thinking: str | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None
    images: list[_Base64] | None = None
    tool_calls: list[PastToolCall] | None = None


class ToolFunction(Open):
    """A function that the model may call; `parameters` is a JSON Schema."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    description: Any = None
    parameters: dict[str, Any] | None = None


class Tool(Open):
    """A tool; the model's template gets the whole object."""

    function: ToolFunction
    type: Literal["function"] = "function"


class ChosenFunction(msgspec.Struct):
    """The tool that must be called."""

    name: str


class NamedTool(Open):
    """A tool that must be called, by its name."""

    function: ChosenFunction
    type: Literal["function"] = "function"


class _ModelBody(msgspec.Struct, kw_only=True):
    """The model's name; `name` is the older field."""

    model: str | None = None
    name: str | None = None


class _AnswerBody(_ModelBody, kw_only=True):
    """What a generate and a chat have in common. `format`, `grammar` and `regex` exclude each other."""

    stream: _Stream = None
    think: _Think = None
    format: Literal["json", ""] | dict[str, Any] | None = None
    grammar: Annotated[str | None, msgspec.Meta(description="A grammar in llama.cpp's GBNF that the text must match; ours.")] = None
    regex: Annotated[str | None, msgspec.Meta(description="A regular expression that the text must match; ours.")] = None
    logprobs: bool | None = None
    top_logprobs: _TopLogprobs | None = None
    truncate: bool | None = None
    shift: bool | None = None
    keep_alive: _KeepAlive = None
    options: Options | None = None  # type: ignore[valid-type]
    debug_render_only: bool | None = msgspec.field(name="_debug_render_only", default=None)


class GenerateBody(_AnswerBody, kw_only=True):
    """A prompt to be continued; an empty one loads the model, or with `keep_alive` 0 unloads it."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    raw: bool | None = None
    context: list[_TokenId] | None = None
    images: list[_Base64] | None = None


class ChatBody(_AnswerBody, kw_only=True):
    """A conversation to be continued; without messages the model is loaded, or with `keep_alive` 0 unloaded."""

    messages: list[Message] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None


class EmbedBody(_ModelBody, kw_only=True):
    """Texts whose vectors are wanted."""

    input: str | list[str] | None = None
    truncate: bool | None = None
    dimensions: _Dimensions | None = None
    keep_alive: _KeepAlive = None
    options: Options | None = None  # type: ignore[valid-type]


class EmbeddingsBody(_ModelBody, kw_only=True):
    """One text whose vector is wanted: the older form."""

    prompt: str | None = None
    keep_alive: _KeepAlive = None
    options: Options | None = None  # type: ignore[valid-type]


class ShowBody(_ModelBody, kw_only=True):
    """A model to be described; `system`, `template` and `options` are shown instead of its own."""

    verbose: bool | None = None
    system: str | None = None
    template: str | None = None
    options: dict[str, Any] | None = None


class CopyBody(msgspec.Struct, kw_only=True):
    """A model's name, and the name that it is to have too."""

    source: str | None = None
    destination: str | None = None


class DeleteBody(_ModelBody, kw_only=True):
    """A name to be removed."""


class PullBody(_ModelBody, kw_only=True):
    """A model to be fetched. `insecure` allows a registry without TLS."""

    insecure: bool | None = None
    stream: _Stream = None


class PushBody(PullBody, kw_only=True):
    """A model to be sent to its registry."""


class KeptMessage(Message, kw_only=True):
    """A turn that every conversation with the new model begins with. It holds text alone."""

    role: Literal["system", "user", "assistant"]
    images: Annotated[list[_Base64], msgspec.Meta(max_length=0)] | None = None
    tool_calls: Annotated[list[PastToolCall], msgspec.Meta(max_length=0)] | None = None


class CreateBody(_ModelBody, kw_only=True):
    """A new model: `from` another one, or of `files` (digests of blobs by file name), and what is laid over them."""

    from_model: str | None = msgspec.field(name="from", default=None)
    files: dict[str, str] | None = None
    adapters: dict[str, str] | None = None
    template: str | None = None
    system: str | None = None
    license: str | list[str] | None = None
    parameters: dict[str, Any] | None = None
    messages: list[KeptMessage] | None = None
    requires: str | None = None
    renderer: str | None = None
    parser: str | None = None
    quantize: str | None = None
    quantization: Annotated[str | None, msgspec.Meta(description="The older name of quantize.")] = None
    stream: _Stream = None
    draft_files: Annotated[dict[str, str] | None, msgspec.Meta(description="Refused.")] = None
    draft_quantize: Annotated[str | None, msgspec.Meta(description="Refused.")] = None
    remote_host: Annotated[str | None, msgspec.Meta(description="Refused: every model runs on this machine.")] = None
    remote_model: Annotated[str | None, msgspec.Meta(description="Refused: every model runs on this machine.")] = None
    info: Annotated[dict[str, Any] | None, msgspec.Meta(description="Refused: what a model is stands in its weights.")] = None
