"""How the answers of a model are to be read: from the chat template in its weights, or from the parser that its config names.

Models write their thoughts and their calls of tools in forms of their own. The engine knows most of them by the chat template,
and reads what it makes a model write. Some it reads wrongly; those are listed here, with what reads them instead. Data and pure
functions. docs/renderers.md has the whole table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ndani.store.parameters import excerpt

#: The tags of most models that think.
THINK_TAGS = ("<think>", "</think>")

#: Marks of chat templates whose answers have parts for thoughts and for text; only the engine takes them apart.
_CHANNELS = (
    "<|channel|>",  # gpt-oss (harmony)
    "<|channel>",  # gemma 4
    "[THINK]",  # ministral, magistral
    "<|START_THINKING|>",  # command-a, command-r7b
    "to=self<|message|>",  # glimmer
)
#: Tags of calls that are spelt as in a program, which the engine takes for something else: olmo 3, functiongemma.
_SPELT_CALLS = (("<function_calls>", "</function_calls>"), ("<start_function_call>", "<end_function_call>"))
#: A tag that some chat templates ask for without showing a call, so that the engine cannot know it: granite 3, phi-4-mini.
_TAG_WITHOUT_CALLS = "<|tool_call|>"


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """`thinking` is the tags around thoughts, `tool_tag` what stands before calls in JSON, `call_tags` what stands around spelt calls.

    None: there are none, or the engine knows them. With `engine_reads`, every answer is the engine's to read.
    """

    thinking: tuple[str, str] | None = None
    tool_tag: str | None = None
    call_tags: tuple[str, str] | None = None
    engine_reads: bool = False

    @property
    def thinks(self) -> bool:
        """Whether a model of this format can think."""
        return self.thinking is not None or self.engine_reads

    @property
    def calls_are_ours(self) -> bool:
        """Whether calls are read here rather than by the engine."""
        return self.tool_tag is not None or self.call_tags is not None


def format_of_chat_template(template: str) -> AnswerFormat:
    """How answers are read that a chat template in weights leads to."""
    if any(mark in template for mark in _CHANNELS):
        return AnswerFormat(engine_reads=True)
    return AnswerFormat(
        thinking=THINK_TAGS if THINK_TAGS[1] in template or THINK_TAGS[0] in template else None,
        tool_tag=_TAG_WITHOUT_CALLS if _TAG_WITHOUT_CALLS in template and "tool_calls" not in template else None,
        call_tags=next((tags for tags in _SPELT_CALLS if tags[0] in template), None),
    )


_JSON = AnswerFormat(tool_tag="<tool_call>")
_THINKING_JSON = AnswerFormat(THINK_TAGS, "<tool_call>")
_DEEPSEEK = AnswerFormat(THINK_TAGS, "<｜tool▁calls▁begin｜>")  # noqa: RUF001 (the bars are the model's)

#: The parsers of Ollama, and how the same is read after a TEMPLATE. None: only with the chat template in the weights.
PARSERS: Mapping[str, AnswerFormat | None] = {
    "cogito": _DEEPSEEK,
    "cohere": None,
    "deepseek3": _DEEPSEEK,
    "functiongemma": AnswerFormat(call_tags=_SPELT_CALLS[1]),
    "gemma4": None,
    "gemma4-no-thinking": None,
    "glimmer": None,
    "glm-4.7": None,
    "glm-ocr": AnswerFormat(THINK_TAGS),
    "harmony": None,
    "laguna": None,
    "lfm2": None,
    "lfm2-thinking": None,
    "ministral": AnswerFormat(("[THINK]", "[/THINK]"), "[TOOL_CALLS]"),
    "nemotron-3-nano": None,
    "nemotron-3.5-nano": None,
    "olmo3": AnswerFormat(call_tags=_SPELT_CALLS[0]),
    "olmo3-think": AnswerFormat(THINK_TAGS),
    "ornith": None,
    "passthrough": AnswerFormat(),
    "poolside-v1": None,
    "qwen3": _JSON,
    "qwen3-coder": None,
    "qwen3-thinking": _THINKING_JSON,
    "qwen3-vl-instruct": _JSON,
    "qwen3-vl-thinking": _THINKING_JSON,
    "qwen3.5": None,
}

#: The renderers of Ollama. None is here: the chat template in the weights makes the same prompts, in the engine.
RENDERERS = frozenset((
    "cogito", "cohere", "deepseek3.1", "functiongemma", "gemma4", "gemma4-large", "gemma4-small", "glimmer", "glm-4.7", "glm-ocr",
    "laguna", "lfm2", "lfm2-thinking", "nemotron-3-nano", "nemotron-3.5-nano", "olmo3", "olmo3-32b-think", "olmo3-think", "olmo3.1",
    "ornith", "poolside-v1", "qwen3-coder", "qwen3-vl-instruct", "qwen3-vl-thinking", "qwen3.5", "qwen3.8",
))  # fmt: skip


def implied_parser(family: str, template: str) -> str:
    """The parser that a model needs though its config names none: a gpt-oss whose TEMPLATE has the marks of harmony."""
    is_harmony = family in ("gptoss", "gpt-oss") and "<|start|>" in template and "<|end|>" in template
    return "harmony" if is_harmony else ""


def prefers_chat_template(renderer: str, parser: str) -> bool:
    """Whether a model's prompts are made by the chat template in its weights, where they hold one, rather than by its TEMPLATE."""
    return bool(renderer) or (bool(parser) and PARSERS.get(parser) is None)


def unserved(renderer: str, parser: str, *, has_chat_template: bool) -> str:
    """Why a model cannot be answered as it asks, as a clause; empty if it can."""
    if has_chat_template or not prefers_chat_template(renderer, parser):
        return ""
    asked = f"the renderer {excerpt(renderer)}" if renderer else f"the parser {excerpt(parser)}"
    return f"it asks for {asked} of Ollama's own, and its weights hold no chat template to be used instead"
