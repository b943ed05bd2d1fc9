"""Parses Modelfiles and prints them again, exactly. Pure: opens no file and looks up no name.

The grammar is Ollama's. A value is the rest of its line without surrounding whitespace; or it begins with one or three double
quotes and continues, over several lines, to a line that ends with as many. Unlike Ollama, which drops invisible characters,
this keeps every character, because Persian, Hindi and joined emoji need some of them. There are no escapes, so not every text
can be written: `print_modelfile` refuses a value that would be parsed differently. The values of parameters are in
`parameters`; `create` makes a model from a Modelfile's content.
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
_FIRST_WORD = re.compile(r"[ \t]*([^ \t\r\n]*)")
_WHITESPACE = " \t\r\n"
_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can contain a lone surrogate, UTF-8 cannot
#: Characters of a version: it is stored in the config, which is read at every listing.
_MAX_VERSION_LENGTH = 100
_VERSION = re.compile(
    r"v?(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*)(-PRE(\.PRE)*)?(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?)?)?\Z".replace(
        "PRE", r"(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
    )
)
#: Instructions whose value may be empty, as in Ollama, where an empty one keeps the base model's value.
_MAY_BE_EMPTY = ("license", "template", "system", "message", "parameter")


@dataclass(frozen=True, slots=True)
class Modelfile:
    """The content of a Modelfile. `parameters` has each name once, in the order of first use, and `stop` with all its texts.

    `warnings` are sentences for the user about lines without effect; comparisons ignore them.
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
    """One instruction: its name in lower case, its argument (a role or a parameter's name), and its value."""

    name: str
    argument: str
    value: str
    line: int = field(default=0, compare=False)


def parse(text: bytes | str) -> Modelfile:
    """Parse a Modelfile in UTF-8, or in UTF-16 with a byte-order mark. Raises BadRequest, with the line number if there is one."""
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
        messages=tuple(Message(command.argument, command.value) for command in commands if command.name == "message"),
        requires=check_version(required) if (required := single["requires"]) else None,
        renderer=single["renderer"],
        parser=single["parser"],
        drafts=_all(commands, "draft"),
        warnings=tuple(warnings),
    )


def check_grammar(text: bytes | str) -> None:
    """Refuse an unknown instruction, an unclosed quote or a missing FROM. `parse` also checks the values."""
    _read(text)


def print_modelfile(modelfile: Modelfile, *, skip_unwritable: bool = False) -> str:
    """The text that `parse` reads as this Modelfile, with Ollama's quoting.

    Raises BadRequest if there is no such text. With `skip_unwritable`, for showing any stored model, an instruction that
    cannot be written becomes a comment that says so, and everything else is printed.
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
    """The body of a create request without FROM, ADAPTER and DRAFT, which the caller resolves to names or files."""
    options = {name: list(value) if isinstance(value, tuple) else value for name, value in modelfile.parameters}
    fields = {
        "template": modelfile.template,
        "system": modelfile.system,
        "license": list(modelfile.licenses),
        "parameters": options,
        "messages": [{"role": message.role, "content": message.content} for message in modelfile.messages],
        "requires": modelfile.requires,
        "renderer": modelfile.renderer,
        "parser": modelfile.parser,
    }
    return {name: value for name, value in fields.items() if value}


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
        match = _FIRST_WORD.match(line)
        assert match is not None  # it matches anything
        name, end = match[1].lower(), match.end()
        if not name or name.startswith("#"):
            continue
        if name == "file":
            what = "FILE is not in this version of ndani; take the line out, and put what the model has to know into SYSTEM"
            raise _line_error(number, what)
        if name not in COMMANDS:
            raise _line_error(number, "command must be " + _one_of(COMMANDS))
        argument = ""
        if name in ("parameter", "message"):
            match = _FIRST_WORD.match(line, end)
            assert match is not None
            argument, end = match[1], match.end()
            if name == "message" and argument and argument not in ROLES:
                raise _line_error(number, "message role must be " + _one_of(ROLES))
        value = _value(name, argument, number, line[end:], lines)
        yield _Command(name, argument, value, number)


def _value(name: str, argument: str, number: int, remainder: str, lines: Iterator[tuple[int, str]]) -> str:
    """The value that begins with `remainder`; consumes further `lines` for a quoted value."""
    instruction = f"{name.upper()} {argument}".strip()
    start = remainder.strip(_WHITESPACE)
    if not start.startswith('"'):
        # As in Ollama, whitespace after the name tells an empty value from a missing one.
        if not start and (name == "parameter" or (name == "message" and (not argument or remainder[:1] not in (" ", "\t")))):
            raise BadRequest(f"unexpected EOF: {instruction} on line {number} has no value")
        if not start and (name not in _MAY_BE_EMPTY or remainder[:1] not in (" ", "\t")):
            raise _line_error(number, f"{instruction} has no value; write it on the same line, or between quotes")
        return start
    quote = '"""' if start.startswith('"""') else '"'
    parts = [remainder.lstrip(_WHITESPACE)]
    length = len(start)
    while not (parts[-1].rstrip(_WHITESPACE).endswith(quote) and length >= 2 * len(quote)):
        next_line = next(lines, None)
        if next_line is None:
            raise BadRequest(f"unexpected EOF: the quote behind {instruction} on line {number} is not closed at the end of any line")
        parts.append(next_line[1])
        length += len(next_line[1])  # so that one quote cannot both open and close the value
    value = "".join(parts).rstrip(_WHITESPACE)[len(quote) : -len(quote)]
    if not value and name not in _MAY_BE_EMPTY:
        raise _line_error(number, f"{instruction} has no value; write it on the same line, or between quotes")
    return value


def _parameters(commands: list[_Command]) -> tuple[tuple[tuple[str, ParameterValue], ...], list[str]]:
    """The options that the instructions set, and a warning for each that has no effect."""
    parameters: dict[str, ParameterValue] = {}
    lists: dict[str, list[str]] = {}
    warnings = []
    for command in commands:
        if command.name != "parameter":
            continue
        name = ALIASES.get(command.argument, command.argument)
        if name in DEPRECATED:
            warnings.append(f"line {command.line}: {deprecation_warning(name)}")
            continue
        text = command.value if TYPES.get(name) == "list" else remove_invisible(command.value)
        if text != command.value:  # as in Ollama: numbers copied from a web page may have invisible characters
            warnings.append(f"line {command.line}: {name} is read without {_invisible_code(command.value)}, which no number holds")
        value = parse_parameter(command.argument, text)
        if isinstance(value, tuple):
            lists.setdefault(name, []).extend(value)
        elif name in parameters:
            warnings.append(f"line {command.line}: {name} was said before; this one counts")
        if name in WITHOUT_EFFECT:
            warnings.append(f"line {command.line}: {name} is kept, but nothing in this version obeys it")
        parameters[name] = value
    parameters |= {name: tuple(texts) for name, texts in lists.items()}
    return tuple(parameters.items()), warnings


def _all(commands: list[_Command], name: str) -> tuple[str, ...]:
    return tuple(command.value for command in commands if command.name == name)


def _last(commands: list[_Command], name: str, warnings: list[str]) -> str | None:
    """The last value of an instruction that takes one value; warns if it replaced others."""
    matching = [command for command in commands if command.name == name]
    if len(matching) > 1:
        warnings.append(f"line {matching[-1].line}: {name.upper()} was said before; this one counts")
    return matching[-1].value if matching else None


def check_version(version: str) -> str:
    """The version of a REQUIRES instruction, without a leading `v`. Raises BadRequest in Ollama's words if it is invalid."""
    if len(version) > _MAX_VERSION_LENGTH or not _VERSION.match(version):
        raise BadRequest("requires must be a valid semver (e.g. 0.14.0)")
    return version.removeprefix("v")


def _commands(modelfile: Modelfile) -> Iterator[_Command]:
    """The instructions of a Modelfile, in the order in which Ollama shows them."""
    yield from (_Command("from", "", value) for value in modelfile.froms)
    for name in ("template", "system", "renderer", "parser"):
        value = getattr(modelfile, name)
        if value is not None:
            yield _Command(name, "", value)
    for word, value in modelfile.parameters:
        yield from (_Command("parameter", word, go_text(item)) for item in as_list(value))
    yield from (_Command("adapter", "", value) for value in modelfile.adapters)
    yield from (_Command("draft", "", value) for value in modelfile.drafts)
    yield from (_Command("license", "", value) for value in modelfile.licenses)
    yield from (_Command("message", message.role, message.content) for message in modelfile.messages)
    if modelfile.requires is not None:
        yield _Command("requires", "", modelfile.requires)


def _line(command: _Command) -> str:
    """One instruction as text. Raises BadRequest if no text would be parsed as this instruction."""
    instruction = f"{command.name.upper()} {command.argument}".strip()
    if command.name == "parameter":
        if command.argument in DEPRECATED:
            raise BadRequest(deprecation_warning(command.argument))
        parse_parameter(command.argument, command.value)
    for value in _quotings(command.value):
        line = f"{instruction} {value}\n"
        try:
            if list(_scan(line)) == [command] and not _SURROGATE.search(line):
                return line
        except BadRequest:
            continue
    raise BadRequest(f"{_describe(command)} cannot be written in a Modelfile: {_unwritable_reason(command)}")


def _quotings(value: str) -> Iterator[str]:
    """The ways to write a value, Ollama's choice first."""
    unquoted = value and "\n" not in value and value == value.strip(" ")
    if unquoted:
        yield value
    marks = ('"""', '"') if '"' in value else ('"', '"""')
    yield from (f"{mark}{value}{mark}" for mark in marks)


def _describe(command: _Command) -> str:
    """An instruction as named in an error message; the parameters and roles of a stored model may have any name."""
    argument = command.argument if command.argument.isidentifier() and command.argument.isascii() else f"'{excerpt(command.argument)}'"
    return f"{command.name.upper()} {argument}" if command.argument else command.name.upper()


def _unwritable_reason(command: _Command) -> str:
    if surrogate := _SURROGATE.search(command.value):
        return f"it holds the character U+{ord(surrogate[0]):04X}, which a Modelfile cannot"
    if command.name == "message" and command.argument not in ROLES:
        return "the role must be " + _one_of(ROLES)
    if not command.value:
        return "it is empty"
    return "one of its lines ends in quotes, which would end it there"


def _invisible_code(text: str) -> str:
    """The code point of the first invisible character."""
    return next(f"U+{ord(char):04X}" for char in text if not remove_invisible(char))


def _one_of(words: tuple[str, ...]) -> str:
    quoted = [f'"{word}"' for word in words]
    return f"one of {', '.join(quoted[:-1])}, or {quoted[-1]}"


def _line_error(line: int, what: str) -> BadRequest:
    return BadRequest(f"(line {line}): {what}")
