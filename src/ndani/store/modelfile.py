"""Modelfiles: text to what it says and back again, exactly. Pure: no file is opened here and no name looked up.

The grammar is Ollama's (reference 2.1). A value is the rest of its line without blanks at its edges; or it begins with
one double quote or with three and goes on, over lines, to a line that ends with as many. Unlike Ollama, which leaves letters
out that it cannot print, every letter is kept: Persian, Hindi and joined emoji are written with some of them. There are no escapes,
so not every text can be written: `print_modelfile` refuses what would read back as something else, and never prints it. What a parameter's
value may be is in `parameters`; what is made of a Modelfile, in `create`.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ndani.control_characters import remove_invisible
from ndani.errors import BadRequest
from ndani.store.parameters import (
    ALIASES,
    DEPRECATED,
    TYPES,
    WITHOUT_EFFECT,
    ParameterValue,
    as_list,
    deprecation_warning,
    excerpt,
    go_text,
    parse_parameter,
)
from ndani.types import Message

COMMANDS = (
    "from", "license", "template", "system", "adapter", "draft", "renderer", "parser", "parameter", "message", "requires",
)  # fmt: skip
ROLES = ("system", "user", "assistant")

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+\Z")
_WORD = re.compile(r"[ \t]*([^ \t\r\n]*)")
_BLANK = " \t\r\n"
_HALF = re.compile("[\ud800-\udfff]")  # half of a pair, as JSON can say it: no text in UTF-8 has one
#: Letters of a version: it goes into the config, which is read at every listing.
_MOST_VERSION = 100
_VERSION = re.compile(
    r"v?(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*)(-PRE(\.PRE)*)?(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?)?)?\Z".replace(
        "PRE", r"(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
    )
)
#: Instructions that may say nothing, as in Ollama, where an empty one leaves what the base model says.
_MAY_BE_EMPTY = ("license", "template", "system", "message", "parameter")


@dataclass(frozen=True, slots=True)
class Modelfile:
    """What a Modelfile says. `parameters` are in the order of their first mention, each name once, `stop` with all its texts.

    `warnings` are sentences for the user about what was accepted and does nothing; they do not count in a comparison.
    """

    froms: tuple[str, ...]
    template: str | None = None
    system: str | None = None
    parameters: tuple[tuple[str, ParameterValue], ...] = ()
    adapters: tuple[str, ...] = ()
    licenses: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()
    requires: str | None = None
    renderer: str | None = None
    parser: str | None = None
    drafts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class _Command:
    """One instruction: its name in small letters, the role or parameter it is about, its value."""

    name: str
    word: str
    value: str
    line: int = field(default=0, compare=False)


def parse(text: bytes | str) -> Modelfile:
    """Read a Modelfile: UTF-8, or UTF-16 with a byte-order mark. Raises BadRequest, with the line where there is one."""
    commands = _read(text)
    parameters, warnings = _parameters(commands)
    single = {name: _last(commands, name, warnings) for name in ("template", "system", "requires", "renderer", "parser")}
    return Modelfile(
        froms=_all(commands, "from"),
        template=single["template"],
        system=single["system"],
        parameters=parameters,
        adapters=_all(commands, "adapter"),
        licenses=_all(commands, "license"),
        messages=tuple(Message(command.word, command.value) for command in commands if command.name == "message"),
        requires=check_version(required) if (required := single["requires"]) else None,
        renderer=single["renderer"],
        parser=single["parser"],
        drafts=_all(commands, "draft"),
        warnings=tuple(warnings),
    )


def check_grammar(text: bytes | str) -> None:
    """Refuse what is no Modelfile at all: an unknown instruction, an open quote, no FROM. Values are `parse`'s business."""
    _read(text)


def print_modelfile(modelfile: Modelfile, *, skip_unwritable: bool = False) -> str:
    """The text that `parse` reads as this Modelfile, quoted as Ollama quotes.

    Raises BadRequest where there is no such text. With `leave_out`, for showing what somebody else has stored, an
    instruction that cannot be written becomes a comment that says so, and everything else is printed.
    """
    lines = []
    for command in _commands(modelfile):
        try:
            lines.append(_line(command))
        except BadRequest as error:
            if not skip_unwritable:
                raise
            lines.append(f"# left out: {error}\n")
    text = "".join(lines)
    if not skip_unwritable and parse(text) != modelfile:
        raise BadRequest("this model cannot be written as a Modelfile: a parameter is empty or said twice")
    return text


def to_request(modelfile: Modelfile) -> dict[str, Any]:
    """The body of a create request as far as the text alone says it: FROM, ADAPTER and DRAFT are names or files, to be looked at."""
    options = {name: list(value) if isinstance(value, tuple) else value for name, value in modelfile.parameters}
    said = {
        "template": modelfile.template,
        "system": modelfile.system,
        "license": list(modelfile.licenses),
        "parameters": options,
        "messages": [{"role": message.role, "content": message.content} for message in modelfile.messages],
        "requires": modelfile.requires,
        "renderer": modelfile.renderer,
        "parser": modelfile.parser,
    }
    return {name: value for name, value in said.items() if value}


def _read(text: bytes | str) -> list[_Command]:
    """The instructions. Raises BadRequest."""
    commands = list(_scan(_decoded(text) if isinstance(text, bytes) else text.removeprefix("\ufeff")))
    if not any(command.name == "from" for command in commands):
        raise BadRequest("no FROM line")
    return commands


def _decoded(raw: bytes) -> str:
    try:
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return raw.decode("utf-16")
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadRequest("the Modelfile is not text in UTF-8, nor in UTF-16 with a byte-order mark; save it as UTF-8") from None


def _scan(text: str) -> Iterator[_Command]:
    """The instructions of a text. Raises BadRequest."""
    lines = enumerate(_LINE.findall(text), 1)
    for number, line in lines:
        word = _WORD.match(line)
        assert word is not None  # it matches anything
        name, at = word[1].lower(), word.end()
        if not name or name.startswith("#"):
            continue
        if name == "file":
            what = "FILE is not in this version of ndani; take the line out, and put what the model has to know into SYSTEM"
            raise _wrong(number, what)
        if name not in COMMANDS:
            raise _wrong(number, "command must be " + _one_of(COMMANDS))
        about = ""
        if name in ("parameter", "message"):
            word = _WORD.match(line, at)
            assert word is not None
            about, at = word[1], word.end()
            if name == "message" and about and about not in ROLES:
                raise _wrong(number, "message role must be " + _one_of(ROLES))
        value = _value(name, about, number, line[at:], lines)
        yield _Command(name, about, value, number)


def _value(name: str, about: str, number: int, rest: str, lines: Iterator[tuple[int, str]]) -> str:
    """The value that begins with `rest`; takes from `lines` as many more as a quote goes over."""
    shown = f"{name.upper()} {about}".strip()
    start = rest.strip(_BLANK)
    if not start.startswith('"'):
        # As in Ollama, a blank behind the name is what tells an empty value from a missing one.
        if not start and (name == "parameter" or (name == "message" and (not about or rest[:1] not in (" ", "\t")))):
            raise BadRequest(f"unexpected EOF: {shown} on line {number} has no value")
        if not start and (name not in _MAY_BE_EMPTY or rest[:1] not in (" ", "\t")):
            raise _wrong(number, f"{shown} has no value; write it on the same line, or between quotes")
        return start
    mark = '"""' if start.startswith('"""') else '"'
    parts = [rest.lstrip(_BLANK)]
    length = len(start)
    while not (parts[-1].rstrip(_BLANK).endswith(mark) and length >= 2 * len(mark)):
        more = next(lines, None)
        if more is None:
            raise BadRequest(f"unexpected EOF: the quote behind {shown} on line {number} is not closed at the end of any line")
        parts.append(more[1])
        length += len(more[1])  # long enough is all that counts from the second line on
    value = "".join(parts).rstrip(_BLANK)[len(mark) : -len(mark)]
    if not value and name not in _MAY_BE_EMPTY:
        raise _wrong(number, f"{shown} has no value; write it on the same line, or between quotes")
    return value


def _parameters(commands: list[_Command]) -> tuple[tuple[tuple[str, ParameterValue], ...], list[str]]:
    """The options that the instructions set, and a sentence for each that does nothing."""
    found: dict[str, ParameterValue] = {}
    lists: dict[str, list[str]] = {}
    warnings = []
    for command in commands:
        if command.name != "parameter":
            continue
        name = ALIASES.get(command.word, command.word)
        if name in DEPRECATED:
            warnings.append(f"line {command.line}: {deprecation_warning(name)}")
            continue
        text = command.value if TYPES.get(name) == "list" else remove_invisible(command.value)
        if text != command.value:  # as in Ollama: nobody sees them beside a number that was copied from a page
            warnings.append(f"line {command.line}: {name} is read without {_code(command.value)}, which no number holds")
        value = parse_parameter(command.word, text)
        if isinstance(value, tuple):
            lists.setdefault(name, []).extend(value)
        elif name in found:
            warnings.append(f"line {command.line}: {name} was said before; this one counts")
        if name in WITHOUT_EFFECT:
            warnings.append(f"line {command.line}: {name} is kept, but nothing in this version obeys it")
        found[name] = value
    found |= {name: tuple(texts) for name, texts in lists.items()}
    return tuple(found.items()), warnings


def _all(commands: list[_Command], name: str) -> tuple[str, ...]:
    return tuple(command.value for command in commands if command.name == name)


def _last(commands: list[_Command], name: str, warnings: list[str]) -> str | None:
    """The last value of an instruction that has one value; notes in `warnings` where it replaced others."""
    found = [command for command in commands if command.name == name]
    if len(found) > 1:
        warnings.append(f"line {found[-1].line}: {name.upper()} was said before; this one counts")
    return found[-1].value if found else None


def check_version(said: str) -> str:
    """The version that REQUIRES names, without a `v` in front. Raises BadRequest in Ollama's words for anything else."""
    if len(said) > _MOST_VERSION or not _VERSION.match(said):
        raise BadRequest("requires must be a valid semver (e.g. 0.14.0)")
    return said.removeprefix("v")


def _commands(modelfile: Modelfile) -> Iterator[_Command]:
    """The instructions of a Modelfile, in the order in which Ollama shows them."""
    yield from (_Command("from", "", value) for value in modelfile.froms)
    for name in ("template", "system", "renderer", "parser"):
        value = getattr(modelfile, name)
        if value is not None:
            yield _Command(name, "", value)
    for word, value in modelfile.parameters:
        yield from (_Command("parameter", word, go_text(one)) for one in as_list(value))
    yield from (_Command("adapter", "", value) for value in modelfile.adapters)
    yield from (_Command("draft", "", value) for value in modelfile.drafts)
    yield from (_Command("license", "", value) for value in modelfile.licenses)
    yield from (_Command("message", message.role, message.content) for message in modelfile.messages)
    if modelfile.requires is not None:
        yield _Command("requires", "", modelfile.requires)


def _line(command: _Command) -> str:
    """One instruction as text. Raises BadRequest where no text reads back as this instruction."""
    shown = f"{command.name.upper()} {command.word}".strip()
    if command.name == "parameter":
        if command.word in DEPRECATED:
            raise BadRequest(deprecation_warning(command.word))
        parse_parameter(command.word, command.value)
    for value in _quotings(command.value):
        line = f"{shown} {value}\n"
        try:
            if list(_scan(line)) == [command] and not _HALF.search(line):
                return line
        except BadRequest:
            continue
    raise BadRequest(f"{_named(command)} cannot be written in a Modelfile: {_why(command)}")


def _quotings(value: str) -> Iterator[str]:
    """The three ways to write a value, Ollama's own choice first."""
    bare = value and "\n" not in value and value == value.strip(" ")
    if bare:
        yield value
    marks = ('"""', '"') if '"' in value else ('"', '"""')
    yield from (f"{mark}{value}{mark}" for mark in marks)


def _named(command: _Command) -> str:
    """An instruction as a sentence names it; what a stored model calls its parameters and roles may be anything."""
    word = command.word if command.word.isidentifier() and command.word.isascii() else f"'{excerpt(command.word)}'"
    return f"{command.name.upper()} {word}" if command.word else command.name.upper()


def _why(command: _Command) -> str:
    if half := _HALF.search(command.value):
        return f"it holds the character U+{ord(half[0]):04X}, which a Modelfile cannot"
    if command.name == "message" and command.word not in ROLES:
        return "the role must be " + _one_of(ROLES)
    if not command.value:
        return "it is empty"
    return "one of its lines ends in quotes, which would end it there"


def _code(text: str) -> str:
    """The first letter of a text that nobody sees, by its number."""
    return next(f"U+{ord(char):04X}" for char in text if not remove_invisible(char))


def _one_of(words: tuple[str, ...]) -> str:
    quoted = [f'"{word}"' for word in words]
    return f"one of {', '.join(quoted[:-1])}, or {quoted[-1]}"


def _wrong(line: int, what: str) -> BadRequest:
    return BadRequest(f"(line {line}): {what}")
