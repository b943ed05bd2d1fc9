"""Errors as responses: the format in which a dialect writes them, and an unexpected exception without its message.

Each dialect defines its own `ErrorFormat`; none is defined here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.responses import Response

from ndani.api.edge import json_response
from ndani.errors import Failed, NdaniError


@dataclass(frozen=True, slots=True)
class ErrorFormat:
    """How a dialect writes an error: as the JSON body of a response, and as the last bytes of a stream that has begun.

    `body_type` is the type of that body, for the description of the routes. `headers` are those of every response with an error.
    `no_route` is its response to a path that is no route (404) or not with this method (405), with the headers that belong to it.
    """

    body: Callable[[NdaniError], object]
    stream_end: Callable[[NdaniError], bytes]
    no_route: Callable[[int, Mapping[str, str]], Response]
    body_type: Any
    headers: Callable[[], dict[str, str]] = dict


def error_response(error: NdaniError, error_format: ErrorFormat) -> Response:
    """The response to a request that failed before its first byte: with the error's own status."""
    return json_response.respond(error_format.body(error), error.status, error_format.headers())


def fault(error: BaseException) -> Failed:
    """An unexpected exception as an error: its type and source line, without its message, which could quote a prompt."""
    trace, location = error.__traceback__, "ndani"
    while trace:
        if "ndani" in trace.tb_frame.f_code.co_filename:
            location = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return Failed(f"ndani met a fault of its own ({type(error).__name__} at {location}); please report it")
