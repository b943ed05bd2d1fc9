"""The models of GET /foundry/list at a terminal: the one that a user means, and those that a filter leaves. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ndani.errors import BadRequest

_URI_SCHEME = "ndani://"
_FILTERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "device": lambda model: str(model["runtime"]["deviceType"]),
    "provider": lambda model: str(model["runtime"]["executionProvider"]),
    "task": lambda model: str(model["task"]),
    "alias": lambda model: str(model["alias"]),
}


def choose(models: Sequence[dict[str, Any]], text: str) -> dict[str, Any] | None:
    """The model that an id, an id without version or an alias means; the first, where an alias has several."""
    wanted = text.lower()
    by_id = (model for model in models if wanted in (model["name"].lower(), model["name"].rpartition(":")[0].lower()))
    return next(by_id, next((model for model in models if model["alias"].lower() == wanted), None))


def name_of(models: Sequence[dict[str, Any]], text: str) -> str:
    """The name that the store has, or would have, for what a user means; a text that is in no list is that name itself."""
    model = choose(models, text)
    return str(model["uri"]).removeprefix(_URI_SCHEME) if model else text


def filtered(models: Sequence[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """The models that a filter leaves: `key=value`, `!` before the value turns it round, `*` at its end stands for anything.

    Raises BadRequest for an unknown key.
    """
    key, equals, value = text.partition("=")
    read = _FILTERS.get(key.strip().lower())
    if not equals or read is None:
        raise BadRequest(f"--filter is KEY=VALUE, and KEY is one of {', '.join(_FILTERS)}")
    value = value.strip().lower()
    negated, value = value.startswith("!"), value.removeprefix("!")
    if value.endswith("*"):
        return [model for model in models if read(model).lower().startswith(value[:-1]) != negated]
    return [model for model in models if (read(model).lower() == value) != negated]


def rows(models: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A row of the table for each model. Of a model that is not here, the size may be unknown."""
    return [
        (
            model["alias"],
            model["runtime"]["deviceType"],
            model["task"],
            f"{model['fileSizeMb']} MB" if model["fileSizeMb"] else "-",
            model["license"] or "-",
            "yes" if model.get("cached") else "no",
            model["name"],
        )
        for model in models
    ]


HEADER = ("ALIAS", "DEVICE", "TASK", "FILE SIZE", "LICENSE", "CACHED", "MODEL ID")
