"""`ndani config`: every setting, its value, and where the value comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ndani.cli import formatting, tables
from ndani.cli.command import Command, CommandEntry, LazyGroup, exactly
from ndani.cli.output import emit
from ndani.settings import fields, load, unsupported_variable_warnings

_CONFIG_VARIABLE = ("NDANI_CONFIG", "settings file (default ~/.ndani/config.toml)")


@click.command(
    "show", cls=Command, usage="show", arity=exactly(0), environment=(_CONFIG_VARIABLE,), help="Show each setting and where it came from"
)
def show(args: tuple[str, ...]) -> None:
    """Print each setting, its value and its origin: default, a variable's name, or the settings file."""
    settings = load()
    rows = [(s.name, format_value(getattr(settings, s.name)), settings.value_sources[s.name]) for s in fields()]
    emit(tables.columns(("SETTING", "VALUE", "FROM"), rows), nl=False)
    for sentence in unsupported_variable_warnings():
        emit(f"Warning: {sentence}", err=True)


def format_value(value: Any) -> str:
    """The value of a setting as a user writes it; `-` for one that is not set."""
    if value is None or value in ("", ()):
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):  # every setting of this type is a duration in seconds
        return formatting.duration(int(value * 1e9))
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value) if isinstance(value, str | int | Path) else repr(value)


@click.pass_context
def _show_help(ctx: click.Context) -> None:
    if ctx.invoked_subcommand is None:
        emit(ctx.get_help())


config = LazyGroup(
    name="config",
    entries={"show": CommandEntry("ndani.cli.config", "show", "Show each setting and where it came from")},
    help="Show the settings",
    callback=_show_help,
)
