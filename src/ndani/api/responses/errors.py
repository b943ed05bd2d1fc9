"""Errors in OpenAI's JSON: an object `error` with a message and a type."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from ndani.api.edge import json_response
from ndani.api.edge.faults import ErrorFormat
from ndani.api.edge.json_response import encode
from ndani.errors import NdaniError


class ErrorDetail(msgspec.Struct):
    """What an error says. `param` and `code` are null: the sentence names the field."""

    message: str
    type: str
    param: None = None
    code: None = None


class ErrorBody(msgspec.Struct):
    """The body of an error."""

    error: ErrorDetail


_TYPES = {400: "invalid_request_error", 404: "not_found_error"}


def error_body(message: str, status: int) -> ErrorBody:
    """The envelope of an error; its type follows from the status."""
    return ErrorBody(ErrorDetail(message, _TYPES.get(status, "api_error")))


def _body(error: NdaniError) -> object:
    return error_body(str(error), error.status)


def _stream_end(error: NdaniError) -> bytes:
    return b"event: error\ndata: " + encode({"type": "error", "code": error.code, "message": str(error), "param": None}) + b"\n\n"


def _no_route(status: int, headers: Mapping[str, str]) -> Response:
    message = "this path does not take this method" if status == 405 else "there is no such path"
    return json_response.respond(error_body(message, status), status, dict(headers))


#: Errors of paths below /v1/responses and /v1/conversations. A stream that has begun ends with an event of the answer's own instead.
ERRORS = ErrorFormat(_body, _stream_end, _no_route, ErrorBody)
