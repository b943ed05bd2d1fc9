"""The description of all routes in OpenAPI 3.1, made of the types that the routes read and answer with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from ndani import __version__
from ndani.api.edge.operation import JSON, Description, Operation
from ndani.api.edge.running_requests import REQUEST_ID
from ndani.api.ollama.operations import DESCRIPTION as OLLAMA
from ndani.api.ours.operations import DESCRIPTION as OURS

#: Every dialect's description; a test compares them with the route table.
DESCRIPTIONS: tuple[Description, ...] = (OLLAMA, OURS)

_REASONS = {200: "Done", 201: "Made", 202: "Accepted", 204: "Done", 503: "Not now"}

#: A parameter in the path of a route, with Starlette's word for what it matches.
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")


def document(descriptions: tuple[Description, ...] = DESCRIPTIONS) -> dict[str, Any]:
    """The whole description."""
    paths: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Any] = {}
    for description in descriptions:
        types = _Schemas(description)
        for operation in description.operations:
            path = _PARAMETER.sub(r"{\1}", operation.path)
            paths.setdefault(path, {})[operation.method.lower()] = _operation(operation, description, types)
        schemas |= types.components
    return {
        "openapi": "3.1.0",
        "info": {"title": "ndani", "version": __version__, "description": "A server of small language models on this machine."},
        "tags": [{"name": description.name, "description": description.title} for description in descriptions],
        "paths": paths,
        "components": {"schemas": schemas, "headers": {REQUEST_ID: _REQUEST_ID_HEADER}},
    }


_REQUEST_ID_HEADER = {
    "description": "The id of this request: the one that its client chose in the same header, if it is valid, else a new one.",
    "required": True,
    "schema": {"type": "string"},
}


class _Schemas:
    """The JSON Schemas of one dialect's types. Each name begins with the dialect's: several have a Message."""

    def __init__(self, description: Description) -> None:
        self._types = [description.error, *(one for operation in description.operations for one in _types(operation))]
        template = f"#/components/schemas/{description.name}.{{name}}"
        found, components = msgspec.json.schema_components(self._types, ref_template=template)
        self._found = found
        self.components = {f"{description.name}.{name}": schema for name, schema in sorted(components.items())}

    def of(self, wanted: Any) -> dict[str, Any]:
        """The schema of a type, or of any of several."""
        alternatives = [self._found[self._types.index(one)] for one in _each(wanted)]
        return alternatives[0] if len(alternatives) == 1 else {"anyOf": alternatives}


def _types(operation: Operation) -> Iterator[Any]:
    for wanted in (operation.body, operation.answer, operation.item, *operation.query.values(), *operation.failures.values()):
        yield from _each(wanted)


def _each(wanted: Any) -> tuple[Any, ...]:
    return () if wanted is None else wanted if isinstance(wanted, tuple) else (wanted,)


def _operation(operation: Operation, description: Description, types: _Schemas) -> dict[str, Any]:
    described: dict[str, Any] = {
        "tags": [description.name],
        "summary": operation.summary,
        "operationId": re.sub(r"\W+", "_", f"{operation.method.lower()}{operation.path}").strip("_"),
        "parameters": [*_parameters(operation, types)],
        "responses": _responses(operation, description, types),
    }
    if operation.body is not None:
        content = {"schema": types.of(operation.body)} if operation.body_media == JSON else {}
        described["requestBody"] = {"required": not operation.body_optional, "content": {operation.body_media: content}}
    return described


def _parameters(operation: Operation, types: _Schemas) -> Iterator[dict[str, Any]]:
    for name in _PARAMETER.findall(operation.path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    for name, wanted in operation.query.items():
        yield {"name": name, "in": "query", "required": False, "schema": types.of(wanted)}


def _responses(operation: Operation, description: Description, types: _Schemas) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if operation.answer is not None:
        content[operation.answer_media] = {"schema": types.of(operation.answer)}
    if operation.item is not None:
        # OpenAPI 3.1 has no word for the items of a stream, so the schema of each stands in an extension.
        stream = {"schema": {"type": "string"}, "x-item-schema": types.of(operation.item)}
        content[operation.item_media] = stream
    responses = {str(status): _response(_REASONS[status], content) for status in operation.statuses}
    for status, wanted in operation.failures.items():
        responses[str(status)] = _response(_REASONS[status], {JSON: {"schema": types.of(wanted)}})
    is_bodiless = operation.method == "HEAD"
    responses["default"] = _response("An error", {} if is_bodiless else {JSON: {"schema": types.of(description.error)}})
    return responses


def _response(reason: str, content: Mapping[str, Any]) -> dict[str, Any]:
    response: dict[str, Any] = {"description": reason, "headers": {REQUEST_ID: {"$ref": f"#/components/headers/{REQUEST_ID}"}}}
    return response | ({"content": dict(content)} if content else {})
