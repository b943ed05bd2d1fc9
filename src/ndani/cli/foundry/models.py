"""`foundry model`: list, info, download, load, unload, run. Names may be aliases, ids with or without version, or ndani's own."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from ndani.cli import tables
from ndani.cli.autostart import connect_or_start
from ndani.cli.client import ServerClient
from ndani.cli.command import Command, CommandEntry, LazyGroup, at_least, exactly
from ndani.cli.foundry import catalogue, show_group_help
from ndani.cli.output import emit
from ndani.errors import BadRequest, NotFound
from ndani.settings import load as load_settings

_SIZES, _TYPES = ("tiny", "small", "medium", "large"), ("instruct", "base", "embedding")


@click.command("list", cls=Command, usage="list", arity=exactly(0), aliases=("ls",), help="List the models that can be used")
@click.option("--filter", "filter_", default="", metavar="KEY=VALUE", help="Only those with this device, provider, task or alias")
@click.option("--size", default="", type=click.Choice(("", *_SIZES)), metavar="string", help=f"Only those of a size: {', '.join(_SIZES)}")
@click.option("--type", "type_", default="", type=click.Choice(("", *_TYPES)), metavar="string", help=f"Only those: {', '.join(_TYPES)}")
def list_(args: tuple[str, ...], filter_: str, size: str, type_: str) -> None:
    """Print the models that are here, then those that can be downloaded."""
    models = _listed(_client())
    if filter_:
        models = catalogue.filtered(models, filter_)
    models = [m for m in models if (not size or m.get("sizeClass") == size) and (not type_ or m.get("type") == type_)]
    emit(tables.columns(catalogue.HEADER, catalogue.rows(models)), nl=False)


@click.command("info", cls=Command, usage="info MODEL", arity=exactly(1), help="Show information for a model")
@click.option("--license", "license_", is_flag=True, help="Show the text of the license")
def info(args: tuple[str, ...], license_: bool) -> None:
    """Print what the list has of one model, or its licence."""
    client = _client()
    models = _listed(client)
    model = catalogue.choose(models, args[0])
    if model is None:
        raise NotFound(f"no model is called {args[0]}; `foundry model list` shows them")
    if not license_:
        emit(tables.columns(catalogue.HEADER, catalogue.rows([model])), nl=False)
        return
    if not model.get("cached"):
        raise BadRequest(f"the license of {args[0]} is {model['license'] or 'not known'}; download the model to read its text")
    shown = client.request_json("POST", "/api/show", {"model": catalogue.name_of(models, args[0])})
    emit(str(shown.get("license") or f"the model {args[0]} comes without the text of a license"))


@click.command("download", cls=Command, usage="download MODEL", arity=exactly(1), aliases=("pull",), help="Download a model")
def download(args: tuple[str, ...]) -> None:
    """Pull a model into the store, with its progress on stderr."""
    from ndani.cli.models import pull_with_progress

    client = _client()
    pull_with_progress(client, catalogue.name_of(_listed(client), args[0]))


@click.command("load", cls=Command, usage="load MODEL", arity=exactly(1), help="Load a model into memory")
@click.option("--ttl", default="600", metavar="int", help="Seconds that it stays without a question")
def load(args: tuple[str, ...], ttl: str) -> None:
    """Load a model, and print its name."""
    if not (ttl.isascii() and ttl.isdecimal() and int(ttl) > 0):
        raise BadRequest("--ttl must be a number of seconds above 0")
    _client().request_empty("GET", f"/openai/load/{quote(args[0])}?ttl={ttl}")
    emit(f"Model {args[0]} loaded successfully")


@click.command("unload", cls=Command, usage="unload MODEL", arity=exactly(1), help="Unload a model from memory")
def unload(args: tuple[str, ...]) -> None:
    """Unload a model, and print its name."""
    ServerClient(load_settings()).request_empty("GET", f"/openai/unload/{quote(args[0])}?force=true")
    emit(f"Model {args[0]} was unloaded successfully")


@click.command("run", cls=Command, usage="run MODEL [PROMPT]", arity=at_least(1), help="Run a model; without a prompt, talk to it")
@click.option("--prompt", default="", help="The question")
def run(args: tuple[str, ...], prompt: str) -> int:
    """As `ndani run`, which downloads a model that is missing."""
    from ndani.cli.run import run as run_command

    client = _client()
    words = [catalogue.name_of(_listed(client), args[0]), *args[1:], *([prompt] if prompt else [])]
    with run_command.make_context("run", ["--", *words]) as ctx:
        return int(run_command.invoke(ctx) or 0)


@click.command("test", cls=Command, usage="test MODEL", arity=exactly(1), help="Not in this version")
@click.option("--benchmark", is_flag=True, help="Measure the speed")
def test(args: tuple[str, ...], benchmark: bool) -> None:
    """Refuse: measuring is not in this version."""
    raise BadRequest("models are not tested or measured in this version; `ndani run --verbose MODEL PROMPT` shows the speed of one answer")


def _client() -> ServerClient:
    return connect_or_start(load_settings())


def _listed(client: ServerClient) -> list[dict[str, Any]]:
    return client.request_records("/foundry/list")


model = LazyGroup(
    name="model",
    entries={
        "list": CommandEntry(__name__, "list_", "List the models that can be used", ("ls",)),
        "info": CommandEntry(__name__, "info", "Show information for a model"),
        "download": CommandEntry(__name__, "download", "Download a model", ("pull",)),
        "load": CommandEntry(__name__, "load", "Load a model into memory"),
        "unload": CommandEntry(__name__, "unload", "Unload a model from memory"),
        "run": CommandEntry(__name__, "run", "Run a model"),
        "test": CommandEntry(__name__, "test", "Not in this version"),
    },
    help="Find, download, load and run models",
    callback=show_group_help,
)
