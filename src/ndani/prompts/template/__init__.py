"""TEMPLATE: Go's text/template as Ollama uses it, from a model's template and a conversation to a prompt.

This module is the package's public interface. The other modules, each of which imports only those before it: `bounds`
(limits), `nodes`, `lex`, `literals`, `parse` (text to tree), `values`, `formats`, `functions`, `evaluate` (tree to text),
`survey` (what can be read off a tree without running it), `conversation` (Ollama's data). Pure: no file, no model, no
event loop. The clock is read only for today's date, if none is given. A template near its limits takes some seconds, so
callers run `render` off the event loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

from ndani.prompts.template import survey
from ndani.prompts.template.bounds import MAX_STEPS, STEPS_PER_TURN, Meter, refuse, shorten
from ndani.prompts.template.conversation import Conversation, Turn, clean, merge, messages, scrub, thinking_values, tool_values
from ndani.prompts.template.evaluate import run
from ndani.prompts.template.functions import FUNCTIONS
from ndani.prompts.template.nodes import Action, CommandNode, Field, NodeList, Pipeline
from ndani.prompts.template.parse import parse_tree
from ndani.prompts.template.values import Table, Value

__all__ = ["Conversation", "Template", "Turn", "parse"]


def parse(text: str) -> Template:
    """Read a template. BadRequest, one sentence with line and column, for everything that Ollama refuses at create."""
    return Template(text, parse_tree(text, FUNCTIONS))


class Template:
    """A template that has been read. Immutable; it may be rendered many times, by several threads at once."""

    def __init__(self, text: str, bodies: Mapping[str, NodeList]) -> None:
        self.text = text
        named = [survey.names(body) for body in bodies.values()]
        for body in bodies.values():
            for call in survey.calls_without_value(body):
                raise refuse(text, call.pos, f"the template {shorten(call.name)} is called without a value; end the call with a dot")
        self._names = frozenset().union(*named)
        root = bodies[""]
        if not self._names & {"messages", "response"}:
            root = (*root, _response(len(text)))
            self._names |= {"response"}
        self._bodies = {**bodies, "": root}
        self._root = root

    def mentions(self, name: str) -> bool:
        """Whether a field or variable of this name is read anywhere, in any spelling of its case: `mentions("Messages")`."""
        return name.lower() in self._names

    def thinking_tags(self) -> tuple[str, str]:
        """The texts that stand before and after a turn's thinking; empty where the template shows none."""
        return survey.thinking_tags(self._root)

    def tool_tag(self) -> str:
        """The text that a call of a tool begins with; `{` where the template shows none: then a call is a JSON object."""
        return survey.tool_tag(self._root)

    def answer_marks(self) -> tuple[str, ...]:
        """The texts around thinking and in tool calls. A model may have control tokens for them, which an engine leaves out unasked."""
        return tuple(dict.fromkeys([*(tag for tag in self.thinking_tags() if tag), *survey.call_marks(self._root)]))

    def capabilities(self) -> set[str]:
        """What the template makes a model capable of: any of tools, insert, thinking."""
        capabilities = {"tools"} if self.mentions("tools") else set()
        if self.mentions("suffix"):
            capabilities.add("insert")
        if all(self.thinking_tags()):
            capabilities.add("thinking")
        return capabilities

    def render(self, conversation: Conversation, today: date | None = None) -> str:
        """The prompt for a conversation, as valid Unicode. `today` is what currentDate says (None: the day it is).

        Raises BadRequest, one sentence with line and column, when the template cannot be run on it or goes too far.
        """
        day = today or date.today()
        meter = Meter(MAX_STEPS + STEPS_PER_TURN * len(conversation.turns))
        think = thinking_values(conversation.think)

        def run_body(body: NodeList, values: dict[str, Value]) -> str:
            return run(self.text, self._bodies, body, Table({**values, **think}), meter, day)

        if conversation.prompt and conversation.suffix:
            insert_values: dict[str, Value] = {"Prompt": scrub(conversation.prompt), "Suffix": scrub(conversation.suffix), "Response": ""}
            return clean(run_body(self._root, insert_values))
        system, turns = merge(conversation.turns)
        if self.mentions("messages"):
            tools = tool_values(conversation.tools)
            message_values: dict[str, Value] = {"System": system, "Messages": messages(turns), "Tools": tools, "Response": ""}
            return clean(run_body(self._root, message_values))
        prompts: list[str] = []
        exchange: dict[str, Value] = {"System": "", "Prompt": "", "Response": ""}

        def flush(body: NodeList) -> None:
            prompts.append(run_body(body, exchange))
            exchange.update(System="", Prompt="", Response="")

        for turn in turns:
            if turn.role == "system":
                if exchange["Prompt"] or exchange["Response"]:
                    flush(self._root)
                exchange["System"] = turn.content
            elif turn.role == "user":
                if exchange["Response"]:
                    flush(self._root)
                exchange["Prompt"] = turn.content
            elif turn.role == "assistant":
                exchange["Response"] = turn.content
        flush(survey.cut_after_response(self._root))
        return clean("".join(prompts))


def _response(pos: int) -> Action:
    """`{{ .Response }}`, which a template that mentions neither it nor `.Messages` is given at its end."""
    command = CommandNode(pos, (Field(pos, ("Response",)),))
    return Action(pos, Pipeline(pos, (), False, (command,)))
