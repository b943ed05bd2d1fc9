"""The interactive prompt of `ndani run`: lines become messages or commands, until the user leaves.

`line_reader` reads lines, `commands` runs the slash commands, `session` sends requests to the server, `help_texts` has the help.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ndani.cli.output import emit
from ndani.cli.repl import help_texts
from ndani.cli.repl.commands import QUOTES, Commands, ExitRequested, read_multiline
from ndani.cli.repl.line_reader import LineReader
from ndani.cli.repl.session import Session
from ndani.errors import NdaniError
from ndani.settings import Settings


def run_repl(
    settings: Settings, request_fields: Mapping[str, Any], *, verbose: bool, wordwrap: bool, insecure: bool, hide_thinking: bool = False
) -> None:
    """Chat with a model until Ctrl-D or /bye. `request_fields` are in every request, among them the model's name.

    A missing model is pulled first. Raises the error that the server reports when the model cannot be loaded.
    """
    session = Session(settings, request_fields, verbose=verbose, wordwrap=wordwrap, hide_thinking=hide_thinking)
    session.load_or_pull(session.model, insecure=insecure)
    reader = LineReader(settings)
    if reader.history.failure:
        emit(f"Warning: {reader.history.failure}", err=True)
    _print_preset_messages(session)
    commands = Commands(session, reader)
    while True:
        try:
            _read_and_handle(session, commands, reader)
        except KeyboardInterrupt:
            continue  # cancels what was running; the prompt stays
        except EOFError:
            emit()
            return
        except ExitRequested:
            return
        except NdaniError as error:
            emit(f"error: {error}")


def _read_and_handle(session: Session, commands: Commands, reader: LineReader) -> None:
    """Read one line and handle it."""
    try:
        text = reader.read()
    except KeyboardInterrupt:
        emit(help_texts.HOW_TO_EXIT)
        return
    if text.startswith(QUOTES):
        text = read_multiline(reader, text)
    elif text.startswith("/") and "\n" not in text:  # several lines are pasted text, such as code that begins with a comment
        commands.execute(text)
        return
    if text.strip():
        session.send(text)


def _print_preset_messages(session: Session) -> None:
    """Print the messages that are part of the model."""
    for message in session.preset_messages:
        writer = session.writer()
        if message["role"] == "user":
            writer.write(f">>> {message['content']}\n")
        elif message["role"] == "assistant":
            writer.write(f"{message['content']}\n\n")
        writer.close()
