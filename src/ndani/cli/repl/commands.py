"""What the words behind a slash do. Sentences are Ollama's where it has one; the rest of a session is in `session`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from ndani.cli import show as cards
from ndani.cli.output import emit
from ndani.cli.repl import help_texts
from ndani.cli.repl.line_reader import LineReader
from ndani.cli.repl.session import Session
from ndani.errors import BadName, BadRequest, NotFound

QUOTES = '"""'


class Leave(Exception):
    """The user wants to go."""


class Commands:
    """The commands over one session and the line they are typed on. Each raises what the server answers."""

    def __init__(self, session: Session, line: LineReader) -> None:
        self._session, self._line = session, line
        self._commands: dict[str, Callable[[str, list[str]], None]] = {
            "/set": self._set,
            "/show": self._show,
            "/load": self._load,
            "/save": self._save,
            "/clear": self._clear,
            "/list": self._list,
            "/help": self._help,
            "/?": self._help,
            "/bye": self._leave,
            "/exit": self._leave,
        }
        self._settings: dict[str, Callable[[str, list[str]], None]] = {
            "parameter": self._parameter,
            "system": self._system,
            "format": self._format,
            "think": self._think,
            **dict.fromkeys(("history", "nohistory"), self._history),
            **dict.fromkeys(("wordwrap", "nowordwrap", "verbose", "quiet", "noformat", "nothink"), self._mode),
        }

    def obey(self, text: str) -> None:
        """Do what a line says that begins with a slash. Raises Leave, KeyboardInterrupt, NdaniError."""
        first, *rest = text.split()
        command = self._commands.get(first)
        if command is None:
            emit(f"Unknown command '{first}'. Type /? for help")
        else:
            command(text, rest)

    def _leave(self, text: str, rest: list[str]) -> None:
        raise Leave

    def _help(self, text: str, rest: list[str]) -> None:
        topics = {"set": help_texts.SET, "show": help_texts.SHOW, "shortcut": help_texts.SHORTCUTS, "shortcuts": help_texts.SHORTCUTS}
        emit(topics.get(rest[0].lstrip("/"), help_texts.USAGE) if rest else help_texts.USAGE)

    def _load(self, text: str, rest: list[str]) -> None:
        if len(rest) != 1:
            emit("Usage:\n  /load <modelname>")
            return
        emit(f"Loading model '{rest[0]}'")
        try:
            self._session.open(rest[0])
        except NotFound:
            emit(f"Couldn't find model '{rest[0]}'")

    def _save(self, text: str, rest: list[str]) -> None:
        if len(rest) != 1:
            emit("Usage:\n  /save <modelname>")
            return
        try:
            self._session.save(rest[0])
        except BadName:
            emit(f"error: The model name '{rest[0]}' is invalid")
            return
        emit(f"Created new model '{rest[0]}'")

    def _clear(self, text: str, rest: list[str]) -> None:
        self._session.turns = []
        emit("Cleared session context")

    def _list(self, text: str, rest: list[str]) -> None:
        from ndani.cli.models import listing

        emit(listing(self._session.reach().models("/api/tags")["models"], rest[0] if rest else ""), nl=False)

    # /set

    def _set(self, text: str, rest: list[str]) -> None:
        if not rest:
            emit(help_texts.SET)
        elif rest[0] in self._settings:
            self._settings[rest[0]](text, rest)
        else:
            emit(f"Unknown command '/set {rest[0]}'. Type /? for help")

    def _history(self, text: str, rest: list[str]) -> None:
        history = self._line.history
        history.keep(rest[0] == "history")
        if history.keeping and history.lost:
            emit(f"Warning: {history.lost}", err=True)

    def _mode(self, text: str, rest: list[str]) -> None:
        mode, session = rest[0], self._session
        if mode == "noformat":
            session.said.pop("format", None)
            emit("Disabled format.")
            return
        if mode == "nothink":
            session.said["think"] = False
        elif mode in ("verbose", "quiet"):
            session.verbose = mode == "verbose"
        else:
            session.wordwrap = mode == "wordwrap"
        emit(f"Set '{mode}' mode.")

    def _format(self, text: str, rest: list[str]) -> None:
        if rest[1:] != ["json"]:
            emit("Invalid or missing format. For 'json' mode use '/set format json'")
            return
        # Asked now: a format that the server refuses would spoil every message after this one.
        self._session.require(format="json")
        self._session.said["format"] = "json"
        emit("Set format to 'json' mode.")

    def _think(self, text: str, rest: list[str]) -> None:
        level: str | bool = rest[1] if len(rest) > 1 else True
        self._session.require(think=level)
        self._session.said["think"] = level
        emit("Set 'think' mode." if level is True else f"Set 'think' mode to '{level}'.")

    def _parameter(self, text: str, rest: list[str]) -> None:
        if len(rest) < 3:
            emit(help_texts.PARAMETERS)
            return
        from ndani.store.parameters import ALIASES, literal

        name, values = rest[1], rest[2:]
        try:
            # Two names of one option would else be two, and the server would say which of them counts.
            self._session.options[ALIASES.get(name, name)] = _read(name, values)
        except BadRequest as error:
            emit(f"Couldn't set parameter: {literal(str(error))}")
        else:
            emit(f"Set parameter '{name}' to '{', '.join(values)}'")

    def _system(self, text: str, rest: list[str]) -> None:
        if len(rest) < 2:
            emit(help_texts.SET)
            return
        # Behind `/set system`, to the letter: the blanks inside are the user's, and a paragraph may begin with a wide one.
        said = re.split(r"\s+", text.lstrip(), maxsplit=1)[1].partition(rest[0])[2][1:].strip(" \t")
        self._session.system = gather(self._line, said) if said.startswith(QUOTES) else said
        emit("Set system message.")

    # /show

    def _show(self, text: str, rest: list[str]) -> None:
        if not rest:
            emit(help_texts.SHOW)
            return
        parts: dict[str, Callable[[dict[str, Any]], str]] = {
            "info": lambda shown: cards.card(shown).rstrip("\n") + "\n",
            "license": lambda shown: shown.get("license") or "No license was specified for this model.",
            "modelfile": self._modelfile,
            "parameters": self._parameters,
            "system": self._said_system,
            "template": lambda shown: shown.get("template") or "No prompt template was specified for this model.",
        }
        if rest[0] not in parts:
            emit(f"Unknown command '/show {rest[0]}'. Type /? for help")
        else:
            emit(parts[rest[0]](self._session.show()))

    def _parameters(self, shown: dict[str, Any]) -> str:
        from ndani.store.parameters import render_parameters

        own = shown.get("parameters") or "No additional parameters were specified for this model."
        text = "Model defined parameters:\n" + _indented(own)
        if self._session.options:
            text += "\nUser defined parameters:\n" + _indented(render_parameters(self._session.options))
        return text

    def _said_system(self, shown: dict[str, Any]) -> str:
        said = self._session.system or shown.get("system")
        return f"{said}\n" if said else "No system message was specified for this model."

    def _modelfile(self, shown: dict[str, Any]) -> str:
        """The model's Modelfile, with what was set in this session in it."""
        from ndani.store.modelfile import parse, print_modelfile

        text, session = str(shown.get("modelfile") or ""), self._session
        if not session.system and not session.options:
            return text
        read = parse(text)
        parameters = dict(read.parameters) | {k: tuple(v) if isinstance(v, list) else v for k, v in session.options.items()}
        changed = dataclasses.replace(read, system=session.system or read.system, parameters=tuple(parameters.items()))
        return text.partition("\n\n")[0] + "\n\n" + print_modelfile(changed, leave_out=True)


def gather(line: LineReader, first: str) -> str:
    """A text that begins with three quotes, read on until three more end a line. Raises KeyboardInterrupt, EOFError."""
    text, ended = _cut(first.removeprefix(QUOTES))
    while not ended:
        more, ended = _cut(line.read(more=True))
        text += f"\n{more}"
    return text


def _cut(text: str) -> tuple[str, bool]:
    return text.removesuffix(QUOTES), text.endswith(QUOTES)


def _read(name: str, values: list[str]) -> Any:
    """The value of an option, as a request holds it. Raises BadRequest in the words of a Modelfile."""
    from ndani.engines.sampling import parse_options
    from ndani.store.parameters import ALIASES, KINDS, parse_parameter

    if KINDS.get(ALIASES.get(name, name)) == "list":
        return list(values)
    value = parse_parameter(name, values[0])
    if len(values) > 1:
        raise BadRequest(f"{name} takes one value")
    parse_options({ALIASES.get(name, name): value})
    return value


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.split("\n"))
