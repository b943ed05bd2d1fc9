"""One model in the store: its manifest and the content of its layers. Only reads; `store` makes changes."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ndani import untrusted_json
from ndani.errors import BadRequest, StoreFailed
from ndani.names import Name
from ndani.store import layout
from ndani.store.answer_formats import implied_parser, prefers_chat_template
from ndani.store.blobs import Blobs
from ndani.store.layout import Layout
from ndani.store.parameters import excerpt
from ndani.types import Message

T = TypeVar("T")

#: What is done about a renderer and a parser of Ollama.
_INSTEAD = "the chat template in its weights is used instead, and without one it cannot be asked"


class Layer(msgspec.Struct, frozen=True, rename={"media_type": "mediaType", "source": "from"}, omit_defaults=True):
    """One file of a model, as its manifest lists it. The digest is normalized, because it is compared with others."""

    media_type: str
    digest: str
    size: int
    source: str = ""

    def __post_init__(self) -> None:
        with contextlib.suppress(BadRequest):  # an invalid digest stays as it is; the readers of manifests refuse it
            msgspec.structs.force_setattr(self, "digest", layout.normalize_digest(self.digest))


class Manifest(msgspec.Struct, frozen=True, kw_only=True, rename={"schema_version": "schemaVersion", "media_type": "mediaType"}):
    """The manifest of a name. The field order is Ollama's, so that equal models have equal ids. Only OCI manifests may lack `mediaType`."""

    schema_version: int = 2
    media_type: str = layout.OCI_MANIFEST
    config: Layer
    layers: tuple[Layer, ...] = ()


class Config(msgspec.Struct, frozen=True):
    """The fields of a model's config file that are used here; Ollama writes more."""

    model_format: str = ""
    model_family: str = ""
    model_families: tuple[str, ...] | None = None
    model_type: str = ""
    file_type: str = ""
    renderer: str = ""
    parser: str | None = None
    context_length: int = 0
    embedding_length: int = 0
    capabilities: tuple[str, ...] | None = None

    @property
    def warnings(self) -> list[str]:
        """A sentence about the renderer and parser of Ollama that this model needs, for when it is created or shown; empty without."""
        if not prefers_chat_template(self.renderer, self.parser or ""):
            return []
        named = [("renderer", self.renderer), ("parser", self.parser)]
        parts = " and ".join(f"the {part} {excerpt(name)}" for part, name in named if name)
        return [f"this model asks for {parts} of Ollama's own; {_INSTEAD}"]


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model name and its files. `digest` is the hex digest of the manifest, without a prefix; `modified` is in POSIX seconds."""

    name: Name
    digest: str
    modified: float
    manifest: Manifest
    layout: Layout
    blobs: Blobs
    _small_blobs: dict[str, bytes] = field(default_factory=dict, repr=False, compare=False)

    @property
    def path(self) -> Path:
        """The file of the manifest."""
        return self.layout.manifest(self.name)

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self.manifest.layers

    @property
    def size(self) -> int:
        """Bytes of all layers and the config."""
        return self.manifest.config.size + sum(layer.size for layer in self.layers)

    @property
    def digests(self) -> set[str]:
        """Every blob that this model needs."""
        return {layer.digest for layer in (self.manifest.config, *self.layers)}

    @property
    def config(self) -> Config:
        """The config file. Raises StoreFailed when it is missing or damaged."""
        return decode(self._content(self.manifest.config.digest), Config, f"the config of {self.name}")

    @property
    def weights_source(self) -> str:
        """The name of the model that the weights were taken from, as the manifest has it, or an empty text."""
        layer = self._first(layout.MODEL)
        return layer.source if layer else ""

    @property
    def parent(self) -> str:
        """The other model that this one was created from, or an empty text."""
        return self.weights_source if self.weights_source != str(self.name) else ""

    @property
    def weights(self) -> Layer:
        """The layer with the weights. Raises StoreFailed when this model has none."""
        layer = self._first(layout.MODEL)
        if layer is None:
            raise StoreFailed(f"the model {self.name} has no weights in the store; pull it again")
        return layer

    @property
    def weights_path(self) -> Path:
        """The path of the weights file, which may be missing."""
        return self.layout.blob(self.weights.digest)

    @property
    def loaded_layers(self) -> tuple[Layer, ...]:
        """The layers that a runner loads: the weights, and the adapter and the projector where there are any. Raises StoreFailed."""
        return self.weights, *(layer for kind in (layout.ADAPTER, layout.PROJECTOR) if (layer := self._first(kind)))

    @property
    def loaded_paths(self) -> tuple[Path, ...]:
        """The files of these layers, which may be missing."""
        return tuple(self.layout.blob(layer.digest) for layer in self.loaded_layers)

    @property
    def projector_layer(self) -> Layer | None:
        """The layer that turns images into tokens, where there is one."""
        return self._first(layout.PROJECTOR)

    @property
    def projector(self) -> Path | None:
        """The file of that layer, where there is one."""
        return self._path(layout.PROJECTOR)

    @property
    def adapter(self) -> Path | None:
        """The file with the adapter, where there is one."""
        return self._path(layout.ADAPTER)

    @property
    def template(self) -> str | None:
        """The Go template, where the model has one of its own."""
        return self._text(layout.TEMPLATE)

    @property
    def parser(self) -> str:
        """The parser of Ollama that reads its answers there, by its config or its TEMPLATE; an empty text for the general one."""
        return self.config.parser or implied_parser(self.config.model_family, self.template or "")

    @property
    def prefers_chat_template(self) -> bool:
        """Whether the chat template in its weights, where they hold one, makes its prompts rather than its TEMPLATE."""
        return prefers_chat_template(self.config.renderer, self.parser)

    @property
    def system(self) -> str | None:
        """The system prompt, where the model has one."""
        return self._text(layout.SYSTEM)

    @property
    def params(self) -> dict[str, Any]:
        """The model's own options, by Ollama's names."""
        text = self._text(layout.PARAMS)
        return decode(text.encode(), dict[str, Any], f"the parameters of {self.name}") if text else {}

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation that every chat with this model begins with."""
        text = self._text(layout.MESSAGES)
        return decode(text.encode(), tuple[Message, ...], f"the messages of {self.name}") if text else ()

    @property
    def licenses(self) -> tuple[str, ...]:
        """The licences, each as one text."""
        return tuple(self._decoded(layer) for layer in self.layers if layer.media_type == layout.LICENSE)

    def _first(self, kind: str) -> Layer | None:
        return next((layer for layer in self.layers if layer.media_type == kind), None)

    def _path(self, kind: str) -> Path | None:
        layer = self._first(kind)
        return self.layout.blob(layer.digest) if layer else None

    def _text(self, kind: str) -> str | None:
        layer = self._first(kind)
        return self._decoded(layer) if layer else None

    def _decoded(self, layer: Layer) -> str:
        return self._content(layer.digest).decode("utf-8", "replace")

    def _content(self, digest: str) -> bytes:
        """A small blob, cached: the bytes of a digest never change, and every request needs them."""
        if digest not in self._small_blobs:
            self._small_blobs[digest] = self.blobs.read(digest)
        return self._small_blobs[digest]


def decode(content: bytes, kind: type[T], what: str, advice: str = "create the model again") -> T:
    """Decode JSON as `kind`, within limits. Otherwise raises StoreFailed about `what`, which offers a repair or the `advice`."""
    try:
        return untrusted_json.decode(content, kind)
    except untrusted_json.InvalidJson as error:
        raise StoreFailed(f"{what} is damaged in the store ({error}); run `ndani verify --repair`, or {advice}") from None
