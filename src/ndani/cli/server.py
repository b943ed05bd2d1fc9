"""Commands about the server itself: serve, ps, stop."""

from __future__ import annotations

import time
from dataclasses import Field
from typing import Any

import click

from ndani.cli import formatting, tables
from ndani.cli.client import ServerClient
from ndani.cli.command import Command, at_most, complete_file, complete_folder, exactly
from ndani.cli.config import written
from ndani.cli.models import print_json
from ndani.cli.output import emit
from ndani.errors import NotFound
from ndani.settings import Settings, load, parse_flag, server_fields, variables_of

#: What a flag's value is called in the help, by the type of the setting, and how a shell completes it, by its name.
_KINDS = {"int": "int", "float": "duration", "bool": "bool", "bool | None": "bool"}
_COMPLETED = {"models": complete_folder, "log_file": complete_file}


def _flags() -> list[click.Parameter]:
    return [
        click.Option(
            [f"--{s.name.replace('_', '-')}", s.name],
            help=f"{s.metadata['doc']}{_default(s)}",
            metavar=_KINDS.get(str(s.type)),
            shell_complete=_COMPLETED.get(s.name),
        )
        for s in server_fields()
    ]


def _default(setting: Field[Any]) -> str:
    """What is obeyed where nothing is said, unless it is nothing."""
    value = getattr(Settings(), setting.name)
    return f" (default {written(value)})" if value else ""


def _environment() -> list[tuple[str, str]]:
    others = {s.name: "".join(f"; {name} is read too" for name in variables_of(s)[1:]) for s in server_fields()}
    return [(variables_of(s)[0], s.metadata["doc"] + others[s.name]) for s in server_fields()]


def _serve(args: tuple[str, ...], **given: str | None) -> int:
    """Run the server until it is told to stop; a flag per setting, over environment and file."""
    from ndani.api.server import serve as run_server

    return run_server(load(flags={setting.name: parse_flag(setting, given[setting.name] or "") for setting in server_fields()}))


serve = Command(
    name="serve",
    usage="serve",
    takes=exactly(0),
    aliases=("start",),
    environment=_environment(),
    help="Start ndani",
    params=_flags(),
    callback=_serve,
)


@click.command("ps", cls=Command, usage="ps [PREFIX]", takes=at_most(1), help="List running models")
@click.option("--json", "as_json", is_flag=True, help="Print the API's answer as JSON")
def ps(args: tuple[str, ...], as_json: bool) -> None:
    """Print the models in memory."""
    answer = ServerClient(load()).models("/api/ps")
    prefix = args[0].lower() if args else ""
    models = [model for model in answer["models"] if model["name"].lower().startswith(prefix)]
    if as_json:
        return print_json(answer | {"models": models})
    now = time.time()
    rows = [
        (m["name"], m["digest"][:12], formatting.size(m["size"]), _processor(m), str(m.get("context_length", 0)), _until(m, now))
        for m in models
    ]
    return emit(tables.columns(("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"), rows), nl=False)


def _processor(model: dict[str, Any]) -> str:
    size, vram = model["size"], model.get("size_vram", 0)
    if not vram:
        words = "100% CPU"
    elif vram >= size:
        words = "100% GPU" if vram == size else "Unknown"
    else:
        share = round((size - vram) / size * 100)
        words = f"{share}%/{100 - share}% CPU/GPU"
    # A model that could reach the network is never listed as if it could not.
    return f"{words} (unconfined)" if model.get("confinement") == "unconfined" else words


def _until(model: dict[str, Any], now: float) -> str:
    expires = formatting.moment(model.get("expires_at") or "")
    return formatting.when(expires, now) if expires is not None and expires > now else "Stopping..."


@click.command("stop", cls=Command, usage="stop MODEL", takes=exactly(1), help="Stop a running model")
def stop(args: tuple[str, ...]) -> None:
    """Take a model out of memory."""
    try:
        ServerClient(load()).ask("POST", "/api/generate", {"model": args[0], "prompt": "", "keep_alive": 0}, holds="done")
    except NotFound:
        raise NotFound(f'couldn\'t find model "{args[0]}" to stop') from None
