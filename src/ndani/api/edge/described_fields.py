"""Bodies as dictionaries that hold only what their description names: a parser cannot read a field that is not in the description.

For dialects whose fields are too lenient for `body_type`: any case, null for missing, sentences of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, ClassVar, get_args, get_type_hints

import msgspec
from starlette.requests import Request

from ndani.api.edge import request_body


class Open(msgspec.Struct):
    """A described object whose other fields are kept too: they are passed on, or named as ignored."""

    keeps_others: ClassVar[bool] = True


async def read(request: Request, body_type: type[msgspec.Struct]) -> dict[str, Any]:
    """The body of a request with the fields of `body_type` alone, their names in lower case. Raises as `request_body.decode`."""
    return only_described(await request_body.decode(request), body_type)


def only_described(body: Mapping[str, Any], body_type: type[msgspec.Struct]) -> dict[str, Any]:
    """The fields that `body_type` names, in lower case, and so on in the objects inside it. Values of a wrong type stay as they are."""
    fields = _fields(body_type)
    return {name: _described(value, fields[name]) for key, value in body.items() if (name := key.lower()) in fields}


def _described(value: Any, body_type: type[msgspec.Struct] | None) -> Any:
    if body_type is None:
        return value
    if isinstance(value, dict):
        return only_described(value, body_type)
    return [_described(member, body_type) for member in value] if isinstance(value, list) else value


@cache
def _fields(body_type: type[msgspec.Struct]) -> dict[str, type[msgspec.Struct] | None]:
    """The name of each field as in JSON, with the type of the objects in it, if they are to be looked into."""
    hints = get_type_hints(body_type)
    return {
        field.encode_name: next((inner for inner in _structs(hints[field.name]) if not issubclass(inner, Open)), None)
        for field in msgspec.structs.fields(body_type)
    }


def _structs(hint: Any) -> Iterator[type[msgspec.Struct]]:
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        yield hint
    for inner in get_args(hint):
        yield from _structs(inner)
