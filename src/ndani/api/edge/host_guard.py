"""Refuses requests by a host name that was rebound to this machine (DNS rebinding)."""

from __future__ import annotations

import ipaddress
import re
import socket

import psutil
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ndani.api.edge.empty_response import send_empty

#: A host with its port or without: an address of IPv6 in brackets, a name or another address, or one of IPv6 by itself.
_PLACE = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]@]*))(?::[0-9]*)?|([0-9A-Fa-f:.]+)")


class HostGuard:
    """Refuses a Host that a rebound name would carry. Only where the server listens on loopback, as in Ollama.

    `guarded` are the loopback addresses that it really listens on, however they were written.
    """

    def __init__(self, app: ASGIApp, guarded: frozenset[str]) -> None:
        self.app, self.guarded = app, guarded
        self.machine = socket.gethostname().lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope.get("server") or ("",))[0] in self.guarded:
            if not self._known(Headers(scope=scope).get("host", "")):
                await send_empty(send, 403, [])
                return
            if scope["method"] == "OPTIONS":
                await send_empty(send, 204, [])
                return
        await self.app(scope, receive, send)

    def _known(self, host: str) -> bool:
        if not (found := _PLACE.fullmatch(host)):
            return False
        name = (found[1] or found[2] or found[3] or "").lower().rstrip(".")
        if name in ("", "localhost", self.machine) or name.endswith((".localhost", ".local", ".internal")):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        if address.is_loopback or address.is_private or address.is_unspecified:
            return True
        return any(name == entry.address.partition("%")[0] for links in psutil.net_if_addrs().values() for entry in links)
