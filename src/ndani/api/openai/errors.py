"""Errors as OpenAI's API writes them, for every path below /v1 that has no other dialect."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from ndani.api.edge import json_response
from ndani.api.edge.faults import ErrorFormat
from ndani.api.edge.json_response import encode
from ndani.errors import NdaniError

#: The type of an error by its status, as in Ollama; every other is an api_error.
_TYPES = {400: "invalid_request_error", 404: "not_found_error"}


class ErrorDetail(msgspec.Struct):
    """What an error says. `param` and `code` are null: the sentence names the field."""

    message: str
    type: str
    param: None = None
    code: None = None


class ErrorBody(msgspec.Struct):
    """The body of an error."""

    error: ErrorDetail


def _error_format(types: Mapping[int, str]) -> ErrorFormat:
    def written(message: str, status: int) -> ErrorBody:
        return ErrorBody(ErrorDetail(message, types.get(status, "api_error")))

    def body(error: NdaniError) -> ErrorBody:
        return written(str(error), error.status)

    def stream_end(error: NdaniError) -> bytes:
        return b"data: " + encode(body(error)) + b"\n\n"

    def no_route(status: int, headers: Mapping[str, str]) -> Response:
        sentence = "this path does not have that method; see its Allow header" if status == 405 else "there is no such path on this server"
        return json_response.respond(written(sentence, status), status, dict(headers))

    return ErrorFormat(body, stream_end, no_route, ErrorBody)


#: An error is an object in an object, also as the last event of a stream, and for a path that is no route.
ERRORS = _error_format(_TYPES)

#: The same for one model's route: an unknown model is an invalid request there, as at OpenAI and in Foundry Local.
MODEL_ERRORS = _error_format(_TYPES | {404: "invalid_request_error"})
