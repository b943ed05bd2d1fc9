"""The description of all routes in OpenAPI 3.1, made of the types that the routes read and answer with."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from ndani import __version__
from ndani.api.edge.dialect import Dialect
from ndani.api.edge.faults import ErrorFormat
from ndani.api.edge.media_types import JSON
from ndani.api.edge.operation import DescribedRoute, Operation
from ndani.api.edge.running_requests import REQUEST_ID

_REASONS = {200: "Done", 201: "Made", 503: "Not now"}

#: A parameter in the path of a route, with Starlette's word for what it matches.
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")


def document(dialects: Sequence[Dialect], error_format: Callable[[str], ErrorFormat]) -> dict[str, Any]:
    """The whole description of these dialects; `error_format` says by its path how a request's errors look."""
    paths: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Any] = {}
    for dialect in dialects:
        types = _Schemas(dialect.name, (one for route in dialect.routes for one in _types(route.operation)))
        schemas |= types.components
        for route in dialect.routes:
            error_type = error_format(route.path).body_type
            errors = _Schemas(_home(error_type, dialect), [error_type])
            schemas |= errors.components
            path = _PARAMETER.sub(r"{\1}", route.path)
            paths.setdefault(path, {})[route.method.lower()] = _operation(route, dialect, types, errors.of(error_type))
    return {
        "openapi": "3.1.0",
        "info": {"title": "ndani", "version": __version__, "description": "A server of small language models on this machine."},
        "tags": [{"name": dialect.name, "description": dialect.title} for dialect in dialects],
        "paths": paths,
        "components": {"schemas": schemas, "headers": {REQUEST_ID: _REQUEST_ID_HEADER}},
    }


def _home(error_type: type, dialect: Dialect) -> str:
    """The name of the dialect that the type of an error is defined in: a path's errors may be another dialect's than its route."""
    package = error_type.__module__.split(".")
    return package[2] if package[:2] == ["ndani", "api"] else dialect.name


_REQUEST_ID_HEADER = {
    "description": "The id of this request: the one that its client chose in the same header, if it is valid, else a new one.",
    "required": True,
    "schema": {"type": "string"},
}


class _Schemas:
    """The JSON Schemas of some types. Each name begins with its dialect's: several have a Message."""

    def __init__(self, dialect: str, types: Iterable[Any]) -> None:
        self._types = list(types)
        template = f"#/components/schemas/{dialect}.{{name}}"
        self._found, components = msgspec.json.schema_components(self._types, ref_template=template)
        self.components = {f"{dialect}.{name}": schema for name, schema in sorted(components.items())}

    def of(self, wanted: Any) -> dict[str, Any]:
        """The schema of a type, or of any of several."""
        alternatives = [self._found[self._types.index(one)] for one in _each(wanted)]
        return alternatives[0] if len(alternatives) == 1 else {"anyOf": alternatives}


def _types(operation: Operation) -> Iterator[Any]:
    for wanted in (operation.body, operation.answer, operation.item, *operation.query.values(), *operation.failures.values()):
        yield from _each(wanted)


def _each(wanted: Any) -> tuple[Any, ...]:
    return () if wanted is None else wanted if isinstance(wanted, tuple) else (wanted,)


def _operation(route: DescribedRoute, dialect: Dialect, types: _Schemas, error: dict[str, Any]) -> dict[str, Any]:
    operation = route.operation
    described: dict[str, Any] = {
        "tags": [dialect.name],
        "summary": operation.summary,
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.path}").strip("_"),
        "parameters": [*_parameters(route, types)],
        "responses": _responses(operation, types, {} if route.method == "HEAD" else {JSON: {"schema": error}}),
    }
    if operation.body is not None:
        content = {"schema": types.of(operation.body)} if operation.body_media == JSON else {}
        described["requestBody"] = {"required": not operation.body_optional, "content": {operation.body_media: content}}
    return described


def _parameters(route: DescribedRoute, types: _Schemas) -> Iterator[dict[str, Any]]:
    for name in _PARAMETER.findall(route.path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    for name, wanted in route.operation.query.items():
        yield {"name": name, "in": "query", "required": False, "schema": types.of(wanted)}


def _responses(operation: Operation, types: _Schemas, error: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if operation.answer is not None:
        content[operation.answer_media] = {"schema": types.of(operation.answer)}
    if operation.item is not None:
        # OpenAPI 3.1 has no word for the items of a stream, so the schema of each stands in an extension.
        stream: dict[str, Any] = {"x-item-schema": types.of(operation.item)}
        content[operation.item_media] = stream
    responses = {str(status): _response(_REASONS[status], content) for status in operation.statuses}
    for status, wanted in operation.failures.items():
        responses[str(status)] = _response(_REASONS[status], {JSON: {"schema": types.of(wanted)}})
    responses["default"] = _response("An error", error)
    return responses


def _response(reason: str, content: Mapping[str, Any]) -> dict[str, Any]:
    response: dict[str, Any] = {"description": reason, "headers": {REQUEST_ID: {"$ref": f"#/components/headers/{REQUEST_ID}"}}}
    return response | ({"content": dict(content)} if content else {})
