"""What may stand in a place of a command line, by the command's own usage: names of models, commands, fixed words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

import click
from click.shell_completion import CompletionItem

from ndani import names
from ndani.errors import NdaniError

_PATIENCE = 2.0  # seconds for a server to say what models it has; then the store is read


def complete_args(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What may be the next word of a command, by its usage line."""
    places = str(getattr(ctx.command, "usage", "")).split()[1:]
    given = len(ctx.params.get("args") or ())
    place = places[min(given, len(places) - 1)] if places else ""
    if given >= len(places) and not place.endswith("...]"):
        return []
    return [CompletionItem(word) for word in sorted(set(_candidates(ctx, place.strip("[].")))) if word.startswith(incomplete)]


def _candidates(ctx: click.Context, place: str) -> Iterable[str]:
    if place in ("MODEL", "MODEL...", "SOURCE", "PREFIX"):
        return _models(running=ctx.info_name in ("stop", "ps"))
    if place == "command":
        root = ctx.find_root().command
        return root.list_commands(ctx) if isinstance(root, click.Group) else ()
    return place.split("|") if "|" in place else ()


def _models(*, running: bool) -> Sequence[str]:
    """Names of models: of the server that runs, else of the store."""
    from ndani.cli.client import ServerClient
    from ndani.settings import load

    settings = load()
    client = ServerClient(settings)
    with contextlib.suppress(NdaniError):
        if client.is_alive(_PATIENCE):
            found = client.list_models("/api/ps" if running else "/api/tags")["models"]
            return [model["name"] for model in found if _is_name(model["name"])]
    if running:
        return ()
    from ndani.store import Store

    return [str(name) for name in Store(settings.models).names()]


def _is_name(word: str) -> bool:
    # A shell puts it on the command line, where anything else could be a command of its own.
    try:
        names.parse(word)
    except NdaniError:
        return False
    return word == word.strip() and "//" not in word
