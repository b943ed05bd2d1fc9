"""Which proxy the environment names for a URL, with the rules of Go programs (golang.org/x/net/http/httpproxy). Pure.

`NO_PROXY` is a comma-separated list of domains (`corp.example` includes its subdomains; `.corp.example` and
`*.corp.example` are only the subdomains), addresses and networks (`10.0.0.0/8`, `2001:db8::/32`), or `*` for everything.
All but networks may have a port. Upper-case variables take precedence. Loopback is never reached through a proxy.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from ndani.hosts import is_loopback

_DEFAULT_PORTS = {"http": 80, "https": 443}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def proxy_of(url: str, environment: Mapping[str, str]) -> tuple[str, str]:
    """The proxy for this URL, and the variable that names it; two empty strings for a direct connection."""
    scheme = urlsplit(url).scheme
    for variable in (f"{scheme.upper()}_PROXY", f"{scheme}_proxy"):
        if proxy := environment.get(variable, "").strip():
            # In a CGI program a client can set HTTP_PROXY, by the header `Proxy`.
            is_trusted = variable != "HTTP_PROXY" or not environment.get("REQUEST_METHOD")
            return (
                (proxy if "://" in proxy else f"http://{proxy}", variable) if is_trusted and not is_direct(url, environment) else ("", "")
            )
    return "", ""


def is_direct(url: str, environment: Mapping[str, str]) -> bool:
    """Whether this URL is reached without a proxy: it is on loopback, or `NO_PROXY` has it."""
    parts = urlsplit(url)
    host, port = _normalised(parts.hostname or ""), parts.port or _DEFAULT_PORTS.get(parts.scheme)
    if not host or is_loopback(host):
        return True
    no_proxy = environment.get("NO_PROXY") or environment.get("no_proxy") or ""
    return any(_matches(entry.strip().lower(), host, port) for entry in no_proxy.split(","))


def _matches(entry: str, host: str, port: int | None) -> bool:
    if entry == "*":
        return True
    address = _address(host)
    if "/" in entry:
        with contextlib.suppress(ValueError):
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
    entry_host, entry_port = _split(entry)
    if entry_port and entry_port != str(port):
        return False
    if address or _address(entry_host):
        return address == _address(entry_host)
    domain = _normalised(entry_host[1:] if entry_host.startswith("*.") else entry_host)
    if domain.startswith("."):
        return len(domain) > 1 and host.endswith(domain)
    return bool(domain) and (host == domain or host.endswith(f".{domain}"))


def _split(entry: str) -> tuple[str, str]:
    """Host and port of an entry. An IPv6 address with a port is in brackets."""
    match = re.fullmatch(r"\[(.*)\](?::(.*))?|([^:]*):([^:]*)", entry)
    if not match:
        return entry, ""
    return match[1] or match[3] or "", match[2] or match[4] or ""


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


def _normalised(host: str) -> str:
    """A host name in lower case, and encoded as on the wire (IDNA)."""
    host = host.lower()
    if host.isascii():
        return host
    dot = "." if host.startswith(".") else ""
    with contextlib.suppress(UnicodeError):
        return dot + host.removeprefix(".").encode("idna").decode("ascii")
    return host
