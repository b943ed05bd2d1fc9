"""Makes a pull plan of a manifest, from a registry or from a folder. Pure."""

from __future__ import annotations

from ndani.errors import BadRequest, SourceFailed
from ndani.names import Name
from ndani.sources import File, Part, PlannedLayer, PullPlan
from ndani.store.layout import MODEL, digest_of, normalize_digest
from ndani.store.stored_model import Manifest
from ndani.untrusted_json import InvalidJson, decode

_EMPTY = digest_of(b"")


def read_manifest(content: bytes, name: Name, location: str) -> PullPlan:
    """The pull plan of this manifest, whose bytes are kept unchanged. Raises SourceFailed, naming `location`, when invalid."""
    try:
        manifest = decode(content, Manifest)
        layers = (*manifest.layers, manifest.config)
        digests = [normalize_digest(layer.digest) for layer in layers]
    except (InvalidJson, BadRequest):
        raise SourceFailed(f"{name} at {location} has a manifest that is no model's; check the name") from None
    # An empty file is not transferred, so a wrong digest would never be noticed.
    if any(layer.size < 0 or (not layer.size and digest != _EMPTY) for layer, digest in zip(layers, digests, strict=True)):
        raise SourceFailed(f"{name} at {location} has a manifest that says files of a size they cannot have; push it there again")
    if not any(layer.media_type == MODEL and layer.size for layer in layers):
        raise SourceFailed(f"{name} at {location} has no weights: it is no model that can run here; check the name")
    planned = {}
    for layer, digest in zip(layers, digests, strict=True):
        file = File(name.model, digest[:19], digest[7:], layer.size)
        part = Part(file, 0, layer.size, layer.size, file.sha256)
        content_of_empty = b"" if not layer.size else None
        planned[digest] = PlannedLayer(layer.media_type, digest, layer.size, (part,) if layer.size else (), content_of_empty)
    return PullPlan(content, tuple(planned.values()))
