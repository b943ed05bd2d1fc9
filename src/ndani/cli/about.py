"""What the program says of itself: its version, its help, and the root command that both hang on."""

from __future__ import annotations

from collections.abc import Mapping

import click

from ndani import __version__
from ndani.cli.command import Command, CommandEntry, LazyGroup
from ndani.cli.output import emit
from ndani.errors import BadRequest, Failed


def root(entries: Mapping[str, CommandEntry]) -> LazyGroup:
    """`ndani` itself: with no command it shows its help."""

    @click.pass_context
    def start(ctx: click.Context, version: bool) -> None:
        if version:
            _print_version()
            ctx.exit()
        if ctx.invoked_subcommand is None:
            emit(ctx.get_help())

    flag = click.Option(["-v", "--version"], is_flag=True, help="Show version information")
    return LazyGroup(name="ndani", entries=entries, help="Small language models inside your own walls", callback=start, params=[flag])


def _print_version() -> None:
    from ndani.cli.client import ServerClient
    from ndani.settings import load

    server, client = "", ServerClient(load())
    try:
        answer = client.request_json("GET", "/api/version")
        # `version` is the level of Ollama's API; a server of ours says its own version beside it.
        server = str(answer.get("ndani") or answer.get("version") or "")
    except Failed:  # nobody there, or nobody of ours
        emit("Warning: could not connect to a running ndani instance")
    if server:
        emit(f"ndani version is {server}")
    if server != __version__:
        emit(f"Warning: client version is {__version__}")


@click.command("help", cls=Command, usage="help [command]", arity=(0, None), environment=(), help="Help about any command")
@click.pass_context
def help_(ctx: click.Context, args: tuple[str, ...]) -> None:
    """Print the help of a command, or of `ndani` itself."""
    at: click.Context = ctx.find_root()
    for word in args:
        found = at.command.get_command(at, word) if isinstance(at.command, LazyGroup) else None
        if found is None:
            raise BadRequest(f'unknown help topic "{" ".join(args)}"; `ndani help` lists the commands')
        at = click.Context(found, info_name=found.name, parent=at)
    emit(at.command.get_help(at))
