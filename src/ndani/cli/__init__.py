"""The command line's door: which commands there are, and how a run of the program ends.

The commands live one family to a file (`run`, `models`, `show`, `server`, `doctor`) and talk to the server over HTTP
only. To add one: a function with `cls=Verb` in such a file, and a line in `commands()`. Nothing is imported before it
is needed, for `ndani list` should be there at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ndani.cli.command import CommandEntry

#: What a shell reports for a program whose reader has left.
READER_LEFT = 141


def commands() -> dict[str, CommandEntry]:
    """Every command by name, in the order the help shows them."""
    from ndani.cli.command import CommandEntry

    return {
        "serve": CommandEntry("ndani.cli.server", "serve", "Start ndani", ("start",)),
        "create": CommandEntry("ndani.cli.create", "create", "Create a model"),
        "show": CommandEntry("ndani.cli.show", "show", "Show information for a model"),
        "run": CommandEntry("ndani.cli.run", "run", "Run a model"),
        "stop": CommandEntry("ndani.cli.server", "stop", "Stop a running model"),
        "pull": CommandEntry("ndani.cli.models", "pull", "Pull a model from its source"),
        "push": CommandEntry("ndani.cli.models", "push", "Push a model to a registry"),
        "list": CommandEntry("ndani.cli.models", "list_", "List models", ("ls",)),
        "ps": CommandEntry("ndani.cli.server", "ps", "List running models"),
        "cp": CommandEntry("ndani.cli.models", "cp", "Copy a model"),
        "rm": CommandEntry("ndani.cli.models", "rm", "Remove a model"),
        "verify": CommandEntry("ndani.cli.maintenance", "verify", "Check that the files of models are whole"),
        "prune": CommandEntry("ndani.cli.maintenance", "prune", "Remove files that no model needs"),
        "mirror": CommandEntry("ndani.cli.mirror", "mirror", "Let others pull the models of this store"),
        "doctor": CommandEntry("ndani.cli.doctor", "doctor", "Check this machine, and that a running model cannot get out"),
        "config": CommandEntry("ndani.cli.config", "config", "Show the settings"),
        "completion": CommandEntry("ndani.cli.completion", "completion", "Print what makes a shell complete ndani's words"),
        "help": CommandEntry("ndani.cli.about", "help_", "Help about any command"),
    }


def main(argv: list[str] | None = None) -> int:
    """Run one command line (without the program's name) and return its exit code; every failure becomes one sentence.

    Ctrl-C, Ctrl-\\, SIGTERM and SIGHUP end the process by that very signal, once everything is as it was.
    """
    from ndani.cli.signals import Terminated, end_by, unwind_on_signals
    from ndani.errors import NdaniError

    unwind_on_signals()
    _open_closed()
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a letter, or typed no letter, has a question mark
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return end_by(signal.SIGINT)
    except Terminated as ended:
        return end_by(ended.number)
    except BrokenPipeError:
        return _leave_quietly()
    except NdaniError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error))
    except Exception as error:
        if _debugging():
            raise
        return _fail(f"ndani itself went wrong ({type(error).__name__}); NDANI_DEBUG=1 shows where")
    return code


def _open_closed() -> None:
    """Give each standard stream that was closed (`>&-`) one that leads nowhere, in their order, so that no socket takes its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123 (it is for the whole process)


def _run(argv: list[str]) -> int:
    import click

    from ndani.cli.about import root

    door = root(commands())
    if asked := os.environ.get("_NDANI_COMPLETE"):
        from ndani.cli.completion import answer

        return answer(door, asked)
    try:
        with door.make_context("ndani", list(argv)) as ctx:
            return int(door.invoke(ctx) or 0)
    except click.exceptions.Exit as left:
        return left.exit_code


def _debugging() -> bool:
    from ndani.errors import NdaniError
    from ndani.settings import load

    try:
        return load().debug > 0
    except NdaniError:  # the settings themselves cannot be used
        return False


def _fail(sentence: str) -> int:
    from ndani.cli.output import emit

    with contextlib.suppress(OSError):
        sys.stdout.flush()
        emit(f"Error: {sentence}", err=True)
    return 1


def _leave_quietly() -> int:
    # The interpreter flushes stdout once more on its way out; there must be something that takes it.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return READER_LEFT
