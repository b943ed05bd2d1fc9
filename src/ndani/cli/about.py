"""The root command `ndani`, its version and its help."""

from __future__ import annotations

from collections.abc import Mapping

import click

from ndani import OLLAMA_API, __version__
from ndani.cli.command import Command, CommandEntry, LazyGroup
from ndani.cli.output import emit
from ndani.errors import BadRequest, Failed


def root(entries: Mapping[str, CommandEntry], program: str = "ndani") -> LazyGroup:
    """The root command; without a subcommand it shows the help. As `ollama` it also states the version of Ollama's that it answers for."""

    @click.pass_context
    def show_help(ctx: click.Context, version: bool) -> None:
        if version:
            if program == "ollama":  # scripts read this line
                emit(f"ollama version is {OLLAMA_API}")
            _print_version()
            ctx.exit()
        if ctx.invoked_subcommand is None:
            emit(ctx.get_help())

    version_flag = click.Option(["-v", "--version"], is_flag=True, help="Show version information")
    return LazyGroup(
        name=program, entries=entries, help="Small language models inside your own walls", callback=show_help, params=[version_flag]
    )


def _print_version() -> None:
    from ndani.cli.client import ServerClient
    from ndani.settings import load

    server, client = "", ServerClient(load())
    try:
        response = client.request_json("GET", "/api/version")
        # `version` is the version of Ollama's API; an ndani server has its own version in `ndani`.
        server = str(response.get("ndani") or response.get("version") or "")
    except Failed:  # no server, or not an ndani server
        emit("Warning: could not connect to a running ndani instance")
    if server:
        emit(f"ndani version is {server}")
    if server != __version__:
        emit(f"Warning: client version is {__version__}")


@click.command("help", cls=Command, usage="help [command]", arity=(0, None), environment=(), help="Help about any command")
@click.pass_context
def help_(ctx: click.Context, args: tuple[str, ...]) -> None:
    """Print the help of a command, or of `ndani`."""
    context: click.Context = ctx.find_root()
    for name in args:
        command = context.command.get_command(context, name) if isinstance(context.command, LazyGroup) else None
        if command is None:
            raise BadRequest(f'unknown help topic "{" ".join(args)}"; `ndani help` lists the commands')
        context = click.Context(command, info_name=command.name, parent=context)
    emit(context.command.get_help(context))
