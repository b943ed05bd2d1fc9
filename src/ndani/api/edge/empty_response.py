"""A response without a body, for middleware that responds itself."""

from __future__ import annotations

from starlette.types import Send


async def send_empty(send: Send, status: int, headers: list[tuple[str, str]]) -> None:
    """Send a response of a status and headers alone."""
    raw = [(name.encode(), value.encode()) for name, value in headers]
    if status != 204:
        raw.append((b"content-length", b"0"))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": b""})
