"""Refuses requests whose Host header may be a foreign name that was rebound to this machine (DNS rebinding)."""

from __future__ import annotations

import ipaddress
import re
import socket

import psutil
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ndani.api.edge.empty_response import send_empty

#: A host with or without a port. Groups: an IPv6 address in brackets; a name or an IPv4 address; a bare IPv6 address.
_HOST_HEADER = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]@]*))(?::[0-9]*)?|([0-9A-Fa-f:.]+)")


class HostGuard:
    """Refuses a Host header that is not a name or an address of this machine or its network.

    Only requests to loopback are checked, as in Ollama. `loopback_addresses` are those that the server really listens on,
    however the user wrote them. There, OPTIONS for an allowed host gets 204 on any path, as Ollama answers it for an allowed
    name. (A browser's preflight has an Origin, so where there is an `OriginGuard`, that has answered it.)
    """

    def __init__(self, app: ASGIApp, loopback_addresses: frozenset[str]) -> None:
        self.app, self.loopback_addresses = app, loopback_addresses
        self.hostname = socket.gethostname().lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope.get("server") or ("",))[0] in self.loopback_addresses:
            if not self._is_allowed(Headers(scope=scope).get("host", "")):
                await send_empty(send, 403, [])
                return
            if scope["method"] == "OPTIONS":
                await send_empty(send, 204, [])
                return
        await self.app(scope, receive, send)

    def _is_allowed(self, host: str) -> bool:
        if not (match := _HOST_HEADER.fullmatch(host)):
            return False
        name = (match[1] or match[2] or match[3] or "").lower().rstrip(".")
        if name in ("", "localhost", self.hostname) or name.endswith((".localhost", ".local", ".internal")):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        if address.is_loopback or address.is_private or address.is_unspecified:
            return True
        interfaces = psutil.net_if_addrs().values()
        return any(name == entry.address.partition("%")[0] for entries in interfaces for entry in entries)
