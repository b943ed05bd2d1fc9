"""`foundry cache`: the folder that holds the models, and what is in it."""

from __future__ import annotations

import click

from ndani.cli import tables
from ndani.cli.autostart import connect_or_start
from ndani.cli.command import Command, CommandEntry, LazyGroup, exactly
from ndani.cli.foundry import catalogue, show_group_help
from ndani.cli.output import emit
from ndani.errors import BadRequest
from ndani.settings import load


@click.command("location", cls=Command, usage="location", arity=exactly(0), help="Show the folder of the models")
def location(args: tuple[str, ...]) -> None:
    """Print the folder that the server keeps models in."""
    status = connect_or_start(load()).request_json("GET", "/openai/status", required_field="modelDirPath")
    emit(f"Cache directory path: {status['modelDirPath']}")


@click.command("list", cls=Command, usage="list", arity=exactly(0), aliases=("ls",), help="List the models that are here")
def list_(args: tuple[str, ...]) -> None:
    """Print alias and id of each model in the store."""
    models = [model for model in connect_or_start(load()).request_records("/foundry/list") if model.get("cached")]
    emit(tables.columns(("ALIAS", "MODEL ID"), [(model["alias"], model["name"]) for model in models]), nl=False)


@click.command("remove", cls=Command, usage="remove MODEL", arity=exactly(1), aliases=("rm",), help="Remove a model from this machine")
def remove(args: tuple[str, ...]) -> None:
    """Unload a model, and remove it from the store."""
    from ndani.cli.models import remove_model

    client = connect_or_start(load())
    remove_model(client, catalogue.name_of(client.request_records("/foundry/list"), args[0]))
    emit(f"Removed model {args[0]} from the cache")


@click.command("cd", cls=Command, usage="cd FOLDER", arity=exactly(1), help="Change the folder of the models")
def cd(args: tuple[str, ...]) -> None:
    """Refuse: a server that runs keeps its folder."""
    raise BadRequest(
        f"set NDANI_MODELS={args[0]} (or models in ~/.ndani/config.toml) and start the server again; it keeps its folder while it runs"
    )


cache = LazyGroup(
    name="cache",
    entries={
        "location": CommandEntry(__name__, "location", "Show the folder of the models"),
        "list": CommandEntry(__name__, "list_", "List the models that are here", ("ls",)),
        "remove": CommandEntry(__name__, "remove", "Remove a model from this machine", ("rm",)),
        "cd": CommandEntry(__name__, "cd", "Change the folder of the models"),
    },
    help="The folder of the models, and what is in it",
    callback=show_group_help,
)
