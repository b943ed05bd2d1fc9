"""The header that names what a request has and this server ignores."""

from __future__ import annotations

from collections.abc import Sequence


def ignored_headers(ignored: Sequence[str]) -> dict[str, str]:
    """The header, if anything is ignored. Only short plain names, and not too many: clients accept headers of a few KiB."""
    names = [name for name in ignored if len(name) <= 64 and name.isascii() and name.isidentifier()][:32]
    return {"X-Ndani-Ignored": ", ".join(names)} if names else {}
