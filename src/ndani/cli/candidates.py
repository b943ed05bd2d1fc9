"""Completions of an argument, by its placeholder in the usage line: names of models, commands, fixed words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

import click
from click.shell_completion import CompletionItem

from ndani import names
from ndani.cli.command import Command
from ndani.errors import NdaniError

_TIMEOUT_S = 2.0  # a server that does not answer in time is not asked for its models; the store is read


def complete_args(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the next argument of a command, by its usage line."""
    placeholders = ctx.command.usage.split()[1:] if isinstance(ctx.command, Command) else []
    argument_count = len(ctx.params.get("args") or ())
    placeholder = placeholders[min(argument_count, len(placeholders) - 1)] if placeholders else ""
    if argument_count >= len(placeholders) and not placeholder.endswith("...]"):
        return []
    return [CompletionItem(word) for word in sorted(set(_words_for(ctx, placeholder.strip("[].")))) if word.startswith(incomplete)]


def _words_for(ctx: click.Context, placeholder: str) -> Iterable[str]:
    if placeholder in ("MODEL", "MODEL...", "SOURCE", "PREFIX"):
        return _model_names(running=ctx.info_name in ("stop", "ps"))
    if placeholder == "command":
        root = ctx.find_root().command
        return root.list_commands(ctx) if isinstance(root, click.Group) else ()
    return placeholder.split("|") if "|" in placeholder else ()


def _model_names(*, running: bool) -> Sequence[str]:
    """Names of models: from the running server, else from the store."""
    from ndani.cli.client import ServerClient
    from ndani.settings import load

    settings = load()
    client = ServerClient(settings)
    with contextlib.suppress(NdaniError):
        if client.is_alive(_TIMEOUT_S):
            listed = client.list_models("/api/ps" if running else "/api/tags")["models"]
            return [model["name"] for model in listed if _is_safe_name(model["name"])]
    if running:
        return ()
    from ndani.store import Store

    return [str(name) for name in Store(settings.models).names()]


def _is_safe_name(name: str) -> bool:
    # The shell inserts the name into the command line, where other text could be shell syntax.
    try:
        names.parse(name)
    except NdaniError:
        return False
    return name == name.strip() and "//" not in name
