"""The syntax tree of a parsed template. Every node has its position in the text; none has behaviour.

The shapes are those of Go's text/template/parse, because two rules of Ollama are rules about that tree: which names
count as mentioned, and what is cut after `.Response` (both in `survey.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Literal:
    pos: int
    value: bool | int | float | str


@dataclass(frozen=True, slots=True)
class Nil:
    pos: int


@dataclass(frozen=True, slots=True)
class Dot:
    pos: int


@dataclass(frozen=True, slots=True)
class Field:
    """`.A.B`: names read from the dot."""

    pos: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """`$x.A.B`: the first name is the variable's, with its `$`."""

    pos: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Identifier:
    """The name of a function."""

    pos: int
    name: str


@dataclass(frozen=True, slots=True)
class Chain:
    """`(…).A.B`: names read from the value of the head."""

    pos: int
    head: Operand
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CommandNode:
    """An operand, or a function with its arguments."""

    pos: int
    args: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Commands, each given the value of the one before; `names` are the variables that take the last one's value."""

    pos: int
    names: tuple[str, ...]
    assign: bool  # `=` rather than `:=`
    commands: tuple[CommandNode, ...]


Operand = Literal | Nil | Dot | Field | Variable | Identifier | Chain | Pipeline


@dataclass(frozen=True, slots=True)
class TextNode:
    pos: int
    text: str


@dataclass(frozen=True, slots=True)
class Action:
    pos: int
    pipe: Pipeline


class Kind(Enum):
    IF = "if"
    WITH = "with"
    RANGE = "range"


@dataclass(frozen=True, slots=True)
class Branch:
    """if, with and range: `body` runs if the pipe's value is true, `else_body` (if there is one) otherwise."""

    pos: int
    kind: Kind
    pipe: Pipeline
    body: NodeList
    else_body: NodeList | None


@dataclass(frozen=True, slots=True)
class Call:
    """`{{ template "name" pipe }}`, and a block where it stands."""

    pos: int
    name: str
    pipe: Pipeline | None


@dataclass(frozen=True, slots=True)
class Break:
    pos: int


@dataclass(frozen=True, slots=True)
class Continue:
    pos: int


Node = TextNode | Action | Branch | Call | Break | Continue
NodeList = tuple[Node, ...]
