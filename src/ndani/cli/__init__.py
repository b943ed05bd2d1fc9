"""The entry point of the command line: the table of commands, and the exit code of the program.

Each family of commands has a file (`run`, `models`, `show`, `server`, `doctor`, …); all talk to the server over HTTP only.
To add a command: a function with `cls=Command` in such a file, and a line in `commands()`. Modules are imported when they
are used, so that `ndani list` starts fast.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ndani.cli.command import CommandEntry, LazyGroup

#: The exit code that a shell reports for a program that SIGPIPE has ended: 128 + 13.
EXIT_BROKEN_PIPE = 141


def commands() -> dict[str, CommandEntry]:
    """Every command by name, in the order of the help text."""
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
        "shims": CommandEntry("ndani.cli.shims", "shims", "Answer to the names ollama, foundry and foundry-local"),
        "completion": CommandEntry("ndani.cli.completion", "completion", "Print what makes a shell complete ndani's words"),
        "help": CommandEntry("ndani.cli.about", "help_", "Help about any command"),
    }


def main(argv: list[str] | None = None, program: str = "ndani") -> int:
    """Run one command line (without the program's name) and return its exit code; every failure is reported as one sentence.

    `program` is the name that it was called by: `ndani`, or one of the shims (`shims`).

    Ctrl-C, Ctrl-\\, SIGTERM and SIGHUP unwind the stack; then the process ends by the same signal.
    """
    from ndani.cli.signals import Terminated, exit_by_signal, unwind_on_signals
    from ndani.errors import NdaniError

    unwind_on_signals()
    _reopen_closed_streams()
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a character that the encoding does not have becomes a question mark
    try:
        code = _run(sys.argv[1:] if argv is None else argv, program)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return exit_by_signal(signal.SIGINT)
    except Terminated as terminated:
        return exit_by_signal(terminated.number)
    except BrokenPipeError:
        return _exit_on_broken_pipe()
    except NdaniError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error))
    except Exception as error:
        if _debug_enabled():
            raise
        return _fail(f"ndani itself went wrong ({type(error).__name__}); NDANI_DEBUG=1 shows where")
    return code


def _reopen_closed_streams() -> None:
    """Open each closed standard stream (`>&-`) on the null device, in their order, so that no socket gets its file descriptor."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123 (it stays open until the process ends)


def _root(program: str) -> LazyGroup:
    if program in ("foundry", "foundry-local"):
        from ndani.cli.foundry import root as foundry_root

        return foundry_root(program)
    from ndani.cli.about import root

    return root(commands(), program)


def _run(argv: list[str], program: str) -> int:
    import click

    root_command = _root(program)
    if instruction := os.environ.get("_NDANI_COMPLETE"):
        from ndani.cli.completion import print_completions

        return print_completions(root_command, instruction)
    try:
        with root_command.make_context(program, list(argv)) as ctx:
            return int(root_command.invoke(ctx) or 0)
    except click.exceptions.Exit as exit_request:
        return exit_request.exit_code


def _debug_enabled() -> bool:
    from ndani.errors import NdaniError
    from ndani.settings import load

    try:
        return load().debug > 0
    except NdaniError:  # the settings are invalid
        return False


def _fail(message: str) -> int:
    from ndani.cli.output import emit

    with contextlib.suppress(OSError):
        sys.stdout.flush()
        emit(f"Error: {message}", err=True)
    return 1


def _exit_on_broken_pipe() -> int:
    # The interpreter flushes stdout at exit, which must not fail again.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_BROKEN_PIPE
