"""JSON request bodies: bounded, decoded, and lenient where Go's decoder is."""

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

#: What a body may hold: a conversation of 30,000 turns, or 500,000 token ids. More would be read while everybody else waits.
MOST_VALUES, MOST_CONTAINERS = 500_000, 30_000


#: Bytes of a body that are looked at without a thread.
_SHORT = 1 << 16


#: Bytes of a body that are mended at once.
_PIECE = 1 << 16


#: What looks like half of a pair of surrogates in a JSON text.
_HALF, _BACKSLASH = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}"), ord("\\")


#: A byte that is no UTF-8, as Python keeps it.
_STRAY = re.compile("[\udc80-\udcff]")


async def decode(request: Request) -> dict[str, Any]:
    """The body as an object with lower-case names, as Go's decoder matches them; `null` is an empty object. A byte-order mark
    in front is passed over: Windows' editors and shells write one into a file that is sent.

    Raises BadRequest: `missing request body`, or a sentence that says where the JSON breaks and never quotes it;
    Cancelled when the client leaves before its end.
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
        bounded = partial(require_bounds, body, values=MOST_VALUES, containers=MOST_CONTAINERS)
        if len(body) > _SHORT:
            await asyncio.to_thread(bounded)
        else:
            bounded()
        value = await _decoded(body)
    except InvalidJson as error:
        raise BadRequest(f"invalid JSON: {error}") from None
    except msgspec.DecodeError as error:
        raise BadRequest("unexpected EOF" if "truncated" in str(error) else f"invalid JSON: {_place(error)}") from None
    except (UnicodeDecodeError, RecursionError):
        raise BadRequest("invalid JSON: it is not UTF-8 text, or nested too deeply") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest("the request body must be a JSON object")
    return {key.lower(): part for key, part in value.items()}


async def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # What Go's decoder reads as U+FFFD: bytes that are no UTF-8 (a Latin-1 terminal, a cut text), and half of a pair of
        # surrogates (JavaScript cuts texts inside an emoji and writes the half as an escape).
        mended = await asyncio.to_thread(_mended, body)  # a large body takes a while to look at
        if mended == body:
            raise
        return msgspec.json.decode(mended)


def _mended(body: bytes) -> bytes:
    """A JSON text in which every byte that is no UTF-8 and every half of a pair of surrogates is U+FFFD.

    Made in place and piece by piece: lists of what is between the halves would take fifty times the memory of a hostile body.
    """
    text, reader = bytearray(), codecs.getincrementaldecoder("utf-8")("surrogateescape")
    for at in range(0, len(body), _PIECE):
        piece = reader.decode(body[at : at + _PIECE], final=at + _PIECE >= len(body))
        text += _STRAY.sub("\ufffd", piece).encode()
    whole, done, paired = bytes(text), 0, -1
    for found in _HALF.finditer(whole):
        at = first = found.start()
        while first > done and whole[first - 1] == _BACKSLASH:
            first -= 1
        if at < paired or (at - first) % 2:  # the other half of a pair, or what an escaped backslash stands before
            continue
        after = _HALF.match(whole, found.end()) if whole[at + 3] in b"89abAB" else None
        if after and whole[after.start() + 3] in b"cdefCDEF":
            paired = after.end()
            continue
        done = found.end()
        text[at:done] = rb"\ufffd"
    return bytes(text) if done else whole


def _place(error: msgspec.DecodeError) -> str:
    text = str(error).removeprefix("JSON is malformed: ")
    return text if "`" not in text else "a value cannot be read"
