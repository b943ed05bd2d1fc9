"""Commands about the server itself: serve, ps, stop."""

from __future__ import annotations

import time
from dataclasses import Field
from typing import Any

import click

from ndani.cli import formatting, tables
from ndani.cli.client import ServerClient
from ndani.cli.command import Command, at_most, complete_file, complete_folder, exactly
from ndani.cli.config import format_value
from ndani.cli.models import print_json
from ndani.cli.output import emit
from ndani.errors import NotFound
from ndani.settings import Settings, load, parse_flag, server_fields, variables_of

#: The type of a flag's value in the help, by the type of the setting; and its shell completion, by the name of the setting.
_VALUE_TYPES = {"int": "int", "float": "duration", "bool": "bool", "bool | None": "bool"}
_COMPLETIONS = {"models": complete_folder, "log_file": complete_file}


def _flags() -> list[click.Parameter]:
    return [
        click.Option(
            [f"--{s.name.replace('_', '-')}", s.name],
            help=f"{s.metadata['doc']}{_default(s)}",
            metavar=_VALUE_TYPES.get(str(s.type)),
            shell_complete=_COMPLETIONS.get(s.name),
        )
        for s in server_fields()
    ]


def _default(setting: Field[Any]) -> str:
    """The default in the help text of a flag; empty where the default is empty."""
    value = getattr(Settings(), setting.name)
    return f" (default {format_value(value)})" if value else ""


def _environment() -> list[tuple[str, str]]:
    other_names = {s.name: "".join(f"; {name} is read too" for name in variables_of(s)[1:]) for s in server_fields()}
    return [(variables_of(s)[0], s.metadata["doc"] + other_names[s.name]) for s in server_fields()]


def _serve(args: tuple[str, ...], **flags: str | None) -> int:
    """Run the server until a signal stops it. A flag takes precedence over environment and file."""
    from ndani.api.server import serve as run_server

    return run_server(load(flags={setting.name: parse_flag(setting, flags[setting.name] or "") for setting in server_fields()}))


serve = Command(
    name="serve",
    usage="serve",
    arity=exactly(0),
    aliases=("start",),
    environment=_environment(),
    help="Start ndani",
    params=_flags(),
    callback=_serve,
)


@click.command("ps", cls=Command, usage="ps [PREFIX]", arity=at_most(1), help="List running models")
@click.option("--json", "as_json", is_flag=True, help="Print the API's answer as JSON")
def ps(args: tuple[str, ...], as_json: bool) -> None:
    """Print the models that are loaded in memory."""
    response = ServerClient(load()).list_models("/api/ps")
    prefix = args[0].lower() if args else ""
    models = [model for model in response["models"] if model["name"].lower().startswith(prefix)]
    if as_json:
        return print_json(response | {"models": models})
    now = time.time()
    rows = [
        (m["name"], m["digest"][:12], formatting.size(m["size"]), _processor(m), str(m.get("context_length", 0)), _until(m, now))
        for m in models
    ]
    return emit(tables.columns(("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"), rows), nl=False)


def _processor(model: dict[str, Any]) -> str:
    size, vram = model["size"], model.get("size_vram", 0)
    if not vram:
        placement = "100% CPU"
    elif vram >= size:
        placement = "100% GPU" if vram == size else "Unknown"
    else:
        cpu_percent = round((size - vram) / size * 100)
        placement = f"{cpu_percent}%/{100 - cpu_percent}% CPU/GPU"
    # A model that could reach the network must be visible as such.
    return f"{placement} (unconfined)" if model.get("confinement") == "unconfined" else placement


def _until(model: dict[str, Any], now: float) -> str:
    expires = formatting.parse_time(model.get("expires_at") or "")
    return formatting.relative_time(expires, now) if expires is not None and expires > now else "Stopping..."


@click.command("stop", cls=Command, usage="stop MODEL", arity=exactly(1), help="Stop a running model")
def stop(args: tuple[str, ...]) -> None:
    """Unload a model from memory."""
    try:
        ServerClient(load()).request_json("POST", "/api/generate", {"model": args[0], "prompt": "", "keep_alive": 0}, required_field="done")
    except NotFound:
        raise NotFound(f'couldn\'t find model "{args[0]}" to stop') from None
