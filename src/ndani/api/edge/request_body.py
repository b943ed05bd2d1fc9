"""Decodes JSON request bodies: within bounds, and as lenient as Go's decoder. `fields` reads the result."""

from __future__ import annotations

import asyncio
import codecs
import re
from functools import partial
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request

from ndani.errors import BadRequest, Cancelled
from ndani.untrusted_json import BYTE_ORDER_MARK, InvalidJson, require_bounds

#: A body may hold a conversation of 30,000 turns, or 500,000 token ids. Decoding more would block all other requests.
MAX_VALUES, MAX_CONTAINERS = 500_000, 30_000


#: Longer bodies are checked in a thread.
_MAX_BYTES_WITHOUT_THREAD = 1 << 16


#: Bytes of a body that are repaired in one step.
_CHUNK_SIZE = 1 << 16


#: What looks like the escape of a surrogate in a JSON text.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")

_BACKSLASH = ord("\\")


#: A byte that is not valid UTF-8, as Python's `surrogateescape` decodes it.
_INVALID_BYTE = re.compile("[\udc80-\udcff]")


async def decode(request: Request) -> dict[str, Any]:
    """As `decode_exact`, with lower-case names, since Go's decoder ignores case."""
    return {key.lower(): member for key, member in (await decode_exact(request)).items()}


async def decode_exact(request: Request) -> dict[str, Any]:
    """The body as an object, its names as they were sent; `null` is an empty object.

    A byte-order mark at the start is skipped: editors and shells of Windows write one into files. Raises BadRequest with
    `missing request body`, or with a sentence that says where the JSON is invalid and never quotes it; Cancelled when the
    client disconnects before the body's end.
    """
    try:
        body = await request.body()
    except ClientDisconnect:
        raise Cancelled("request canceled") from None
    if not body or body.isspace():
        raise BadRequest("missing request body")
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise BadRequest("the request body is compressed; send it as it is, without Content-Encoding")
    body = body.removeprefix(BYTE_ORDER_MARK)
    try:
        check_bounds = partial(require_bounds, body, values=MAX_VALUES, containers=MAX_CONTAINERS)
        if len(body) > _MAX_BYTES_WITHOUT_THREAD:
            await asyncio.to_thread(check_bounds)
        else:
            check_bounds()
        value = await _decode_json(body)
    except InvalidJson as error:
        raise BadRequest(f"invalid JSON: {error}") from None
    except msgspec.DecodeError as error:
        raise BadRequest("unexpected EOF" if "truncated" in str(error) else f"invalid JSON: {_problem(error)}") from None
    except (UnicodeDecodeError, RecursionError):
        raise BadRequest("invalid JSON: it is not UTF-8 text, or nested too deeply") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest("the request body must be a JSON object")
    return value


async def _decode_json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # Go's decoder reads as U+FFFD: bytes that are not UTF-8 (a Latin-1 terminal, a truncated text), and unpaired
        # surrogates (JavaScript can cut a text inside an emoji, and writes the remaining half as an escape).
        repaired = await asyncio.to_thread(_repaired, body)  # a large body takes a while
        if repaired == body:
            raise
        return msgspec.json.decode(repaired)


def _repaired(body: bytes) -> bytes:
    """The JSON text with U+FFFD for every byte that is not UTF-8 and for every unpaired surrogate.

    It is replaced in place and in chunks: splitting at the surrogates would take fifty times the memory of a hostile body.
    """
    text, decoder = bytearray(), codecs.getincrementaldecoder("utf-8")("surrogateescape")
    for start in range(0, len(body), _CHUNK_SIZE):
        chunk = decoder.decode(body[start : start + _CHUNK_SIZE], final=start + _CHUNK_SIZE >= len(body))
        text += _INVALID_BYTE.sub("\ufffd", chunk).encode()
    data, replaced_end, pair_end = bytes(text), 0, -1
    for escape in _SURROGATE.finditer(data):
        start = backslashes_start = escape.start()
        while backslashes_start > replaced_end and data[backslashes_start - 1] == _BACKSLASH:
            backslashes_start -= 1
        is_low_half, backslash_is_escaped = start < pair_end, (start - backslashes_start) % 2 == 1
        if is_low_half or backslash_is_escaped:
            continue
        is_high = data[start + 3] in b"89abAB"
        low = _SURROGATE.match(data, escape.end()) if is_high else None
        if low and data[low.start() + 3] in b"cdefCDEF":
            pair_end = low.end()
            continue
        replaced_end = escape.end()
        text[start:replaced_end] = rb"\ufffd"
    return bytes(text) if replaced_end else data


def _problem(error: msgspec.DecodeError) -> str:
    text = str(error).removeprefix("JSON is malformed: ")
    return text if "`" not in text else "a value cannot be read"
