"""Refuses request bodies above a limit, as early as that is known."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ndani.errors import TooLarge

#: A body whose length nobody said must be held to be counted, so it gets less than one that says it.
MOST_WITHOUT_LENGTH = 16 * 2**20


#: For a body that is names and switches, and perhaps a template.
MOST_SMALL = 2**20


class BodyLimit:
    """Refuses a body above the limit: at once when its length is said, else as soon as it has grown too long.

    `most` is for the paths `large`, whose bodies have a reason to be. What goes below the path `uploads` has no limit but
    the disk: it is written as it comes, and never held.
    """

    def __init__(self, app: ASGIApp, most: int, large: frozenset[str], uploads: str) -> None:
        self.app, self.most, self.large, self.uploads = app, most, large, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"] == "POST" and scope["path"].startswith(self.uploads)):
            await self.app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        said = int(length) if length.isdigit() else 0
        large = scope["path"] in self.large
        most = min(self.most, MOST_SMALL if not large else self.most if said else MOST_WITHOUT_LENGTH)
        got = 0

        async def counted() -> Message:
            nonlocal got
            if said > most:
                raise _too_large(most, large)
            message = await receive()
            got += len(message.get("body", b""))
            if got > most:
                raise _too_large(most, large)
            return message

        await self.app(scope, counted, send)


def _too_large(most: int, large: bool) -> TooLarge:
    more = ", or raise NDANI_MAX_BODY and say Content-Length" if large else ", for nothing here needs more"
    return TooLarge(f"the request body is larger than the limit of {most} bytes; send less{more}")
