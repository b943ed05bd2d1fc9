"""From a template's text to tokens: Go's delimiters, trim marks, comments, literals. No grammar.

Positions are indexes into the text. Spaces inside an action are tokens, because they separate arguments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from itertools import islice

from ndani.errors import BadRequest
from ndani.prompts.template.bounds import MAX_SOURCE, MAX_TOKENS, refuse

_SPACE = " \t\r\n"
_NUMBER = re.compile(
    r"[+-]?(?:0[xX][0-9a-fA-F_]*(?:\.[0-9a-fA-F_]*)?(?:[pP][+-]?[0-9_]*)?"
    r"|0[oO][0-7_]*|0[bB][01_]*|[0-9_]*(?:\.[0-9_]*)?(?:[eE][+-]?[0-9_]*)?)"
)
_QUOTED = {
    '"': re.compile(r'"(?:[^"\\\n]|\\[^\n])*"'),
    "'": re.compile(r"'(?:[^'\\\n]|\\[^\n])*'"),
    "`": re.compile(r"`[^`]*`"),
}
_KEYWORDS = frozenset(("block", "break", "continue", "define", "else", "end", "if", "range", "template", "with", "nil"))


class TokenKind(Enum):
    """What a token is. The kind of a keyword is KEYWORD; its text says which one."""

    TEXT = auto()
    LEFT = auto()
    RIGHT = auto()
    SPACE = auto()
    KEYWORD = auto()
    IDENTIFIER = auto()
    FIELD = auto()
    VARIABLE = auto()
    DOT = auto()
    BOOL = auto()
    NUMBER = auto()
    CHARACTER = auto()
    STRING = auto()
    PIPE = auto()
    OPEN = auto()
    CLOSE = auto()
    DECLARE = auto()
    ASSIGN = auto()
    OTHER = auto()
    END = auto()


_SINGLE = {"|": TokenKind.PIPE, "=": TokenKind.ASSIGN}


@dataclass(frozen=True, slots=True)
class Token:
    kind: TokenKind
    text: str
    pos: int


def lex(source: str) -> list[Token]:
    """All tokens of a template, the last one END. Raises BadRequest, with line and column, for text that is no valid token."""
    if len(source) > MAX_SOURCE:
        raise BadRequest(f"the template is longer than {MAX_SOURCE:,} characters")
    tokens = list(islice(_Lexer(source).tokens(), MAX_TOKENS + 1))
    if len(tokens) > MAX_TOKENS:
        raise refuse(source, tokens[-1].pos, f"it has more than {MAX_TOKENS:,} words and signs; make it shorter")
    return tokens


def is_alphanumeric(char: str) -> bool:
    """Whether Go takes a character into a name: a letter, a decimal digit or an underscore."""
    return char == "_" or char.isalpha() or char.isdecimal()


class _Lexer:
    def __init__(self, source: str) -> None:
        self.source = source
        self.pos = 0

    def error(self, pos: int, what: str) -> BadRequest:
        return refuse(self.source, pos, what)

    def tokens(self) -> Iterator[Token]:
        source = self.source
        while True:
            start = self.pos
            left = source.find("{{", start)
            end = len(source) if left < 0 else left
            trim = left >= 0 and self.trims_left(left + 2)
            text = source[start:end]
            text = text.rstrip(_SPACE) if trim else text
            if text:
                yield Token(TokenKind.TEXT, text, start)
            if left < 0:
                yield Token(TokenKind.END, "", len(source))
                return
            self.pos = left + (4 if trim else 2)
            if source.startswith("/*", self.pos):
                self.comment()
            else:
                yield Token(TokenKind.LEFT, "{{", left)
                yield from self.action(left)

    def trims_left(self, pos: int) -> bool:
        return self.source.startswith("-", pos) and self.source[pos + 1 : pos + 2] in tuple(_SPACE)

    def right(self) -> int:
        """How long the closing delimiter here is: 0 for none, 2, or 4 with its trim mark."""
        if self.source.startswith("}}", self.pos):
            return 2
        return 4 if self.source[self.pos : self.pos + 1] in tuple(_SPACE) and self.source.startswith("-}}", self.pos + 1) else 0

    def close(self, length: int) -> None:
        self.pos += length
        if length == 4:
            while self.pos < len(self.source) and self.source[self.pos] in _SPACE:
                self.pos += 1

    def comment(self) -> None:
        start, end = self.pos, self.source.find("*/", self.pos + 2)
        if end < 0:
            raise self.error(start, "the comment is not closed; end it with */}}")
        self.pos = end + 2
        length = self.right()
        if not length:
            raise self.error(self.pos, "a comment must be the whole action, ending in */}}")
        self.close(length)

    def action(self, left: int) -> Iterator[Token]:
        depth = 0
        while True:
            start = self.pos
            length = self.right()
            if length:
                if depth:
                    raise self.error(start, "a parenthesis is not closed")
                self.close(length)
                yield Token(TokenKind.RIGHT, "}}", start)
                return
            if start >= len(self.source):
                raise self.error(left, "this action is not closed; end it with }}")
            char = self.source[start]
            if char == "(":
                depth += 1
            elif char == ")":
                depth -= 1
                if depth < 0:
                    raise self.error(start, "there is no parenthesis for this one to close")
            yield Token(self.item(char), self.source[start : self.pos], start)

    def item(self, char: str) -> TokenKind:  # one branch for each kind of token
        """Move past one token that begins with this character; what it is."""
        start = self.pos
        if char in _SPACE:
            while self.source[self.pos : self.pos + 1] in tuple(_SPACE):
                self.pos += 1
            if self.pos - start > 1 and self.source.startswith("-}}", self.pos):
                self.pos -= 1  # the last space belongs to the trim mark
            return TokenKind.SPACE
        if char in _QUOTED:
            return self.quoted(char)
        following = self.source[start + 1 : start + 2]
        if char in ".$" and not (char == "." and following in tuple("0123456789")):
            return self.name(TokenKind.FIELD if char == "." else TokenKind.VARIABLE)
        if char in "+-.0123456789":
            return self.number()
        if is_alphanumeric(char):
            return self.identifier()
        self.pos += 1
        if char == ":":
            if following != "=":
                raise self.error(start, "expected := here")
            self.pos += 1
            return TokenKind.DECLARE
        if char in "()":
            return TokenKind.OPEN if char == "(" else TokenKind.CLOSE
        if char in _SINGLE:
            return _SINGLE[char]
        if char.isascii() and char.isprintable():
            return TokenKind.OTHER
        raise self.error(start, f"the character {char!r} means nothing inside an action")

    def quoted(self, char: str) -> TokenKind:
        match = _QUOTED[char].match(self.source, self.pos)
        if match is None:
            raise self.error(self.pos, f"this {'character' if char == chr(39) else 'text'} is not closed; end it with {char}")
        self.pos = match.end()
        return TokenKind.CHARACTER if char == "'" else TokenKind.STRING

    def number(self) -> TokenKind:
        match = _NUMBER.match(self.source, self.pos)
        assert match is not None  # the pattern matches nothing, too
        start, self.pos = self.pos, max(match.end(), self.pos + 1)
        if self.pos < len(self.source) and (is_alphanumeric(self.source[self.pos]) or self.source[self.pos] in "+-"):
            raise self.error(start, "this is not a number")
        return TokenKind.NUMBER

    def skip_name(self) -> None:
        while self.pos < len(self.source) and is_alphanumeric(self.source[self.pos]):
            self.pos += 1
        char = self.source[self.pos : self.pos + 1]
        if char and char not in " \t\r\n.,|:)(" and not self.source.startswith("}}", self.pos):
            raise self.error(self.pos, f"the character {char!r} cannot stand in a name")

    def name(self, kind: TokenKind) -> TokenKind:
        start = self.pos
        self.pos += 1
        self.skip_name()
        return TokenKind.DOT if kind is TokenKind.FIELD and self.pos == start + 1 else kind

    def identifier(self) -> TokenKind:
        start = self.pos
        self.skip_name()
        identifier = self.source[start : self.pos]
        if identifier in _KEYWORDS:
            return TokenKind.KEYWORD
        return TokenKind.BOOL if identifier in ("true", "false") else TokenKind.IDENTIFIER
