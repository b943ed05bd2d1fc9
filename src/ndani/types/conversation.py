"""What a conversation is made of, and the options that shape an answer to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


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
