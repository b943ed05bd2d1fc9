"""Model names: `[host/][namespace/]model[:tag]`, as Ollama writes them.

Parsing, printing and defaults; nothing here reads the disk. Names compare without regard to case, and a store keeps the
spelling that was given first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ndani.errors import BadName

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

_SCHEME = re.compile(r"\A(?i:https?)://(?=[^/]+/[^/]+/[^/]+\Z)")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,254}\Z")  # it becomes a folder's name
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}\Z")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}\Z")


@dataclass(frozen=True, slots=True)
class Name:
    """A complete model name. `str()` gives the short form, without a default host and namespace but always with the tag."""

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
        """The long form: host, namespace, model and tag."""
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def key(self) -> str:
        """A key that is equal for all spellings of one name."""
        return self.full.lower()


def parse(text: str, *, error: str = "invalid model name", allow_scheme: bool = True) -> Name:
    """Parse a name. Spaces around it are not stripped, so such a text is refused.

    With `allow_scheme`, an `https://` before the host is accepted and dropped, because people copy a registry's address from
    a browser. Raises BadName with the sentence `error`.
    """
    host, namespace, tag = DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG
    address = _SCHEME.sub("", text) if allow_scheme else text
    parts = address.split("/")
    if len(parts) > 3:
        raise BadName(error)
    model = parts[-1]
    if ":" in model:
        model, _, tag = model.partition(":")
    if len(parts) > 1:
        namespace = parts[-2]
    if len(parts) > 2:
        host = parts[0]
    is_valid = _HOST.match(host) and _NAMESPACE.match(namespace) and _PART.match(model) and _PART.match(tag)
    if not is_valid:
        raise BadName(error)
    return Name(host, namespace, model, tag)
