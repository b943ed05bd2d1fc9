"""Model names: `[host/][namespace/]model[:tag]`, as Ollama writes them.

Parse, print, defaults; nothing here looks at a disk. Names are compared without regard to case, and a store
keeps the spelling that it was first given.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ndani.errors import BadName

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

_SCHEME = re.compile(r"\A(?i:https?)://(?=[^/]+/[^/]+/[^/]+\Z)")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,254}\Z")  # it is the name of a folder
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}\Z")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}\Z")


@dataclass(frozen=True, slots=True)
class Name:
    """A complete model name. `str()` prints it short: the default host and namespace left out, the tag never."""

    host: str
    namespace: str
    model: str
    tag: str

    def __str__(self) -> str:
        if self.host.lower() != DEFAULT_HOST:
            return self.full
        if self.namespace.lower() != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{self.model}:{self.tag}"
        return f"{self.model}:{self.tag}"

    @property
    def full(self) -> str:
        """Host, namespace, model and tag, nothing left out."""
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def key(self) -> str:
        """What two spellings of one model have in common."""
        return self.full.lower()


def parse(text: str, *, error: str = "invalid model name", allow_scheme: bool = True) -> Name:
    """Read a name to the letter: a blank around it is no part of any name. Where a host is named, `scheme` allows `https://`
    in front of it, as a registry's address is copied from a browser; it is dropped.

    Raises BadName with `error` when the text cannot be a name.
    """
    host, namespace, tag = DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG
    rest = _SCHEME.sub("", text) if allow_scheme else text
    parts = rest.split("/")
    if len(parts) > 3:
        raise BadName(error)
    model = parts[-1]
    if ":" in model:
        model, _, tag = model.partition(":")
    if len(parts) > 1:
        namespace = parts[-2]
    if len(parts) > 2:
        host = parts[0]
    good = _HOST.match(host) and _NAMESPACE.match(namespace) and _PART.match(model) and _PART.match(tag)
    if not good:
        raise BadName(error)
    return Name(host, namespace, model, tag)
