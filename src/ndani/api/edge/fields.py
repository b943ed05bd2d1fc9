"""Typed readers for the fields of a decoded body: a value of the right type, or BadRequest with the field's name.

They know no dialect; fields that only Ollama has are in `ollama/request_fields`.
"""

from __future__ import annotations

from typing import Any, TypeVar

from ndani.errors import BadRequest

T = TypeVar("T")


def text(body: dict[str, Any], name: str, default: str = "") -> str:
    """A string, or `default` where the field is missing."""
    return _of_type(body, name, str, default, "a string")


def flag(body: dict[str, Any], name: str, default: bool) -> bool:
    """A boolean, or `default` where the field is missing."""
    return _of_type(body, name, bool, default, "true or false")


def record(body: dict[str, Any], name: str) -> dict[str, Any]:
    """An object, or an empty one where the field is missing."""
    return _of_type(body, name, dict, {}, "an object")


def array(body: dict[str, Any], name: str) -> list[Any]:
    """A list, or an empty one where the field is missing."""
    return _of_type(body, name, list, [], "an array")


def model(body: dict[str, Any], *, exact: bool = False) -> str:
    """The model's name; the older field `name` is used where `model` is empty.

    Surrounding blanks are removed, as Ollama does where it only looks up a model. `exact` keeps them, for routes that create
    or remove something of this name.
    """
    name = text(body, "model") or text(body, "name")
    return name if exact else name.strip()


def _of_type(body: dict[str, Any], name: str, kind: type[T], default: T, description: str) -> T:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise BadRequest(f"{name} must be {description}")
    return value
