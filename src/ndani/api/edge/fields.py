"""Typed readers for the fields of a decoded body: a value of the right type, or BadRequest with the field's name.

They know no dialect; fields that only Ollama has are in `ollama/request_fields`.
"""

from __future__ import annotations

from typing import Any

from ndani.errors import BadRequest


def text(body: dict[str, Any], name: str, default: str = "") -> str:
    """A string, or `default` where the field is missing."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise BadRequest(f"{name} must be a string")
    return value


def flag(body: dict[str, Any], name: str, default: bool) -> bool:
    """A boolean, or `default` where the field is missing."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise BadRequest(f"{name} must be true or false")
    return value


def record(body: dict[str, Any], name: str) -> dict[str, Any]:
    """An object, or an empty one where the field is missing."""
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest(f"{name} must be an object")
    return value


def array(body: dict[str, Any], name: str) -> list[Any]:
    """A list, or an empty one where the field is missing."""
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadRequest(f"{name} must be an array")
    return value


def model(body: dict[str, Any], *, exact: bool = False) -> str:
    """The model's name; the older field `name` is used where `model` is empty.

    Surrounding blanks are removed, as Ollama does where it only looks up a model. `exact` keeps them, for routes that create
    or remove something of this name.
    """
    name = text(body, "model") or text(body, "name")
    return name if exact else name.strip()
