"""What can be read off a template's tree without running it: the names it mentions, its tags, what comes after .Response.

All are Ollama's own rules, oddities included, because a model's capabilities and its prompt follow from them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from ndani.prompts.template.nodes import (
    Action,
    Branch,
    Call,
    CommandNode,
    Field,
    Kind,
    Node,
    NodeList,
    Operand,
    Pipeline,
    TextNode,
    Variable,
)

_MARK = re.compile(r"<[^<>\s{}\"]{1,64}>|\[/?[A-Z_]{2,64}\]")
_MAX_MARKS = 32


def names(body: NodeList) -> frozenset[str]:
    """The names of fields and variables that a body mentions, in lower case. The parentheses in `(…).Field` are not searched."""
    mentioned: set[str] = set()
    pending: list[Node | Pipeline] = list(body)
    while pending:
        node = pending.pop()
        match node:
            case Pipeline(_, _, _, commands):
                for command in commands:
                    for arg in command.args:
                        if isinstance(arg, Field | Variable):
                            mentioned.update(name.lower() for name in arg.names)
                        elif isinstance(arg, Pipeline):
                            pending.append(arg)
            case Branch():
                pending += [node.pipe, *node.body, *(node.else_body or ())]
            case Action(_, pipe):
                pending.append(pipe)
            case Call(_, _, given):
                pending += [given] if given else []
            case _:
                pass
    return frozenset(mentioned)


def calls_without_value(body: NodeList) -> Iterator[Call]:
    """Every `{{ template "x" }}` without a value, which Ollama refuses."""
    pending: list[Node] = list(body)
    while pending:
        node = pending.pop()
        if isinstance(node, Branch):
            pending += [*node.body, *(node.else_body or ())]
        elif isinstance(node, Call) and node.pipe is None:
            yield node


def _fields(pipe: Pipeline) -> Iterator[Field]:
    pending: list[Pipeline] = [pipe]
    while pending:
        for command in pending.pop().commands:
            for arg in command.args:
                if isinstance(arg, Field):
                    yield arg
                elif isinstance(arg, Pipeline):
                    pending.append(arg)


def thinking_tags(body: NodeList) -> tuple[str, str]:
    """The texts around `.Thinking`, where a range over `.Messages` prints it; empty where it does not.

    They are the first and the last node of the innermost list around it, where those are texts; the last find wins.
    """
    tags = ["", ""]

    def visit(pipes: Iterable[Pipeline], siblings: NodeList, in_messages: bool) -> None:
        if in_messages and any(field.names[0] == "Thinking" for pipe in pipes for field in _fields(pipe)):
            for index, node in enumerate((siblings[0], siblings[-1])):
                if isinstance(node, TextNode):
                    tags[index] = node.text.strip()

    def walk(nodes: NodeList, in_messages: bool) -> None:
        for node in nodes:
            match node:
                case Action(_, pipe):
                    visit([pipe], nodes, in_messages)
                case Call(_, _, pipe) if pipe:
                    visit([pipe], nodes, in_messages)
                case Branch():
                    body_in_messages = in_messages
                    if node.kind is Kind.RANGE:
                        body_in_messages = any(field.names[0] == "Messages" for field in _fields(node.pipe))
                    visit([node.pipe], nodes, body_in_messages)
                    walk(node.body, body_in_messages)
                    walk(node.else_body or (), body_in_messages)
                case _:
                    pass

    walk(body, False)
    return tags[0], tags[1]


def tool_tag(body: NodeList) -> str:
    """The text that stands before a turn's tool calls, up to a first `{`; `{` where there is none.

    It is the first text under the first `if` on `.ToolCalls`, if no value is printed before it.
    """
    branch = _tool_calls_branch(body)
    text = _first_text(branch.body) if branch else ""
    return text.replace("\r\n", "\n").partition("{")[0].strip() or "{"


def call_marks(body: NodeList) -> tuple[str, ...]:
    """The texts in `<…>` or `[…]` that a turn's tool calls are printed with: a model may have tokens of their own for them."""
    branch = _tool_calls_branch(body)
    texts: list[str] = []
    pending: list[Node] = [*branch.body] if branch else []
    while pending:
        node = pending.pop(0)
        if isinstance(node, TextNode):
            texts += _MARK.findall(node.text)
        elif isinstance(node, Branch):
            pending = [*node.body, *(node.else_body or ()), *pending]
    return tuple(dict.fromkeys(texts))[:_MAX_MARKS]


def _tool_calls_branch(nodes: NodeList) -> Branch | None:
    for node in nodes:
        if isinstance(node, Branch):
            if node.kind is Kind.IF and any(
                isinstance(arg, Field) and "ToolCalls" in arg.names for command in node.pipe.commands for arg in command.args
            ):
                return node
            if found := _tool_calls_branch(node.body) or _tool_calls_branch(node.else_body or ()):
                return found
    return None


def _first_text(nodes: NodeList) -> str:
    for node in nodes:
        match node:
            case TextNode(_, text) if text.strip():
                return text
            case Branch():
                return _first_text(node.body) or _first_text(node.else_body or ())
            case Action():
                return ""
            case _:
                pass
    return ""


class _Cut:
    """Copies a body up to the first `.Response` in it; a condition that mentions it does not count."""

    response_seen = False

    def body(self, nodes: NodeList) -> NodeList:
        kept: list[Node] = []
        for node in nodes:
            copied = None if self.response_seen else self.node(node)
            if copied is not None:
                kept.append(copied)
        return tuple(kept)

    def node(self, node: Node) -> Node | None:
        if isinstance(node, Branch):
            body = self.body(node.body)
            return replace(node, body=body, else_body=None if node.else_body is None else self.body(node.else_body))
        if isinstance(node, Action):
            pipe = self.pipe(node.pipe)
            return None if pipe is None else replace(node, pipe=pipe)
        return node

    def pipe(self, pipe: Pipeline) -> Pipeline | None:
        commands: list[CommandNode] = []
        for command in pipe.commands:
            args = tuple(arg for arg in map(self.operand, command.args) if arg is not None)
            if not args:
                return None
            commands.append(replace(command, args=args))
        return replace(pipe, commands=tuple(commands))

    def operand(self, arg: Operand) -> Operand | None:
        if isinstance(arg, Field) and "Response" in arg.names:
            self.response_seen = True
            return arg
        if self.response_seen:
            return None
        return self.pipe(arg) if isinstance(arg, Pipeline) else arg


def cut_after_response(body: NodeList) -> NodeList:
    """The body without what follows its first `.Response`, as the last turn of a legacy template is run."""
    return _Cut().body(body)
