"""Prompts: what is made of a conversation before an engine reads it.

The room's door: a model's own template, read and filled. `template/` is Go's text/template as Ollama uses it, `fit` has a
conversation fit a context. Nothing here knows an engine: what tokens a text has, and what its own chat template makes of
messages, are handed in as callables.
"""

from __future__ import annotations

from dataclasses import dataclass

from ndani.errors import BadRequest
from ndani.prompts.template import Conversation, Template, Turn, parse
from ndani.prompts.template.bounds import OUTPUT
from ndani.types import Message


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """What stands as a model's TEMPLATE: one that was read, or why it cannot be (`error`), or neither where there is none.

    One that cannot be read is an error only for those who need it, and only then is it raised.
    """

    template: Template | None = None
    error: str = ""

    def required(self) -> Template | None:
        """The template, for a request that needs it if there is one. Raises BadRequest when it cannot be read."""
        if self.error:
            raise BadRequest(self.error)
        return self.template

    def mentions(self, name: str) -> bool:
        """Whether it reads a field or variable of this name; one that cannot be read mentions none."""
        return self.template is not None and self.template.mentions(name)

    def capabilities(self) -> set[str]:
        """What it makes a model capable of: any of tools, insert, thinking."""
        return self.template.capabilities() if self.template else set()


def read_template(text: str | None) -> ChatTemplate:
    """Read a TEMPLATE; an empty one is none."""
    try:
        return ChatTemplate(parse(text) if text else None)
    except BadRequest as error:
        return ChatTemplate(error=str(error))


def fill(template: Template, messages: tuple[Message, ...], suffix: str = "", think: bool | None = None) -> str:
    """The prompt that a template makes of messages; with `suffix`, what is wanted stands between the last one and it.

    It may take a second or two. Raises BadRequest.
    """
    if sum(len(message.content) for message in messages) > OUTPUT:
        raise BadRequest(f"the prompt is longer than {OUTPUT:,} characters; shorten it")
    turns = tuple(Turn(m.role, m.content, m.thinking, tool_name=m.tool_name, tool_call_id=m.tool_call_id) for m in messages)
    return template.render(Conversation(turns, prompt=messages[-1].content if suffix else "", suffix=suffix, think=think))
