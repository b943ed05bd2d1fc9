"""The interactive prompt of `ndani run`: lines become messages or commands, until the user leaves.

`line` reads, `commands` obeys what begins with a slash, `session` talks to the server, `help_texts` is the help.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ndani.cli.output import emit
from ndani.cli.repl import help_texts
from ndani.cli.repl.commands import QUOTES, Commands, Leave, gather
from ndani.cli.repl.line_reader import LineReader
from ndani.cli.repl.session import Session
from ndani.errors import NdaniError
from ndani.settings import Settings


def converse(settings: Settings, said: Mapping[str, Any], *, verbose: bool, wordwrap: bool, insecure: bool) -> None:
    """Talk with a model until Ctrl-D or /bye. `said` is what every request says, the model's name among it.

    Raises what the server says when the model cannot be loaded (one that is not here is pulled first).
    """
    session = Session(settings, said, verbose=verbose, wordwrap=wordwrap)
    session.open(session.model, insecure=insecure)
    line = LineReader(settings)
    if line.history.lost:
        emit(f"Warning: {line.history.lost}", err=True)
    _recall(session)
    commands = Commands(session, line)
    while True:
        try:
            _turn(session, commands, line)
        except KeyboardInterrupt:
            continue  # whatever was under way is given up; the prompt stays
        except EOFError:
            emit()
            return
        except Leave:
            return
        except NdaniError as error:
            emit(f"error: {error}")


def _turn(session: Session, commands: Commands, line: LineReader) -> None:
    """One line and what it leads to."""
    try:
        text = line.read()
    except KeyboardInterrupt:
        emit(help_texts.LEAVE)
        return
    if text.startswith(QUOTES):
        text = gather(line, text)
    elif text.startswith("/") and "\n" not in text:  # of several lines is a paste, such as code that begins with a comment
        commands.obey(text)
        return
    if text.strip():
        session.say(text)


def _recall(session: Session) -> None:
    """Show the conversation that the model brings with it."""
    for turn in session.before:
        writer = session.writer()
        if turn["role"] == "user":
            writer.write(f">>> {turn['content']}\n")
        elif turn["role"] == "assistant":
            writer.write(f"{turn['content']}\n\n")
        writer.close()
