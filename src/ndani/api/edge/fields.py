"""Reading a decoded body, field by field: the right type, or one sentence that names the field."""

from __future__ import annotations

from typing import Any

from ndani.errors import BadRequest


def text(body: dict[str, Any], name: str, default: str = "") -> str:
    """A string, or `default` where there is none."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise BadRequest(f"{name} must be a string")
    return value


def flag(body: dict[str, Any], name: str, default: bool) -> bool:
    """A boolean, or `default` where there is none."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise BadRequest(f"{name} must be true or false")
    return value


def record(body: dict[str, Any], name: str) -> dict[str, Any]:
    """An object, or an empty one where there is none."""
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest(f"{name} must be an object")
    return value


def array(body: dict[str, Any], name: str) -> list[Any]:
    """A list, or an empty one where there is none."""
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadRequest(f"{name} must be an array")
    return value


def model(body: dict[str, Any], *, exact: bool = False) -> str:
    """The model's name; the older field `name` counts where `model` is empty.

    Blanks around it are cut off, as Ollama does where a model is only looked for; `exact` leaves them, for routes that make
    or remove what has this name.
    """
    name = text(body, "model") or text(body, "name")
    return name if exact else name.strip()
