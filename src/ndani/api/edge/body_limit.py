"""Refuses request bodies above a limit, as soon as their size is known."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ndani.errors import TooLarge

#: Largest body without a Content-Length: it is held in memory while it is counted, so its limit is lower.
MAX_WITHOUT_LENGTH = 16 * 2**20

#: Largest body of names and flags, and perhaps a template.
MAX_SMALL_BODY = 2**20


class BodyLimit:
    """Refuses a body above the limit: at once when Content-Length says so, else as soon as too many bytes have arrived.

    `limit` is for `large_paths`, whose bodies may be large. Uploads (POST below `upload_prefix`) have no limit but the disk:
    they are written as they arrive, and not held in memory.
    """

    def __init__(self, app: ASGIApp, limit: int, large_paths: frozenset[str], upload_prefix: str) -> None:
        self.app, self.limit, self.large_paths, self.upload_prefix = app, limit, large_paths, upload_prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"] == "POST" and scope["path"].startswith(self.upload_prefix)):
            await self.app(scope, receive, send)
            return
        content_length = Headers(scope=scope).get("content-length", "")
        stated = int(content_length) if content_length.isdigit() else 0
        large = scope["path"] in self.large_paths
        limit = min(self.limit, MAX_SMALL_BODY if not large else self.limit if stated else MAX_WITHOUT_LENGTH)
        received = 0

        async def receive_within_limit() -> Message:
            nonlocal received
            if stated > limit:
                raise _too_large(limit, large)
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise _too_large(limit, large)
            return message

        await self.app(scope, receive_within_limit, send)


def _too_large(limit: int, large: bool) -> TooLarge:
    remedy = ", or raise NDANI_MAX_BODY and say Content-Length" if large else ", for nothing here needs more"
    return TooLarge(f"the request body is larger than the limit of {limit} bytes; send less{remedy}")
