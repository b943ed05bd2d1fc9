"""Addresses as others write them: whether they can be asked, whom they belong to, how they are shown. Pure."""

from __future__ import annotations

import re
from urllib.parse import quote, urlsplit, urlunsplit

from ndani.sources import HUGGING_FACE_HOSTS


def is_fetchable(text: str) -> str:
    """A URL as it can be asked, what is no part of one encoded; nothing when it is not http(s), or has no good host or port."""
    clean = re.sub(r"[^!-~]", lambda odd: quote(odd[0], errors="surrogateescape"), text)
    try:
        parts = urlsplit(clean)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        (parts.hostname or "").encode("idna")
    except ValueError:  # half a bracket, a port that is no number or too large, a name with nothing or too much between two dots
        return ""
    return urlunsplit(parts._replace(fragment="")) if good else ""  # what is behind a # is sent to nobody


def origin(url: str) -> str:
    """Scheme, host and port: what a credential belongs to. The names of one hub are one place when TLS vouches for them."""
    parts = urlsplit(url)
    host, port = (parts.hostname or "").lower(), parts.port or {"https": 443}.get(parts.scheme, 80)
    if host in HUGGING_FACE_HOSTS and (parts.scheme, port) == ("https", 443):
        host = HUGGING_FACE_HOSTS[-1]
    return f"{parts.scheme}://{host}:{port}"


def without_credentials(url: str) -> str:
    """A URL as it may be read by others: without the user and password that it may hold, and without its query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return re.sub(r"//[^@]*@", "//", url.partition("?")[0])
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def count_of(text: str) -> int | None:
    """A count as headers have it, or None for what is none: digits of other scripts, or more of them than any file has bytes."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None
