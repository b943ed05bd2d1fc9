"""Commands about the models on this disk: list, pull, push, cp, rm. (`show` has a file of its own.)"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from typing import Any

import click

from ndani import names
from ndani.cli import formatting, tables
from ndani.cli.client import ServerClient
from ndani.cli.command import Command, at_least, at_most, exactly
from ndani.cli.output import emit
from ndani.errors import NotFound
from ndani.settings import load


def print_json(value: Any) -> None:
    """An answer of the API as it came, indented."""
    emit(json.dumps(value, indent=2, ensure_ascii=False))


@click.command("list", cls=Command, usage="list [PREFIX]", arity=at_most(1), aliases=("ls",), help="List models")
@click.option("--json", "as_json", is_flag=True, help="Print the API's answer as JSON")
def list_(args: tuple[str, ...], as_json: bool) -> None:
    """Print the models of the store, newest first."""
    answer = ServerClient(load()).list_models("/api/tags")
    prefix = args[0] if args else ""
    if as_json:
        return print_json(answer | {"models": _beginning(answer["models"], prefix)})
    return emit(listing(answer["models"], prefix), nl=False)


def listing(models: list[dict[str, Any]], prefix: str = "") -> str:
    """A table of models as the API lists them: those whose name begins with `prefix`."""
    models, now = _beginning(models, prefix), time.time()
    rows = [
        (m["name"], m["digest"][:12], formatting.size(m["size"]), formatting.when(formatting.moment(m["modified_at"]), now)) for m in models
    ]
    return tables.columns(("NAME", "ID", "SIZE", "MODIFIED"), rows)


def _beginning(models: list[dict[str, Any]], prefix: str) -> list[dict[str, Any]]:
    return [model for model in models if model["name"].lower().startswith(prefix.lower())]


@click.command("pull", cls=Command, usage="pull MODEL", arity=exactly(1), help="Pull a model from its source")
@click.option("--insecure", is_flag=True, help="Use an insecure registry")
def pull(args: tuple[str, ...], insecure: bool) -> None:
    """Bring a model into the store, with its progress on stderr."""
    from ndani.cli.autostart import connect_or_start

    fetch(connect_or_start(load()), args[0], insecure=insecure)


def fetch(client: ServerClient, model: str, *, insecure: bool = False) -> None:
    """Ask the server for a pull and show how it gets on. Ctrl-C says that it can be resumed and raises on.

    Raises BadName, and what the server answers."""
    from ndani.cli import progress

    names.parse(model)
    events = client.stream("/api/pull", {"model": model} | ({"insecure": True} if insecure else {}))
    # Said before the server is asked: it may know at once that there is no such model, and then no event comes.
    begun = [{"status": "pulling manifest"}]
    try:
        with contextlib.closing(events):
            progress.follow(itertools.chain(begun, events), f"the pull of {model} ended before it was complete; pull it again to resume")
    except KeyboardInterrupt:
        emit(f"the pull of {model} was stopped; `ndani pull {model}` resumes where it was", err=True)
        raise


@click.command("push", cls=Command, usage="push MODEL", arity=exactly(1), help="Push a model to a registry")
@click.option("--insecure", is_flag=True, help="Use an insecure registry")
def push(args: tuple[str, ...], insecure: bool) -> None:
    """Send a model to the registry that its name says, with its progress on stderr."""
    from ndani.cli import progress
    from ndani.cli.autostart import connect_or_start

    model = args[0]
    names.parse(model)
    events = connect_or_start(load()).stream("/api/push", {"model": model} | ({"insecure": True} if insecure else {}))
    try:
        with contextlib.closing(events):
            progress.follow(events, f"the push of {model} ended before it was complete; push it again to resume")
    except KeyboardInterrupt:
        emit(f"the push of {model} was stopped; `ndani push {model}` resumes where it was", err=True)
        raise


@click.command("cp", cls=Command, usage="cp SOURCE DESTINATION", arity=exactly(2), help="Copy a model")
def cp(args: tuple[str, ...]) -> None:
    """Give a model a second name."""
    source, destination = args
    ServerClient(load()).request_empty("POST", "/api/copy", {"source": source, "destination": destination})
    emit(f"copied '{source}' to '{destination}'")


@click.command("rm", cls=Command, usage="rm MODEL [MODEL...]", arity=at_least(1), help="Remove a model")
def rm(args: tuple[str, ...]) -> None:
    """Remove models, out of memory first; stops at the first that cannot be removed."""
    client = ServerClient(load())
    for name in args:
        with contextlib.suppress(NotFound):  # the delete below says it, in its own words
            client.request_json("POST", "/api/generate", {"model": name, "prompt": "", "keep_alive": 0}, required_field="done")
        client.request_empty("DELETE", "/api/delete", {"model": name})
        emit(f"deleted '{name}'")
