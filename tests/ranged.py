"""The start of a response with a file's bytes: all of them, or the requested range. Used by every server of the tests."""

from __future__ import annotations

from aiohttp import web


async def begin(
    request: web.Request, content: bytes, *, ranges: bool = True, headers: dict[str, str] | None = None
) -> tuple[web.StreamResponse, int, bytes]:
    """A response whose head has been sent, the offset of its first byte in the file, and the bytes left to send."""
    first, last = 0, len(content)
    reply = web.StreamResponse(headers=headers)
    wanted = request.http_range
    if ranges and wanted.start is not None:
        first, last = wanted.start, min(wanted.stop or last, last)
        reply.set_status(206)
        reply.headers["Content-Range"] = f"bytes {first}-{last - 1}/{len(content)}"
    reply.content_length = last - first
    await reply.prepare(request)
    return reply, first, content[first:last]
