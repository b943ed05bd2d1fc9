"""A manifest becomes a plan: the same for a registry's and for one that lies in a folder. Pure."""

from __future__ import annotations

import msgspec

from ndani.errors import BadRequest, SourceFailed
from ndani.names import Name
from ndani.sources import File, Part, Plan, PlannedLayer
from ndani.store import layout as kinds
from ndani.store.entry import Manifest


def read_manifest(content: bytes, name: Name, place: str) -> Plan:
    """What a pull brings for this manifest, kept to the letter. Raises SourceFailed, naming `place`, when it is no model's."""
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
        layers = (*manifest.layers, manifest.config)
        hexes = {layer.digest: kinds.hex_of(layer.digest) for layer in layers}
    except (msgspec.DecodeError, BadRequest):
        raise SourceFailed(f"{name} at {place} has a manifest that is no model's; check the name") from None
    if not any(layer.media_type == kinds.MODEL for layer in layers) or any(layer.size < 0 for layer in layers):
        raise SourceFailed(f"{name} at {place} has no weights: it is no model that can run here; check the name")
    planned = {}
    for layer in layers:
        file = File(name.model, layer.digest[:19], hexes[layer.digest], layer.size)
        part = Part(file, 0, layer.size, layer.size, file.sha256)
        empty = b"" if not layer.size else None
        planned[layer.digest] = PlannedLayer(layer.media_type, f"sha256:{file.sha256}", layer.size, (part,) if layer.size else (), empty)
    return Plan(content, tuple(planned.values()))
