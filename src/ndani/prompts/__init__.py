"""Prompts: how a conversation becomes a prompt for an engine.

This file parses and renders a model's own TEMPLATE. `template/` is Go's text/template as Ollama uses it, `fit` makes a
conversation fit a context. Nothing here depends on an engine: callers pass functions that tokenize a text and that apply the
engine's chat template.
"""

from __future__ import annotations

from dataclasses import dataclass

from ndani.errors import BadRequest
from ndani.prompts.template import Conversation, Template, Turn, parse
from ndani.prompts.template.bounds import MAX_OUTPUT
from ndani.types import Message, Tool


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A model's TEMPLATE: parsed, or the reason why it cannot be (`error`), or neither if the model has none.

    An invalid template is an error only for requests that need it, so it is raised only then.
    """

    template: Template | None = None
    error: str = ""

    def required(self) -> Template | None:
        """The template, or None if the model has none. Raises BadRequest when it is invalid."""
        if self.error:
            raise BadRequest(self.error)
        return self.template

    def mentions(self, name: str) -> bool:
        """Whether the template uses a field or variable of this name; False for an invalid one."""
        return self.template is not None and self.template.mentions(name)

    def capabilities(self) -> set[str]:
        """The capabilities that it gives a model: any of tools, insert, thinking."""
        return self.template.capabilities() if self.template else set()


def read_template(text: str | None) -> ChatTemplate:
    """Parse a TEMPLATE; an empty one counts as none."""
    try:
        return ChatTemplate(parse(text) if text else None)
    except BadRequest as error:
        return ChatTemplate(error=str(error))


def fill(
    template: Template,
    messages: tuple[Message, ...],
    suffix: str = "",
    think: bool | str | None = None,
    tools: tuple[Tool, ...] = (),
) -> str:
    """Render messages with a template; with `suffix`, the model fills in between the last message and the suffix.

    `think` is as in Conversation; a template sees `tools` as the request spelt them. It may take a second or two. Raises BadRequest.
    """
    if sum(len(message.content) + len(message.thinking) for message in messages) > MAX_OUTPUT:
        raise BadRequest(f"the prompt is longer than {MAX_OUTPUT:,} characters; shorten it")
    turns = tuple(Turn(m.role, m.content, m.thinking, m.images, m.tool_calls, m.tool_name, m.tool_call_id) for m in messages)
    definitions = [tool.definition for tool in tools] or None
    prompt = messages[-1].content if suffix else ""
    return template.render(Conversation(turns, definitions, prompt=prompt, suffix=suffix, think=think))
