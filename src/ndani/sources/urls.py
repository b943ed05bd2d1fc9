"""URLs from outside: whether they are usable, which origin they have, how they may be shown. Pure."""

from __future__ import annotations

import re
from urllib.parse import quote, urlsplit, urlunsplit

from ndani.sources import HUGGING_FACE_HOSTS


def is_fetchable(text: str) -> str:
    """A URL that can be requested, with invalid characters encoded; "" when it is not http(s), or its host or port is invalid."""
    encoded = re.sub(r"[^!-~]", lambda match: quote(match[0], errors="surrogateescape"), text)
    try:
        parts = urlsplit(encoded)
        is_valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        (parts.hostname or "").encode("idna")
    except ValueError:  # half a bracket, an invalid port, an empty or overlong label
        return ""
    return urlunsplit(parts._replace(fragment="")) if is_valid else ""  # a fragment is never sent


def origin(url: str) -> str:
    """Scheme, host and port: what a credential belongs to. With TLS, the names of Hugging Face count as one origin."""
    parts = urlsplit(url)
    host, port = (parts.hostname or "").lower(), parts.port or {"https": 443}.get(parts.scheme, 80)
    if host in HUGGING_FACE_HOSTS and (parts.scheme, port) == ("https", 443):
        host = HUGGING_FACE_HOSTS[-1]
    return f"{parts.scheme}://{host}:{port}"


def without_credentials(url: str) -> str:
    """A URL that may be shown: without user, password and query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return re.sub(r"//[^@]*@", "//", url.partition("?")[0])
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def count_of(text: str) -> int | None:
    """A count in a header; None when it is not up to 18 ASCII digits."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None
