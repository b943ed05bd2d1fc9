"""The slash commands of the interactive prompt, with Ollama's messages where it has them."""

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


class ExitRequested(Exception):
    """The user has entered /bye or /exit."""


class Commands:
    """The slash commands of one session. Each raises the error that the server reports."""

    def __init__(self, session: Session, reader: LineReader) -> None:
        self._session, self._reader = session, reader
        self._commands: dict[str, Callable[[str, list[str]], None]] = {
            "/set": self._set,
            "/show": self._show,
            "/load": self._load,
            "/save": self._save,
            "/clear": self._clear,
            "/list": self._list,
            "/help": self._help,
            "/?": self._help,
            "/bye": self._exit,
            "/exit": self._exit,
        }
        self._settings: dict[str, Callable[[str, list[str]], None]] = {
            "parameter": self._parameter,
            "system": self._system,
            "format": self._format,
            "think": self._think,
            **dict.fromkeys(("history", "nohistory"), self._history),
            **dict.fromkeys(("wordwrap", "nowordwrap", "verbose", "quiet", "noformat", "nothink"), self._mode),
        }

    def execute(self, text: str) -> None:
        """Run a line that begins with a slash. Raises ExitRequested, KeyboardInterrupt, NdaniError."""
        name, *args = text.split()
        command = self._commands.get(name)
        if command is None:
            emit(f"Unknown command '{name}'. Type /? for help")
        else:
            command(text, args)

    def _exit(self, text: str, args: list[str]) -> None:
        raise ExitRequested

    def _help(self, text: str, args: list[str]) -> None:
        topics = {"set": help_texts.SET, "show": help_texts.SHOW, "shortcut": help_texts.SHORTCUTS, "shortcuts": help_texts.SHORTCUTS}
        emit(topics.get(args[0].lstrip("/"), help_texts.USAGE) if args else help_texts.USAGE)

    def _load(self, text: str, args: list[str]) -> None:
        if len(args) != 1:
            emit("Usage:\n  /load <modelname>")
            return
        emit(f"Loading model '{args[0]}'")
        try:
            self._session.load(args[0])
        except NotFound:
            emit(f"Couldn't find model '{args[0]}'")

    def _save(self, text: str, args: list[str]) -> None:
        if len(args) != 1:
            emit("Usage:\n  /save <modelname>")
            return
        try:
            self._session.save(args[0])
        except BadName:
            emit(f"error: The model name '{args[0]}' is invalid")
            return
        emit(f"Created new model '{args[0]}'")

    def _clear(self, text: str, args: list[str]) -> None:
        self._session.messages = []
        emit("Cleared session context")

    def _list(self, text: str, args: list[str]) -> None:
        from ndani.cli.models import model_table

        emit(model_table(self._session.client().list_models("/api/tags")["models"], args[0] if args else ""), nl=False)

    # /set

    def _set(self, text: str, args: list[str]) -> None:
        if not args:
            emit(help_texts.SET)
        elif args[0] in self._settings:
            self._settings[args[0]](text, args)
        else:
            emit(f"Unknown command '/set {args[0]}'. Type /? for help")

    def _history(self, text: str, args: list[str]) -> None:
        history = self._reader.history
        history.set_enabled(args[0] == "history")
        if history.enabled and history.failure:
            emit(f"Warning: {history.failure}", err=True)

    def _mode(self, text: str, args: list[str]) -> None:
        mode, session = args[0], self._session
        if mode == "noformat":
            session.request_fields.pop("format", None)
            emit("Disabled format.")
            return
        if mode == "nothink":
            session.request_fields["think"] = False
        elif mode in ("verbose", "quiet"):
            session.verbose = mode == "verbose"
        else:
            session.wordwrap = mode == "wordwrap"
        emit(f"Set '{mode}' mode.")

    def _format(self, text: str, args: list[str]) -> None:
        if args[1:] != ["json"]:
            emit("Invalid or missing format. For 'json' mode use '/set format json'")
            return
        # Checked now: a format that the server rejects would make every later message fail.
        self._session.check_fields(format="json")
        self._session.request_fields["format"] = "json"
        emit("Set format to 'json' mode.")

    def _think(self, text: str, args: list[str]) -> None:
        level: str | bool = args[1] if len(args) > 1 else True
        self._session.check_fields(think=level)
        self._session.request_fields["think"] = level
        emit("Set 'think' mode." if level is True else f"Set 'think' mode to '{level}'.")

    def _parameter(self, text: str, args: list[str]) -> None:
        if len(args) < 3:
            emit(help_texts.PARAMETERS)
            return
        from ndani.store.parameters import ALIASES, go_literal

        name, values = args[1], args[2:]
        try:
            # Stored under one name: otherwise two aliases of an option would both be sent.
            self._session.options[ALIASES.get(name, name)] = _parse_option(name, values)
        except BadRequest as error:
            emit(f"Couldn't set parameter: {go_literal(str(error))}")
        else:
            emit(f"Set parameter '{name}' to '{', '.join(values)}'")

    def _system(self, text: str, args: list[str]) -> None:
        if len(args) < 2:
            emit(help_texts.SET)
            return
        # The text after `/set system`, unchanged: it may contain several blanks in a row, and begin with a wide one.
        message = re.split(r"\s+", text.lstrip(), maxsplit=1)[1].partition(args[0])[2][1:].strip(" \t")
        self._session.system = read_multiline(self._reader, message) if message.startswith(QUOTES) else message
        emit("Set system message.")

    # /show

    def _show(self, text: str, args: list[str]) -> None:
        if not args:
            emit(help_texts.SHOW)
            return
        parts: dict[str, Callable[[dict[str, Any]], str]] = {
            "info": lambda info: cards.card(info).rstrip("\n") + "\n",
            "license": lambda info: info.get("license") or "No license was specified for this model.",
            "modelfile": self._modelfile,
            "parameters": self._parameters,
            "system": self._system_message,
            "template": lambda info: info.get("template") or "No prompt template was specified for this model.",
        }
        if args[0] not in parts:
            emit(f"Unknown command '/show {args[0]}'. Type /? for help")
        else:
            emit(parts[args[0]](self._session.show()))

    def _parameters(self, info: dict[str, Any]) -> str:
        from ndani.store.parameters import format_parameters

        model_parameters = info.get("parameters") or "No additional parameters were specified for this model."
        text = "Model defined parameters:\n" + _indented(model_parameters)
        if self._session.options:
            text += "\nUser defined parameters:\n" + _indented(format_parameters(self._session.options))
        return text

    def _system_message(self, info: dict[str, Any]) -> str:
        message = self._session.system or info.get("system")
        return f"{message}\n" if message else "No system message was specified for this model."

    def _modelfile(self, info: dict[str, Any]) -> str:
        """The model's Modelfile, with the settings of this session."""
        from ndani.store.modelfile import parse, print_modelfile

        printed, session = str(info.get("modelfile") or ""), self._session
        if not session.system and not session.options:
            return printed
        modelfile = parse(printed)
        parameters = dict(modelfile.parameters) | {k: tuple(v) if isinstance(v, list) else v for k, v in session.options.items()}
        changed = dataclasses.replace(modelfile, system=session.system or modelfile.system, parameters=tuple(parameters.items()))
        return printed.partition("\n\n")[0] + "\n\n" + print_modelfile(changed, skip_unwritable=True)


def read_multiline(reader: LineReader, first: str) -> str:
    """Read a text that begins with three quotes, up to a line that ends with three quotes. Raises KeyboardInterrupt, EOFError."""
    text, is_closed = _strip_closing_quotes(first.removeprefix(QUOTES))
    while not is_closed:
        line, is_closed = _strip_closing_quotes(reader.read(continuation=True))
        text += f"\n{line}"
    return text


def _strip_closing_quotes(text: str) -> tuple[str, bool]:
    return text.removesuffix(QUOTES), text.endswith(QUOTES)


def _parse_option(name: str, values: list[str]) -> Any:
    """The value of an option in a request. Raises BadRequest with the message of a Modelfile's parameter."""
    from ndani.engines.sampling import parse_options
    from ndani.store.parameters import ALIASES, TYPES, parse_parameter

    if TYPES.get(ALIASES.get(name, name)) == "list":
        return list(values)
    value = parse_parameter(name, values[0])
    if len(values) > 1:
        raise BadRequest(f"{name} takes one value")
    parse_options({ALIASES.get(name, name): value})
    return value


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.split("\n"))
