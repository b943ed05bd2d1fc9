"""Which proxy the environment names for a URL, read as Go programs read it (golang.org/x/net/http/httpproxy). Pure.

`NO_PROXY` is a list with commas: a domain (`corp.example`, which has its subdomains; `.corp.example` and `*.corp.example`
are the subdomains alone), an address, a network (`10.0.0.0/8`, `2001:db8::/32`), each but a network with a port if need
be, or `*` for everything. Large letters count before small ones. This machine itself is never asked through a proxy.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from ndani.hosts import is_loopback

_PORTS = {"http": 80, "https": 443}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def proxy_of(url: str, environment: Mapping[str, str]) -> tuple[str, str]:
    """The proxy for this URL, and the variable that names it; nothing twice where it is asked directly."""
    scheme = urlsplit(url).scheme
    for variable in (f"{scheme.upper()}_PROXY", f"{scheme}_proxy"):
        if named := environment.get(variable, "").strip():
            # Where somebody's web server runs us, a visitor could set this one.
            mine = variable != "HTTP_PROXY" or not environment.get("REQUEST_METHOD")
            return (named if "://" in named else f"http://{named}", variable) if mine and not is_direct(url, environment) else ("", "")
    return "", ""


def is_direct(url: str, environment: Mapping[str, str]) -> bool:
    """Whether this URL is asked without any proxy: it is this machine's own, or `NO_PROXY` has it."""
    parts = urlsplit(url)
    host, port = _plain(parts.hostname or ""), parts.port or _PORTS.get(parts.scheme)
    if not host or is_loopback(host):
        return True
    listed = environment.get("NO_PROXY") or environment.get("no_proxy") or ""
    return any(_matches(entry.strip().lower(), host, port) for entry in listed.split(","))


def _matches(entry: str, host: str, port: int | None) -> bool:
    if entry == "*":
        return True
    address = _address(host)
    if "/" in entry:
        with contextlib.suppress(ValueError):
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
    place, wanted = _split(entry)
    if wanted and wanted != str(port):
        return False
    if address or _address(place):
        return address == _address(place)
    domain = _plain(place[1:] if place.startswith("*.") else place)
    if domain.startswith("."):
        return len(domain) > 1 and host.endswith(domain)
    return bool(domain) and (host == domain or host.endswith(f".{domain}"))


def _split(entry: str) -> tuple[str, str]:
    """Host and port of an entry; an IPv6 address with a port is in brackets."""
    found = re.fullmatch(r"\[(.*)\](?::(.*))?|([^:]*):([^:]*)", entry)
    if not found:
        return entry, ""
    return found[1] or found[3] or "", found[2] or found[4] or ""


def _address(text: str) -> Address | None:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found


def _plain(host: str) -> str:
    """A name as it is asked for: small, and in letters that names have on the wire."""
    host = host.lower()
    if host.isascii():
        return host
    dot = "." if host.startswith(".") else ""
    with contextlib.suppress(UnicodeError):
        return dot + host.removeprefix(".").encode("idna").decode("ascii")
    return host
