"""Where things lie in a store and what they are called: Ollama's folders, file names and media types.

Pure: names in, paths out; nothing here touches a disk.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from ndani.errors import BadRequest
from ndani.names import Name

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
_IMAGE = "application/vnd.ollama.image."
MODEL = _IMAGE + "model"
PROJECTOR = _IMAGE + "projector"
ADAPTER = _IMAGE + "adapter"
TEMPLATE = _IMAGE + "template"
SYSTEM = _IMAGE + "system"
PARAMS = _IMAGE + "params"
MESSAGES = _IMAGE + "messages"
LICENSE = _IMAGE + "license"

_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})\Z")
_BLOB = re.compile(r"sha256-([0-9a-f]{64})\Z")


def media_type_of(word: str) -> str:
    """The media type of a kind of layer: `model`, `license`, …"""
    return _IMAGE + word


def hex_of(digest: str) -> str:
    """The 64 hex characters of `sha256:<hex>`. Raises BadRequest with Ollama's sentence for anything else."""
    found = _DIGEST.match(digest)
    if not found:
        raise BadRequest("invalid digest format")
    return found[1].lower()


def normalize_digest(digest: str) -> str:
    """A digest as everything here spells it: a manifest of another maker's may say `sha256-<HEX>`. Raises as `hex_of`."""
    return f"sha256:{hex_of(digest)}"


def digest_of(content: bytes) -> str:
    """`sha256:<hex>` of some bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def digest_from_file_name(file_name: str) -> str | None:
    """The digest that a file in `blobs/` is called by, or None when it is not a whole blob."""
    found = _BLOB.match(file_name)
    return f"sha256:{found[1]}" if found else None


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one store. `locks` is ours; Ollama looks at the other two folders only."""

    root: Path

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    @property
    def manifests(self) -> Path:
        return self.root / "manifests"

    @property
    def locks(self) -> Path:
        return self.root / ".locks"

    @property
    def uploads(self) -> Path:
        """Notes of how far pushes are; ours alone, like `locks`."""
        return self.root / ".uploads"

    @property
    def handover(self) -> Path:
        """Places for files that are linked rather than sent; ours alone too."""
        return self.root / ".handover"

    @property
    def header_notes(self) -> Path:
        """Notes of what weights say of themselves; ours alone, like `locks`, and made again where they are missing."""
        return self.root / ".heads"

    @property
    def damage_notes(self) -> Path:
        """Notes of blobs that were found damaged (`doubts`); ours alone too."""
        return self.root / ".damaged"

    def damage_note(self, digest: str) -> Path:
        """The note about one damaged blob."""
        return self.damage_notes / hex_of(digest)

    def header_note(self, digest: str) -> Path:
        """The note about one blob of weights."""
        return self.header_notes / hex_of(digest)

    def blob(self, digest: str) -> Path:
        """The file of a blob."""
        return self.blobs / f"sha256-{hex_of(digest)}"

    def partial(self, digest: str) -> Path:
        """The file that grows until it is that blob."""
        return self.blobs / f"sha256-{hex_of(digest)}-partial"

    def journal(self, digest: str, part: int) -> Path:
        """The packed bytes of one part, kept while it travels. A dot, because Ollama reads `-partial-*` as its own."""
        return self.blobs / f"sha256-{hex_of(digest)}-partial.{part}"

    def manifest(self, name: Name) -> Path:
        """The file of a name, in the spelling given."""
        return self.manifests / name.host / name.namespace / name.model / name.tag
