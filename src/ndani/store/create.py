"""Creates a model from what is in the store: a base model, or GGUF blobs, with another template, parameters and so on.

Pulling the base, checking the template, and converting, quantising or joining weights are done before, elsewhere. Weights
are used unchanged, so they keep their publisher's digest.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import msgspec

from ndani.errors import BadRequest, StoreFailed, Unsupported
from ndani.names import Name
from ndani.store import layout
from ndani.store.architectures import ARCHITECTURES
from ndani.store.blobs import MAX_SMALL_BLOB_SIZE
from ndani.store.extents import find_extents
from ndani.store.file_formats import GGUF, detect_format, wrong_format
from ndani.store.gguf import invalid_gguf as refuse_gguf
from ndani.store.known_templates import find_known_template
from ndani.store.layout import digest_of, hex_of, normalize_digest
from ndani.store.lora import check_lora
from ndani.store.modelfile import ROLES, check_version
from ndani.store.parameters import check_parameters, excerpt
from ndani.store.store import Store
from ndani.store.stored_model import Layer, Manifest, StoredModel, decode
from ndani.store.weights_info import WeightsInfo
from ndani.types import SUCCESS, WRITING_MANIFEST, Message, Progress, Report

#: The keys of a config in Ollama's order; unknown ones follow in their own order.
_CONFIG_ORDER = (
    "model_format", "model_family", "model_families", "model_type", "file_type", "renderer", "parser", "requires",
    "remote_host", "remote_model", "capabilities", "context_length", "embedding_length", "base_name", "draft",
    "architecture", "os", "rootfs",
)  # fmt: skip
#: Layers of one model: more would not fit in a manifest and would make listings slow.
_MAX_LAYERS = 1000
#: Go's JSON, so that a model made here and one made by Ollama from the same parts have the same id.
_GO_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PATH = re.compile(r"(?!\.{1,2}(/|\Z))[^/\\:]+(/(?!\.{1,2}(/|\Z))[^/\\:]+)*\Z")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to create a model from. An empty field is not set, and the base model's value stays, as in Ollama.

    `files` and `adapters` have the digests of blobs in the store by the client's relative paths.
    """

    base: StoredModel | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    adapters: Mapping[str, str] = field(default_factory=dict)
    drafts: Mapping[str, str] = field(default_factory=dict)
    template: str = ""
    system: str = ""
    licenses: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Message, ...] = ()
    requires: str = ""
    renderer: str = ""
    parser: str = ""
    #: The type to quantise the weights to. This is done before `create`, which finds the result in `files` or, for a base's own
    #: weights, in `converted_weights`; `converted` has the digests of the blobs that were made for this recipe.
    quantize: str = ""
    converted_weights: str = ""
    converted: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _RecipeLayer:
    """A planned layer: its content if it is new, None if the blob must be in the store already; and its own status, if any."""

    layer: Layer
    content: bytes | None = None
    status: str = ""


def small_blobs(store: Store, recipe: Recipe) -> dict[str, bytes]:
    """The small blobs that `create` would write for the recipe, by their digests. Raises as `create`."""
    parts, config, _ = _plan(store, recipe)
    contents = [_encode_config(config), *(part.content for part in parts if part.content is not None)]
    return {digest_of(content): content for content in contents}


def validate(store: Store, recipe: Recipe) -> None:
    """Refuse what `create` would refuse, except split weights: called before they are joined, which takes long."""
    _plan(store, recipe, whole=False)


def create(store: Store, name: Name, recipe: Recipe, report: Report) -> None:
    """Create the model `name` from the recipe; reports a status per step in Ollama's words, the last one `success`.

    The recipe is checked completely before the first status, and the name is written last. An exception from `report` ends
    the work. Raises BadRequest, Unsupported, StoreFailed.
    """
    parts, config, warnings = _plan(store, recipe)
    content = _encode_config(config)
    config_layer = Layer(layout.CONFIG, digest_of(content), len(content))
    given_digests = [digest for digest in (*recipe.files.values(), *recipe.adapters.values()) if digest not in recipe.converted]
    for _ in given_digests:
        report(Progress("parsing GGUF"))
    for warning in warnings:
        report(Progress(f"warning: {warning}", warning=True))
    with store.claim({config_layer.digest, *(part.layer.digest for part in parts)}):
        for part in parts:
            exists = store.blobs.has(part.layer.digest, part.layer.size)
            if part.content is not None:
                store.blobs.put(part.content)
            elif not exists:  # removed by another process since the plan was made
                raise StoreFailed("a file of this model was removed from the store in the meantime; pull or send it again")
            exists = exists and part.layer.digest not in recipe.converted
            report(Progress(part.status or f"{'using existing' if exists else 'creating new'} layer {part.layer.digest}"))
        store.blobs.put(content)
        report(WRITING_MANIFEST)
        manifest = Manifest(media_type=layout.MANIFEST, config=config_layer, layers=tuple(part.layer for part in parts))
        store.commit(name, msgspec.json.encode(manifest) + b"\n")
    report(SUCCESS)


def _plan(store: Store, recipe: Recipe, whole: bool = True) -> tuple[list[_RecipeLayer], dict[str, Any], tuple[str, ...]]:
    """The layers in their order, the config, and warnings for the user. Writes nothing."""
    check_recipe(recipe)
    parameters, warnings = check_parameters(recipe.parameters)
    parts, config, model = _weights(store, recipe, whole)
    if model and recipe.base is None and model.architecture not in ARCHITECTURES:
        warnings += (f"the engine is not known to run models of the kind {excerpt(model.architecture)}; it may not load",)
    known_template = find_known_template(model.chat_template) if model and recipe.base is None else None
    if known_template:
        template = _text_layer(layout.TEMPLATE, known_template.template)
        parts.append(_RecipeLayer(template.layer, template.content, f"using autodetected template {known_template.name}"))
    for path, digest in recipe.adapters.items():
        parts = _replace_kind(parts, _RecipeLayer(_adapter(store, path, digest, model)))
    if recipe.template:
        parts = _replace_kind(parts, _text_layer(layout.TEMPLATE, recipe.template))
    if recipe.system:
        parts = _replace_kind(parts, _text_layer(layout.SYSTEM, recipe.system))
    known = {part.layer.digest for part in parts if part.layer.media_type == layout.LICENSE}
    licenses = [_text_layer(layout.LICENSE, text) for text in dict.fromkeys(recipe.licenses) if text]
    parts += [part for part in licenses if part.layer.digest not in known]
    params = (recipe.base.params if recipe.base else dict(known_template.parameters) if known_template else {}) | parameters
    if params:
        parts = _replace_kind(parts, _content_layer(layout.PARAMS, _go_json(dict(sorted(params.items())))))
    if recipe.messages:
        messages = [{"role": message.role, "content": message.content} for message in recipe.messages]
        parts = _replace_kind(parts, _content_layer(layout.MESSAGES, _go_json(messages)))
    if recipe.requires:
        config = config | {"requires": check_version(recipe.requires)}
    if len(parts) > _MAX_LAYERS:
        raise BadRequest(f"the model would have {len(parts)} parts, each license one of them, and may have {_MAX_LAYERS}; join the texts")
    return parts, config, (*warnings, *(recipe.base.config.warnings if recipe.base else ()))


def check_recipe(recipe: Recipe) -> None:
    """Refuse what is wrong or unsupported in a recipe, without reading any file. Raises BadRequest, Unsupported."""
    for instruction, value in (("RENDERER", recipe.renderer), ("PARSER", recipe.parser)):
        if value:
            raise Unsupported(f"{instruction} is not in this version of ndani; take the line out: the model's own chat template is used")
    if recipe.drafts:
        raise Unsupported("DRAFT is not in this version of ndani; take the line out: the answers are the same without it")
    if recipe.base is None and not recipe.files:
        raise BadRequest("neither 'from' or 'files' was specified")
    if len(recipe.adapters) > 1:
        raise BadRequest("only one adapter is currently supported")
    check_files(recipe)
    if any(message.role not in ROLES for message in recipe.messages):
        raise BadRequest('message role must be one of "system", "user", or "assistant"')


def check_files(recipe: Recipe) -> None:
    """Refuse paths that are not relative or contain control characters, and invalid digests. Raises BadRequest."""
    for path, digest in (*recipe.files.items(), *recipe.adapters.items()):
        if not _PATH.match(path):
            raise BadRequest("file path must be relative")
        if _CONTROL.search(path):
            raise BadRequest("a file's path holds control characters, and would be shown; rename the file")
        hex_of(digest)


def _weights(store: Store, recipe: Recipe, whole: bool) -> tuple[list[_RecipeLayer], dict[str, Any], WeightsInfo | None]:
    """The layers and the config of the base or the files, and the header of the weights where it is needed."""
    parts: list[_RecipeLayer] = []
    config: dict[str, Any] = {}
    model: WeightsInfo | None = None
    projector: WeightsInfo | None = None
    base = recipe.base
    if base is not None:
        _ = base.weights, base.config  # a model without them is of no use, nor is one made from it
        for layer in base.layers:
            if not store.blobs.has(layer.digest, layer.size):
                raise StoreFailed(f"the model {base.name} lacks a file in the store; pull it again")
            parts.append(_RecipeLayer(msgspec.structs.replace(layer, source=str(base.name))))
        config = decode(base.blobs.read(base.manifest.config.digest), dict[str, Any], f"the config of {base.name}")
        if recipe.converted_weights:
            layer, header = read_weights(store, str(base.name), recipe.converted_weights)
            parts = [_RecipeLayer(layer) if part.layer.media_type == layout.MODEL else part for part in parts]
            config = config | {"file_type": header.file_type}
    for path, digest in sorted(recipe.files.items()):
        layer, header = read_weights(store, path, digest)
        if whole:
            _require_unsplit(path, header)
        if header.metadata.get("general.type") == "adapter":
            raise BadRequest(f"{path} is an adapter, not a model; name it with ADAPTER")
        if is_projector(header):
            parts = _replace_kind(parts, _RecipeLayer(msgspec.structs.replace(layer, media_type=layout.PROJECTOR)))
            projector = header
            continue
        _require_model(path, header)
        if base is not None:
            raise BadRequest(f"{path} and {base.name} are both models; FROM takes one of them")
        if model is not None:
            raise BadRequest(f"{path} is a second model; FROM takes one model, and the projector that belongs to it")
        model, config = header, _config(header)
        parts.append(_RecipeLayer(layer))
    if base is None and model is None:
        raise BadRequest("there is a projector, but no model; give the model's own file as well")
    if projector is not None:
        families = [*(config.get("model_families") or ()), excerpt(projector.architecture)]
        config = config | {"model_families": list(dict.fromkeys(families))}
    if base is not None and recipe.adapters:
        model = store.header(base)
    return parts, config, model


def read_weights(store: Store, path: str, digest: str, adapter: bool = False) -> tuple[Layer, WeightsInfo]:
    """A blob as a layer of weights, or of an adapter, and its header; checks that no tensor data is missing.

    Error messages have the client's path of the file, never the store's. Raises BadRequest, StoreFailed.
    """
    digest = normalize_digest(digest)
    with open_blob(store, path, digest) as file:
        form, size = detect_format(file.fileno()), os.fstat(file.fileno()).st_size
    if form != GGUF:
        raise wrong_format(path, form, adapter)
    try:
        header = store.inspect(digest)
    except ValueError as error:
        raise refuse_gguf(path, str(error)) from None
    if not header.tensors and not _is_part(header):  # the first of several parts may have none
        raise refuse_gguf(path, "it has no tensors, and so no weights")
    find_extents(path, header.metadata, header.tensors, header.end, size)
    return Layer(layout.MODEL, digest, size), header


def open_blob(store: Store, path: str, digest: str) -> BinaryIO:
    """Open a file that a client has sent, for reading; `path` is the client's. Raises BadRequest, StoreFailed."""
    try:
        return store.layout.blob(digest).open("rb")
    except FileNotFoundError:
        raise BadRequest(f"the file {path} ({digest}) is not here; send it to /api/blobs/{digest} first") from None
    except OSError as error:
        raise StoreFailed(f"the file {path} cannot be read in the store ({error.strerror}); change its owner or mode") from None


def _require_unsplit(path: str, header: WeightsInfo) -> None:
    if _is_part(header):
        count = header.metadata["split.count"]
        raise BadRequest(f"{path} is one of {count} parts of a model; join them into one file and send that")


def _is_part(header: WeightsInfo) -> bool:
    count = header.metadata.get("split.count", 1)
    return isinstance(count, int) and count > 1


def _require_model(path: str, header: WeightsInfo) -> None:
    """Refuse weights that no engine can run, instead of failing when they are loaded. Raises BadRequest."""
    if not isinstance(header.metadata.get("tokenizer.ggml.model"), str):
        raise refuse_gguf(path, "it has no vocabulary, without which no text can be read")


def _adapter(store: Store, path: str, digest: str, model: WeightsInfo | None) -> Layer:
    layer, header = read_weights(store, path, digest, adapter=True)
    check_lora(path, header, model)
    return msgspec.structs.replace(layer, media_type=layout.ADAPTER)


def is_projector(header: WeightsInfo) -> bool:
    """Whether this file is a projector, which turns images or sound into tokens, and not a model."""
    if header.metadata.get("general.type") in ("projector", "mmproj"):
        return True
    has_vision = header.metadata.get(f"{header.architecture}.vision.block_count") or header.architecture == "clip"
    return bool(has_vision) and not header.block_count


def _config(header: WeightsInfo) -> dict[str, Any]:
    family = excerpt(header.architecture)  # goes to listings, and to whoever prints them
    return {
        "model_format": "gguf",
        "model_family": family,
        "model_families": [family],
        "model_type": header.parameter_size,
        "file_type": header.file_type,
        "architecture": "amd64",
        "os": "linux",
    }


def _replace_kind(parts: list[_RecipeLayer], part: _RecipeLayer) -> list[_RecipeLayer]:
    """The layers with those of the same kind replaced by this one, which goes last, as in Ollama."""
    return [*(other for other in parts if other.layer.media_type != part.layer.media_type), part]


def _text_layer(kind: str, text: str) -> _RecipeLayer:
    return _content_layer(kind, text.encode("utf-8", "replace"))


def _content_layer(kind: str, content: bytes) -> _RecipeLayer:
    if len(content) > MAX_SMALL_BLOB_SIZE:
        layer_kind = kind.rpartition(".")[2]
        raise BadRequest(
            f"the {layer_kind} would take {len(content)} bytes, and no more than {MAX_SMALL_BLOB_SIZE} are ever read of it; make it shorter"
        )
    return _RecipeLayer(Layer(kind, digest_of(content), len(content)), content)


def _encode_config(config: dict[str, Any]) -> bytes:
    order = {key: position for position, key in enumerate(_CONFIG_ORDER)}
    return _go_json(dict(sorted(config.items(), key=lambda item: order.get(item[0], len(order)))))


def _go_json(value: Any) -> bytes:
    """JSON as Go writes it, with a newline at the end."""
    return (
        json.dumps(_go_numbers(value), ensure_ascii=False, separators=(",", ":")).translate(_GO_ESCAPES).encode("utf-8", "replace") + b"\n"
    )


def _go_numbers(value: Any) -> Any:
    """Floats such as 1.0 as integers, because Go writes them as 1."""
    if isinstance(value, dict):
        return {key: _go_numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_go_numbers(item) for item in value]
    if isinstance(value, float) and math.isfinite(value) and value.is_integer() and abs(value) < 1e15:
        return int(value)
    return value
