"""The command lines `foundry` and `foundry-local`, as the shims start them: Foundry Local's words for what the server does.

SDKs before version 1 find the server by `foundry service status`, and start it by `foundry service start`. `service` has the
server's commands, `models` those on models, `cache` those on the folder that holds them, `setup` what is left to other works.
"""

from __future__ import annotations

import click

from ndani import __version__
from ndani.cli.command import CommandEntry, LazyGroup
from ndani.cli.output import emit

_ENTRIES = {
    "service": CommandEntry("ndani.cli.foundry.service", "service", "Start, stop and look at the server"),
    "model": CommandEntry("ndani.cli.foundry.models", "model", "Find, download, load and run models", ("models",)),
    "cache": CommandEntry("ndani.cli.foundry.cache", "cache", "The folder of the models, and what is in it"),
}
_LOCAL_ENTRIES = {
    "init": CommandEntry("ndani.cli.foundry.setup", "init", "Make this user's folder"),
    "deploy": CommandEntry("ndani.cli.foundry.setup", "deploy", "Not in this version"),
}


def root(program: str) -> LazyGroup:
    """The root command of `foundry` or `foundry-local`."""

    @click.pass_context
    def show_help(ctx: click.Context, version: bool) -> None:
        if version:
            emit(f"{program} of ndani, version {__version__}")
            ctx.exit()
        if ctx.invoked_subcommand is None:
            emit(ctx.get_help())

    entries = _ENTRIES | (_LOCAL_ENTRIES if program == "foundry-local" else {})
    version_flag = click.Option(["-v", "--version"], is_flag=True, help="Show version information")
    return LazyGroup(name=program, entries=entries, help="Foundry Local's commands, on ndani", callback=show_help, params=[version_flag])


@click.pass_context
def show_group_help(ctx: click.Context) -> None:
    """The callback of a group: its help, where no command is given."""
    if ctx.invoked_subcommand is None:
        emit(ctx.get_help())
