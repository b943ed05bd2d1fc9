"""Errors in OpenAI's JSON: an object `error` with a message and a type."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import Response

from ndani.api.edge import json_response
from ndani.api.edge.faults import ErrorFormat
from ndani.api.edge.json_response import encode
from ndani.errors import NdaniError

_TYPES = {400: "invalid_request_error", 404: "not_found_error"}


def error_body(message: str, status: int) -> dict[str, dict[str, str | None]]:
    """The envelope of an error; its type follows from the status."""
    return {"error": {"message": message, "type": _TYPES.get(status, "api_error"), "param": None, "code": None}}


def _body(error: NdaniError) -> object:
    return error_body(str(error), error.status)


def _stream_end(error: NdaniError) -> bytes:
    return b"event: error\ndata: " + encode({"type": "error", "code": error.code, "message": str(error), "param": None}) + b"\n\n"


def _no_route(status: int, headers: Mapping[str, str]) -> Response:
    message = "this path does not take this method" if status == 405 else "there is no such path"
    return json_response.respond(error_body(message, status), status, dict(headers))


#: Errors of paths below /v1/responses and /v1/conversations. A stream that has begun ends with an event of the answer's own instead.
ERRORS = ErrorFormat(_body, _stream_end, _no_route)
