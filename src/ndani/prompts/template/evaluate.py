"""Running a template: a walk over its tree with a dot, a stack of variables and a meter. Knows nothing of conversations.

The rules are those of Go's text/template/exec, on the values of `values.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date
from enum import Enum

from ndani.prompts.template.bounds import MAX_DEPTH, Meter, TemplateError, refuse, shorten
from ndani.prompts.template.formats import PLAIN, Printer
from ndani.prompts.template.functions import FUNCTIONS, CallContext
from ndani.prompts.template.nodes import (
    Action,
    Branch,
    Break,
    Call,
    Chain,
    CommandNode,
    Continue,
    Dot,
    Field,
    Kind,
    Literal,
    Nil,
    NodeList,
    Operand,
    Pipeline,
    TextNode,
    Variable,
    Word,
)
from ndani.prompts.template.values import NO_VALUE, Items, NoValue, Record, Table, Value, is_true, kind_of, string_method_text


class _Exit(Enum):
    """How a body ended, where not at its end."""

    BREAK = 0
    CONTINUE = 1


class _Absent(Enum):
    ABSENT = 0


_ABSENT = _Absent.ABSENT
_Final = Value | _Absent


def run(source: str, bodies: Mapping[str, NodeList], body: NodeList, data: Value, meter: Meter, today: date) -> str:
    """The text that a body makes of its data. `bodies` are the templates that it may call, `source` is where errors point.

    Raises BadRequest with line and column when the template is wrong, or goes beyond its bounds.
    """
    walk = _Evaluation(bodies, data, CallContext(meter, today))
    try:
        walk.body(data, body)
    except TemplateError as wrong:
        raise refuse(source, walk.pos, str(wrong)) from None
    except RecursionError:  # a backstop: `MAX_DEPTH` is meant to come first
        raise refuse(source, walk.pos, "it is nested too deep") from None
    return "".join(walk.out)


class _Evaluation:
    def __init__(self, bodies: Mapping[str, NodeList], data: Value, setting: CallContext) -> None:
        self.bodies = bodies
        self.setting = setting
        self.meter = setting.meter
        self.out: list[str] = []
        self.names: list[str] = ["$"]
        self.values: list[Value] = [data]
        self.depth = 0
        self.pos = 0

    # Bodies.

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise TemplateError(f"it goes more than {MAX_DEPTH} levels deep; a template in it calls itself without end")

    def body(self, dot: Value, nodes: NodeList) -> _Exit | None:
        self.deeper()
        for node in nodes:
            self.meter.step()
            self.pos = node.pos
            exit_kind: _Exit | None = None
            match node:
                case TextNode(_, text):
                    self.write(text)
                case Action(_, pipe):
                    value = self.pipe(dot, pipe)
                    if not pipe.names:
                        self.pos = node.pos
                        self.show(value)
                case Branch():
                    mark = len(self.names)
                    exit_kind = self.range(dot, node) if node.kind is Kind.RANGE else self.choose(dot, node)
                    del self.names[mark:], self.values[mark:]
                case Call():
                    self.call(dot, node)
                case Break():
                    exit_kind = _Exit.BREAK
                case Continue():
                    exit_kind = _Exit.CONTINUE
            if exit_kind is not None:
                self.depth -= 1
                return exit_kind
        self.depth -= 1
        return None

    def write(self, text: str) -> None:
        self.meter.write(len(text))
        self.out.append(text)

    def show(self, value: Value) -> None:
        """What an action prints: a value as fmt.Print has it, `<no value>` for none."""
        if isinstance(value, str):
            self.write(value)
        elif value is None or value is NO_VALUE:
            self.write("<no value>")
        else:
            if isinstance(value, Record) and value.pointer:
                value = Record(value.kind, value.fields, value.keys, value.prints)
            printer = Printer(self.meter, prompt=True)
            printer.show(value, "v", PLAIN)
            self.out.append(printer.text())

    def choose(self, dot: Value, node: Branch) -> _Exit | None:
        """if and with. A chain of else-ifs is walked here, not down the stack."""
        while True:
            value = self.pipe(dot, node.pipe)
            if is_true(value):
                return self.body(value if node.kind is Kind.WITH else dot, node.body)
            if node.other is None:
                return None
            if len(node.other) != 1 or not isinstance(node.other[0], Branch) or node.other[0].kind is not node.kind:
                return self.body(dot, node.other)
            node = node.other[0]
            self.meter.step()
            self.pos = node.pos

    def range(self, dot: Value, node: Branch) -> _Exit | None:
        names, assign = node.pipe.names, node.pipe.assign
        value = self.pipe(dot, node.pipe)
        mark = len(self.names)
        ran = False
        for key, item in self.members(value, len(names)):
            ran = True
            self.meter.step()
            if assign:
                for name, given in zip(names, (key, item) if len(names) > 1 else (item,), strict=True):
                    self.assign(name, given)
            elif names:
                self.values[mark - 1] = item
                if len(names) > 1:
                    self.values[mark - 2] = key
            exit_kind = self.body(item, node.body)
            del self.names[mark:], self.values[mark:]
            if exit_kind is _Exit.BREAK:
                break
        if node.other is None or ran:
            return None
        exit_kind = self.body(dot, node.other)
        return None if exit_kind is _Exit.BREAK else exit_kind  # Go: a break there ends this range, a continue is the outer one's

    def members(self, value: Value, names: int) -> Iterator[tuple[Value, Value]]:
        match value:
            case None | NoValue():
                return
            case bool() | float() | str() | Record():
                raise TemplateError(f"range cannot go over {kind_of(value)}")
            case int():
                if names > 1:
                    raise TemplateError("a range over a number has one variable")
                for number in range(value):
                    yield NO_VALUE, number
            case bytes():
                yield from enumerate(value)
            case Items():
                yield from enumerate(value.values)
            case Table():
                self.meter.step(len(value.entries))  # for sorting them
                for key in sorted(value.entries):
                    yield key, value.entries[key]

    def call(self, dot: Value, node: Call) -> None:
        body = self.bodies.get(node.name)
        if body is None:
            raise TemplateError(f"the template {shorten(node.name)} is not defined")
        given = NO_VALUE if node.pipe is None else self.pipe(dot, node.pipe)
        names, values = self.names, self.values
        self.names, self.values = ["$"], [given]
        self.body(given, body)
        self.names, self.values = names, values

    # Variables.

    def place(self, name: str) -> int:
        """Where the variable of this name that was declared last lies."""
        for place in range(len(self.names) - 1, -1, -1):
            if self.names[place] == name:
                self.meter.step((len(self.names) - place) // 16)
                return place
        raise TemplateError(f"the variable {name[:40]} is not defined here")

    def assign(self, name: str, value: Value) -> None:
        self.values[self.place(name)] = value

    def variable(self, name: str) -> Value:
        return self.values[self.place(name)]

    # Values.

    def pipe(self, dot: Value, pipe: Pipeline) -> Value:
        self.deeper()
        value: _Final = _ABSENT
        for command in pipe.commands:
            value = self.command(dot, command, value)
            if value is None:
                value = NO_VALUE  # Go: what is inside a nil interface is no value
        self.depth -= 1
        assert not isinstance(value, _Absent)  # the parser refuses an empty pipe
        for name in pipe.names:
            if pipe.assign:
                self.assign(name, value)
            else:
                self.names.append(name)
                self.values.append(value)
        return value

    def command(self, dot: Value, command: CommandNode, final: _Final) -> Value:
        self.meter.step()
        first = command.args[0]
        self.pos = first.pos
        if isinstance(first, Word):
            return self.function(dot, first, command.args[1:], final)
        if len(command.args) > 1 or final is not _ABSENT:
            raise TemplateError("only a function takes arguments")
        if isinstance(first, Nil):
            raise TemplateError("nil is not a command")
        return self.operand(dot, first)

    def operand(self, dot: Value, node: Operand) -> Value:
        """The value of an operand that stands alone, or as an argument."""
        self.pos = node.pos
        match node:
            case Literal(_, value):
                return value
            case Dot():
                return dot
            case Field(_, names):
                return self.chain(dot, names)
            case Variable(_, names):
                return self.chain(self.variable(names[0]), names[1:])
            case Chain(_, head, names):
                if isinstance(head, Nil):
                    raise TemplateError("nil has no fields")
                receiver = self.operand(dot, head)
                self.pos = node.pos
                return self.chain(receiver, names)
            case Pipeline():
                return self.pipe(dot, node)
            case Word():
                return self.function(dot, node, (), _ABSENT)
            case Nil():
                return NO_VALUE

    def chain(self, value: Value, names: tuple[str, ...]) -> Value:
        for name in names:
            value = self.field(value, name)
        return value

    def field(self, value: Value, name: str) -> Value:
        if value is NO_VALUE:
            return NO_VALUE
        if value is None:
            raise TemplateError(f"nil has no field {name[:40]}")
        if name == "String":
            text = string_method_text(value, self.meter)
            if text is not None:
                return text
        if isinstance(value, Table):
            return value.entries.get(name, value.zero)
        if isinstance(value, Record):
            if name in value.fields:
                return value.fields[name]
            if name in value.methods:
                return value.methods[name]()
        raise TemplateError(f"{kind_of(value)} has no field {name[:40]}")

    # Functions.

    def function(self, dot: Value, word: Word, args: tuple[Operand, ...], final: _Final) -> Value:
        name = word.name
        function = FUNCTIONS[name]
        count = len(args) + (final is not _ABSENT)
        if count < len(function.fixed) or (function.rest is None and count > len(function.fixed)):
            few = "at least " if function.rest else ""
            raise TemplateError(f"{name} takes {few}{len(function.fixed)} argument{'s' * (len(function.fixed) != 1)}, not {count}")
        if name in ("and", "or"):
            return self.logic(dot, name == "or", args, final)
        given: list[Value] = []
        for place, node in enumerate(args):
            kind = function.fixed[place] if place < len(function.fixed) else function.rest
            self.meter.step()
            given.append(self.checked(self.operand(dot, node), kind, node))
        if not isinstance(final, _Absent):
            kind = function.fixed[len(args)] if len(args) < len(function.fixed) else function.rest
            given.append(self.checked(final, kind, None))
        self.pos = word.pos
        return function.call(self.setting, given)

    def checked(self, value: Value, kind: str | None, node: Operand | None) -> Value:
        if kind == "string" and not isinstance(value, str):
            self.pos = node.pos if node else self.pos
            raise TemplateError(f"a text is expected here, not {kind_of(value)}")
        return value

    def logic(self, dot: Value, until: bool, args: tuple[Operand, ...], final: _Final) -> Value:
        """and, or: the first argument that decides, or the last; those behind it are never evaluated."""
        value: Value = NO_VALUE
        for node in args:
            self.meter.step()
            value = self.operand(dot, node)
            if is_true(value) == until:
                return value
        return value if isinstance(final, _Absent) else final
