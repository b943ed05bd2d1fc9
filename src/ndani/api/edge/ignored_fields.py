"""The header that names what a request has and this server ignores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec


def ignored_headers(ignored: Sequence[str]) -> dict[str, str]:
    """The header, if anything is ignored. Only short plain names, and not too many: clients accept headers of a few KiB."""
    names = [name for name in ignored if len(name) <= 64 and name.isascii() and name.isidentifier()][:32]
    return {"X-Ndani-Ignored": ", ".join(names)} if names else {}


def unknown_fields(body: Mapping[str, object], body_type: type[msgspec.Struct]) -> dict[str, str]:
    """The header for the fields of a body that its type does not have."""
    return ignored_headers([name for name in body if name not in body_type.__struct_fields__])
