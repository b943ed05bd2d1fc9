"""Bodies as typed objects: a dialect declares what it reads as a msgspec Struct, which is also what its OpenAPI description is made of.

Fields that a Struct does not name are ignored. A wrong type is one sentence with the path of the field.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from ndani.errors import BadRequest

T = TypeVar("T")

#: msgspec's error, in its parts: what it expected, what it got, and where.
_MISMATCH = re.compile(r"Expected `(?P<want>[^`]+)`(?P<rest>.*?)(?:, got `(?P<got>[^`]+)`)?(?: - at `(?P<path>[^`]+)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]+)`(?: - at `(?P<path>[^`]+)`)?")
_INVALID = re.compile(r"Invalid (?:enum )?value .*?(?: - at `(?P<path>[^`]+)`)?", re.DOTALL)

_TYPES = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "object": "an object",
    "array": "an array",
    "null": "null",
}


def convert(body: dict[str, Any], body_type: type[T]) -> T:
    """A decoded body as an object of `body_type`. Raises BadRequest that names the field and never quotes its value."""
    try:
        return msgspec.convert(body, body_type)
    except msgspec.ValidationError as error:
        raise BadRequest(_sentence(str(error))) from None


def _sentence(problem: str) -> str:
    if missing := _MISSING.fullmatch(problem):
        return f"{_name(missing['path'], missing['name'])} is required"
    if mismatch := _MISMATCH.fullmatch(problem):
        kinds = [_TYPES.get(kind.strip(), kind.strip()) for kind in mismatch["want"].split("|")]
        wanted = " or ".join(kind for kind in kinds if kind != "null" or len(kinds) == 1)
        return f"{_name(mismatch['path'])} must be {wanted}{mismatch['rest']}"
    if invalid := _INVALID.fullmatch(problem):
        return f"{_name(invalid['path'])} has a value that is not one of those allowed"
    return "the request body does not have the form that this route reads"


def _name(path: str | None, field: str = "") -> str:
    """The path of a field as its user knows it: `messages[...].content`, without msgspec's `$`."""
    name = ".".join(part for part in ((path or "").removeprefix("$").lstrip("."), field) if part)
    return name or "the request body"
