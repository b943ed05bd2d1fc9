"""Host names and addresses: whether one is this machine, and how it is written in a URL."""

from __future__ import annotations

import ipaddress
import socket


def is_loopback(host: str) -> bool:
    """Whether a host name or address (IPv6 without brackets) is this machine."""
    try:
        address = ipaddress.ip_address(host)
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return (mapped or address).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def resolves_to_loopback(host: str) -> bool:
    """Whether every address that the host resolves to is a loopback address. May query DNS."""
    if is_loopback(host):
        return True
    try:
        addresses = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return all(is_loopback(str(address[0])) for *_, address in addresses)


def host_and_port(host: str, port: int) -> str:
    """`host:port` as a URL has it, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
