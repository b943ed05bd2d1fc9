"""Commands on the models of the store: list, pull, push, cp, rm. (`show` is in `show.py`.)"""

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
    """Print an answer of the API, indented."""
    emit(json.dumps(value, indent=2, ensure_ascii=False))


@click.command("list", cls=Command, usage="list [PREFIX]", arity=at_most(1), aliases=("ls",), help="List models")
@click.option("--json", "as_json", is_flag=True, help="Print the API's answer as JSON")
def list_(args: tuple[str, ...], as_json: bool) -> None:
    """Print the models of the store, newest first."""
    response = ServerClient(load()).list_models("/api/tags")
    prefix = args[0] if args else ""
    if as_json:
        return print_json(response | {"models": _with_prefix(response["models"], prefix)})
    return emit(model_table(response["models"], prefix), nl=False)


def model_table(models: list[dict[str, Any]], prefix: str = "") -> str:
    """A table of the models whose name begins with `prefix`, in the order of the API."""
    models, now = _with_prefix(models, prefix), time.time()
    rows = [
        (m["name"], m["digest"][:12], formatting.size(m["size"]), formatting.relative_time(formatting.parse_time(m["modified_at"]), now))
        for m in models
    ]
    return tables.columns(("NAME", "ID", "SIZE", "MODIFIED"), rows)


def _with_prefix(models: list[dict[str, Any]], prefix: str) -> list[dict[str, Any]]:
    return [model for model in models if model["name"].lower().startswith(prefix.lower())]


@click.command("pull", cls=Command, usage="pull MODEL", arity=exactly(1), help="Pull a model from its source")
@click.option("--insecure", is_flag=True, help="Use an insecure registry")
def pull(args: tuple[str, ...], insecure: bool) -> None:
    """Pull a model into the store, with its progress on stderr."""
    from ndani.cli.autostart import connect_or_start

    pull_with_progress(connect_or_start(load()), args[0], insecure=insecure)


def pull_with_progress(client: ServerClient, model: str, *, insecure: bool = False) -> None:
    """Have the server pull a model, and show the progress. On Ctrl-C, prints how to resume and raises KeyboardInterrupt.

    Raises BadName, and the error that the server reports.
    """
    from ndani.cli import progress

    names.parse(model)
    events = client.stream("/api/pull", {"model": model} | ({"insecure": True} if insecure else {}))
    # Shown before the request: the server may answer at once that the model does not exist, without any event.
    first_events = [{"status": "pulling manifest"}]
    try:
        with contextlib.closing(events):
            progress.follow(
                itertools.chain(first_events, events), f"the pull of {model} ended before it was complete; pull it again to resume"
            )
    except KeyboardInterrupt:
        emit(f"the pull of {model} was stopped; `ndani pull {model}` resumes where it was", err=True)
        raise


@click.command("push", cls=Command, usage="push MODEL", arity=exactly(1), help="Push a model to a registry")
@click.option("--insecure", is_flag=True, help="Use an insecure registry")
def push(args: tuple[str, ...], insecure: bool) -> None:
    """Push a model to the registry in its name, with its progress on stderr."""
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
    """Copy a model to a second name."""
    source, destination = args
    ServerClient(load()).request_empty("POST", "/api/copy", {"source": source, "destination": destination})
    emit(f"copied '{source}' to '{destination}'")


@click.command("rm", cls=Command, usage="rm MODEL [MODEL...]", arity=at_least(1), help="Remove a model")
def rm(args: tuple[str, ...]) -> None:
    """Unload models from memory and remove them; stops at the first that cannot be removed."""
    client = ServerClient(load())
    for name in args:
        remove_model(client, name)
        emit(f"deleted '{name}'")


def remove_model(client: ServerClient, name: str) -> None:
    """Have the server unload a model and remove it."""
    with contextlib.suppress(NotFound):  # the delete request below reports it
        client.request_json("POST", "/api/generate", {"model": name, "prompt": "", "keep_alive": 0}, required_field="done")
    client.request_empty("DELETE", "/api/delete", {"model": name})
