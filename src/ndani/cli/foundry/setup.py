"""`foundry-local init`, and what is refused because it is not in this version."""

from __future__ import annotations

import click

from ndani.cli.command import Command, at_least, exactly
from ndani.cli.output import emit
from ndani.errors import BadRequest
from ndani.settings import home, load, make_home


@click.command("init", cls=Command, usage="init", arity=exactly(0), help="Make this user's folder")
def init(args: tuple[str, ...]) -> None:
    """Make the folder for settings, models and logs, and print both paths."""
    settings = load()
    make_home()
    emit(f"ndani keeps its settings and logs in {home()}, and models in {settings.models}")


@click.command(
    "deploy", cls=Command, usage="deploy", arity=at_least(0), context_settings={"ignore_unknown_options": True}, help="Not in this version"
)
def deploy(args: tuple[str, ...]) -> None:
    """Refuse: deployments are not in this version."""
    raise BadRequest("deployments are not in this version; `ndani serve` with the settings of docs/settings.md is what there is")
