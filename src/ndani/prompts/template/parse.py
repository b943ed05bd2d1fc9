"""From tokens to a tree: the grammar of Go's text/template. Every refusal is one sentence with line and column.

What only Ollama refuses (a template called without a value) is refused in the package's `__init__`, not here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from ndani.errors import BadRequest
from ndani.prompts.template.bounds import MAX_NESTING, MAX_VARIABLES, TemplateError, refuse, shorten
from ndani.prompts.template.lex import Token, TokenKind, lex
from ndani.prompts.template.literals import read_character, read_number, read_text
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
    Identifier,
    Kind,
    Literal,
    Nil,
    Node,
    NodeList,
    Operand,
    Pipeline,
    TextNode,
    Variable,
)

_VALUES = frozenset(
    (
        TokenKind.BOOL,
        TokenKind.CHARACTER,
        TokenKind.DOT,
        TokenKind.FIELD,
        TokenKind.IDENTIFIER,
        TokenKind.NUMBER,
        TokenKind.STRING,
        TokenKind.VARIABLE,
        TokenKind.OPEN,
        TokenKind.KEYWORD,
    )
)
_TOKEN_NAMES = {TokenKind.END: "the end of the template", TokenKind.RIGHT: "}}", TokenKind.LEFT: "{{", TokenKind.SPACE: "a space"}


def parse_tree(source: str, functions: Collection[str]) -> dict[str, NodeList]:
    """The bodies of a template by name: its own under the empty name, and one for each define and block.

    `functions` are the names that may be called. Raises BadRequest with line and column.
    """
    parser = _Parser(source, lex(source), functions)
    parser.add("", parser.top(), 0)
    return parser.bodies


@dataclass(slots=True)
class _Scope:
    """The scope of one definition: its visible variables, and how many ranges enclose the current node."""

    names: list[str] = field(default_factory=lambda: ["$"])
    ranges: int = 0


class _Parser:
    def __init__(self, source: str, tokens: list[Token], functions: Collection[str]) -> None:
        self.source = source
        self.tokens = tokens
        self.functions = functions
        self.index = 0
        self.nesting = 0
        self.scope = _Scope()
        self.bodies: dict[str, NodeList] = {}

    # Tokens.

    def error(self, token: Token | int, what: str) -> BadRequest:
        return refuse(self.source, token if isinstance(token, int) else token.pos, what)

    def unexpected(self, token: Token, where: str) -> BadRequest:
        return self.error(token, f"unexpected {_TOKEN_NAMES.get(token.kind) or shorten(token.text)} in {where}")

    def next(self) -> Token:
        token = self.tokens[self.index]
        self.index = min(self.index + 1, len(self.tokens) - 1)
        return token

    def skip_space(self) -> Token:
        """The next token that is no space, not yet taken."""
        while self.tokens[self.index].kind is TokenKind.SPACE:
            self.index += 1
        return self.tokens[self.index]

    def take(self) -> Token:
        self.skip_space()
        return self.next()

    def expect(self, kind: TokenKind, where: str) -> Token:
        token = self.take()
        if token.kind is not kind:
            raise self.unexpected(token, where)
        return token

    def keyword(self, *words: str) -> bool:
        token = self.skip_space()
        return token.kind is TokenKind.KEYWORD and token.text in words

    def enter(self, token: Token) -> None:
        self.nesting += 1
        if self.nesting > MAX_NESTING:
            raise self.error(token, f"blocks and parentheses are nested more than {MAX_NESTING} deep")

    # Bodies.

    def top(self) -> NodeList:
        nodes: list[Node] = []
        while self.tokens[self.index].kind is not TokenKind.END:
            start = self.index
            if self.tokens[start].kind is TokenKind.LEFT:
                self.next()
                if self.keyword("define"):
                    self.definition(self.take())
                    continue
                if self.keyword("end", "else"):
                    raise self.error(self.tokens[self.index], f"there is nothing for {{{{ {self.tokens[self.index].text} }}}} to belong to")
                self.index = start
            nodes.append(self.node())
        return tuple(nodes)

    def body(self, opened: Token) -> tuple[NodeList, Token]:
        """Nodes up to an else or an end, and that keyword (taken; its own delimiter is not)."""
        nodes: list[Node] = []
        while True:
            token = self.skip_space()
            if token.kind is TokenKind.END:
                raise self.error(opened, f"{{{{ {opened.text} }}}} has no {{{{ end }}}}")
            start = self.index
            if token.kind is TokenKind.LEFT:
                self.next()
                if self.keyword("end", "else"):
                    return tuple(nodes), self.take()
                self.index = start
            nodes.append(self.node())

    def node(self) -> Node:
        token = self.take()
        if token.kind is TokenKind.TEXT:
            return TextNode(token.pos, token.text)
        if token.kind is not TokenKind.LEFT:
            raise self.unexpected(token, "the template")
        first = self.skip_space()
        if first.kind is TokenKind.KEYWORD and first.text != "nil":
            return self.control(self.take())
        return Action(first.pos, self.pipe("an action", TokenKind.RIGHT))

    def control(self, token: Token) -> Node:
        match token.text:
            case "if" | "with" | "range":
                return self.branch(token)
            case "block":
                return self.block(token)
            case "template":
                return self.call(token)
            case "break" | "continue":
                self.expect(TokenKind.RIGHT, f"{{{{ {token.text} }}}}")
                if not self.scope.ranges:
                    raise self.error(token, f"{{{{ {token.text} }}}} stands outside of any {{{{ range }}}}")
                return Break(token.pos) if token.text == "break" else Continue(token.pos)
            case _:
                raise self.error(token, f"{{{{ {token.text} }}}} cannot stand here")

    def branch(self, token: Token) -> Branch:
        """if, with, range, with all their else: a chain of else-ifs is read in a loop and folded from its end."""
        outer_count, nesting, kind = len(self.scope.names), self.nesting, Kind(token.text)
        chain: list[tuple[Token, Pipeline, NodeList]] = []
        else_body: NodeList | None = None
        opened = token
        while True:
            self.enter(opened)
            pipe = self.pipe(opened.text, TokenKind.RIGHT)
            self.scope.ranges += kind is Kind.RANGE
            body, closed = self.body(opened)
            self.scope.ranges -= kind is Kind.RANGE
            chain.append((opened, pipe, body))
            if closed.text == "else" and kind is not Kind.RANGE and self.keyword(kind.value):
                opened = self.take()
                continue
            self.expect(TokenKind.RIGHT, f"{{{{ {closed.text} }}}}")
            if closed.text == "else":
                else_body, closed = self.body(closed)
                if closed.text != "end":
                    raise self.error(closed, "there is already an {{ else }}; expected {{ end }}")
                self.expect(TokenKind.RIGHT, "{{ end }}")
            break
        del self.scope.names[outer_count:]
        self.nesting = nesting
        node = Branch(chain[-1][0].pos, kind, chain[-1][1], chain[-1][2], else_body)
        for opened, pipe, body in reversed(chain[:-1]):
            node = Branch(opened.pos, kind, pipe, body, (node,))
        return node

    # Definitions.

    def name(self, where: str) -> tuple[Token, str]:
        token = self.expect(TokenKind.STRING, where)
        return token, self.literal(token)

    def isolated_body(self, opened: Token) -> NodeList:
        """A body that cannot see the variables outside it."""
        outer, self.scope = self.scope, _Scope()
        self.enter(opened)
        body, closed = self.body(opened)
        if closed.text != "end":
            raise self.error(closed, f"{{{{ {opened.text} }}}} has no {{{{ else }}}}")
        self.expect(TokenKind.RIGHT, "{{ end }}")
        self.nesting -= 1
        self.scope = outer
        return body

    def definition(self, token: Token) -> None:
        name_token, name = self.name("{{ define }}")
        self.expect(TokenKind.RIGHT, "{{ define }}")
        self.add(name, self.isolated_body(token), name_token.pos)

    def block(self, token: Token) -> Call:
        name_token, name = self.name("{{ block }}")
        pipe = self.pipe("{{ block }}", TokenKind.RIGHT)
        self.add(name, self.isolated_body(token), name_token.pos)
        return Call(name_token.pos, name, pipe)

    def call(self, token: Token) -> Call:
        name_token, name = self.name("{{ template }}")
        if self.skip_space().kind is TokenKind.RIGHT:
            self.next()
            return Call(name_token.pos, name, None)
        return Call(name_token.pos, name, self.pipe("{{ template }}", TokenKind.RIGHT))

    def add(self, name: str, body: NodeList, pos: int) -> None:
        """Any definition replaces an empty one; two that are not empty are an error."""
        if name in self.bodies and not _is_empty(self.bodies[name]):
            if not _is_empty(body):
                raise self.error(pos, f"the template {shorten(name)} is defined twice")
            return
        self.bodies[name] = body

    # Pipelines.

    def pipe(self, where: str, end: TokenKind) -> Pipeline:
        first = self.skip_space()
        names, assign = self.declarations(where)
        commands: list[CommandNode] = []
        while True:
            token = self.skip_space()
            if token.kind is end:
                self.next()
                break
            if token.kind not in _VALUES or (token.kind is TokenKind.KEYWORD and token.text != "nil"):
                raise self.unexpected(token, where)
            commands.append(self.command())
        if not commands:
            raise self.error(first, f"a value is missing in {where}")
        for command in commands[1:]:
            if isinstance(command.args[0], Literal | Dot | Nil):
                raise self.error(command.pos, "only a function can take the value of a pipeline")
        return Pipeline(first.pos, tuple(names), assign, tuple(commands))

    def declarations(self, where: str) -> tuple[list[str], bool]:
        """The variables before := or =, and whether it is =. Consumes no token if there are none."""
        names: list[str] = []
        while self.skip_space().kind is TokenKind.VARIABLE:
            start = self.index
            variable = self.next()
            token = self.skip_space()
            if token.kind in (TokenKind.ASSIGN, TokenKind.DECLARE):
                self.next()
                names.append(variable.text)
                self.declare(variable)
                return names, token.kind is TokenKind.ASSIGN
            if token.kind is not TokenKind.OTHER or token.text != ",":
                self.index = start
                break
            self.next()
            names.append(variable.text)
            self.declare(variable)
            if where != "range" or len(names) > 1:
                raise self.error(variable, f"too many variables are declared in {where}")
            if self.skip_space().kind not in (TokenKind.VARIABLE, TokenKind.RIGHT, TokenKind.CLOSE):
                raise self.error(token, "a range declares variables only, as in {{ range $i, $x := .Messages }}")
        return names, False

    def declare(self, variable: Token) -> None:
        if len(self.scope.names) > MAX_VARIABLES:
            raise self.error(variable, f"more than {MAX_VARIABLES:,} variables are declared")
        self.scope.names.append(variable.text)

    def command(self) -> CommandNode:
        pos = self.skip_space().pos
        args: list[Operand] = []
        while True:
            operand = self.operand()
            if operand is not None:
                args.append(operand)
            token = self.next()
            if token.kind is TokenKind.SPACE:
                continue
            if token.kind in (TokenKind.RIGHT, TokenKind.CLOSE):
                self.index -= 1
            elif token.kind is not TokenKind.PIPE:
                raise self.unexpected(token, "a command")
            break
        if not args:
            raise self.error(pos, "a command is empty")
        return CommandNode(pos, tuple(args))

    def operand(self) -> Operand | None:
        term = self.term()
        if term is None:
            return None
        name_token = self.tokens[self.index]
        names: list[str] = []
        while self.tokens[self.index].kind is TokenKind.FIELD:
            names.append(self.next().text[1:])
        if not names:
            return term
        match term:
            case Field(pos, before):
                return Field(pos, (*before, *names))
            case Variable(pos, before):
                return Variable(pos, (*before, *names))
            case Literal() | Nil() | Dot():
                raise self.error(name_token, "a constant has no fields")
            case _:
                return Chain(name_token.pos, term, tuple(names))

    def term(self) -> Operand | None:
        token = self.skip_space()
        if token.kind not in _VALUES or (token.kind is TokenKind.KEYWORD and token.text != "nil"):
            return None
        self.next()
        match token.kind:
            case TokenKind.KEYWORD:
                return Nil(token.pos)
            case TokenKind.DOT:
                return Dot(token.pos)
            case TokenKind.FIELD:
                return Field(token.pos, (token.text[1:],))
            case TokenKind.VARIABLE:
                if token.text not in self.scope.names:
                    raise self.error(token, f"the variable {token.text[:40]} is not defined")
                return Variable(token.pos, (token.text,))
            case TokenKind.IDENTIFIER:
                if token.text not in self.functions:
                    raise self.error(token, f"there is no function {shorten(token.text)}")
                return Identifier(token.pos, token.text)
            case TokenKind.BOOL:
                return Literal(token.pos, token.text == "true")
            case TokenKind.OPEN:
                self.enter(token)
                pipe = self.pipe("parentheses", TokenKind.CLOSE)
                self.nesting -= 1
                return pipe
            case TokenKind.STRING:
                return Literal(token.pos, self.literal(token))
            case _:
                return Literal(token.pos, self.number(token))

    def literal(self, token: Token) -> str:
        try:
            return read_text(token.text)
        except TemplateError as error:
            raise self.error(token, str(error)) from None

    def number(self, token: Token) -> int | float:
        try:
            return read_character(token.text) if token.kind is TokenKind.CHARACTER else read_number(token.text)
        except TemplateError as error:
            raise self.error(token, str(error)) from None


def _is_empty(body: NodeList) -> bool:
    return all(isinstance(node, TextNode) and not node.text.strip() for node in body)
