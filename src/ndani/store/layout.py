"""Paths and names in a store: Ollama's folders, file names and media types.

Pure functions from names to paths; nothing here reads the disk.
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
_BLOB_FILE_NAME = re.compile(r"sha256-([0-9a-f]{64})\Z")


def media_type_of(layer_type: str) -> str:
    """The media type of a layer type: `model`, `license`, …"""
    return _IMAGE + layer_type


def hex_of(digest: str) -> str:
    """The 64 hex characters of `sha256:<hex>`. Raises BadRequest with Ollama's sentence for anything else."""
    match = _DIGEST.match(digest)
    if not match:
        raise BadRequest("invalid digest format")
    return match[1].lower()


def normalize_digest(digest: str) -> str:
    """The digest in the form used here, for another program's manifest may have `sha256-<HEX>`. Raises as `hex_of`."""
    return f"sha256:{hex_of(digest)}"


def digest_of(content: bytes) -> str:
    """The digest `sha256:<hex>` of these bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def digest_from_file_name(file_name: str) -> str | None:
    """The digest that a file in `blobs/` is named after, or None when it is not a whole blob."""
    match = _BLOB_FILE_NAME.match(file_name)
    return f"sha256:{match[1]}" if match else None


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one store. Ollama uses `blobs` and `manifests` only; the other folders are ours."""

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
        """Notes about the progress of pushes."""
        return self.root / ".uploads"

    @property
    def handover(self) -> Path:
        """Slots for files that are linked into the store rather than sent."""
        return self.root / ".handover"

    @property
    def header_notes(self) -> Path:
        """Notes of the headers of weights files; a missing one is written again."""
        return self.root / ".heads"

    @property
    def damage_notes(self) -> Path:
        """Notes about blobs that were found damaged."""
        return self.root / ".damaged"

    def damage_note(self, digest: str) -> Path:
        """The file of the note about a damaged blob."""
        return self.damage_notes / hex_of(digest)

    def header_note(self, digest: str) -> Path:
        """The file of the note about the header of a weights blob."""
        return self.header_notes / hex_of(digest)

    def blob(self, digest: str) -> Path:
        """The file of a blob."""
        return self.blobs / f"sha256-{hex_of(digest)}"

    def partial(self, digest: str) -> Path:
        """The file of an unfinished pull of the blob."""
        return self.blobs / f"sha256-{hex_of(digest)}-partial"

    def journal(self, digest: str, part: int) -> Path:
        """The compressed bytes of one part, kept during its transfer. Named with a dot, because Ollama takes `-partial-*` for its own."""
        return self.blobs / f"sha256-{hex_of(digest)}-partial.{part}"

    def manifest(self, name: Name) -> Path:
        """The file of a model name, in the given spelling."""
        return self.manifests / name.host / name.namespace / name.model / name.tag
