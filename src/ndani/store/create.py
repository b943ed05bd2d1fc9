"""A new name out of what the store has: a model, or GGUF blobs, with a template, parameters and the like laid over it.

Store work only. Where a base is pulled from, whether a template is a good one, and what makes a GGUF file of other
weights (conversion, quantising, joining of parts) is other rooms' business and done before. Weights are taken as they
are: their digest stays their publisher's.
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
from ndani.store import layout as kinds
from ndani.store.architectures import ARCHITECTURES
from ndani.store.blobs import MAX_SMALL_BLOB_SIZE
from ndani.store.extents import find_extents
from ndani.store.file_formats import GGUF, detect_format, wrong_format
from ndani.store.gguf import invalid_gguf as refuse_gguf
from ndani.store.known_templates import find_known_template
from ndani.store.layout import digest_of, hex_of, normalize_digest
from ndani.store.library import Store
from ndani.store.lora import check_lora
from ndani.store.modelfile import ROLES, check_version
from ndani.store.parameters import check_parameters, excerpt
from ndani.store.stored_model import Layer, Manifest, StoredModel, decode
from ndani.store.weights_info import WeightsInfo
from ndani.types import Message, Progress, Report

#: The keys of a config in Ollama's order; others, of versions to come, keep theirs behind these.
_CONFIG = (
    "model_format", "model_family", "model_families", "model_type", "file_type", "renderer", "parser", "requires",
    "remote_host", "remote_model", "capabilities", "context_length", "embedding_length", "base_name", "draft",
    "architecture", "os", "rootfs",
)  # fmt: skip
#: Files of one model: more would not fit in a manifest, and would be slow in every listing.
_MOST_PARTS = 1000
#: Go's JSON, so that a model made here and one made by Ollama from the same parts have the same id.
_GO_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PATH = re.compile(r"(?!\.{1,2}(/|\Z))[^/\\:]+(/(?!\.{1,2}(/|\Z))[^/\\:]+)*\Z")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a model is made of. Empty means not said: then the base's own counts, as in Ollama.

    `files` and `adapters` are digests of blobs in the store by the relative path that the client knows them by.
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
    #: The kind that the weights are to be quantised to. Done before `create`, which finds the result in `files` or, for a
    #: base's own weights, in `weights`; `made` has the digests of what came of it.
    quantize: str = ""
    converted_weights: str = ""
    converted: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _Part:
    """A layer to be: its content where it is new, None where the blob must be there already; a status of its own, if any."""

    layer: Layer
    content: bytes | None = None
    status: str = ""


def small_blobs(store: Store, recipe: Recipe) -> dict[str, bytes]:
    """The small files of the model that `create` would make of the recipe, by their digests. Raises as it does."""
    parts, config, _ = _plan(store, recipe)
    contents = [_ordered(config), *(part.content for part in parts if part.content is not None)]
    return {digest_of(content): content for content in contents}


def validate(store: Store, recipe: Recipe) -> None:
    """Refuse what `create` would refuse, but for weights in several parts: before they are joined, which takes long."""
    _plan(store, recipe, whole=False)


def create(store: Store, name: Name, recipe: Recipe, report: Report) -> None:
    """Make `name` stand for what the recipe says; a status for each step, in Ollama's words, `success` the last.

    The name is written when everything else is in place. Everything that can be wrong with the recipe is found before
    the first status. `report` may raise, which ends it. Raises BadRequest, Unsupported, StoreFailed.
    """
    parts, config, warnings = _plan(store, recipe)
    content = _ordered(config)
    head = Layer(kinds.CONFIG, digest_of(content), len(content))
    given = [digest for digest in (*recipe.files.values(), *recipe.adapters.values()) if digest not in recipe.converted]
    for _ in given:
        report(Progress("parsing GGUF"))
    for warning in warnings:
        report(Progress(f"warning: {warning}"))
    with store.claim({head.digest, *(part.layer.digest for part in parts)}):
        for part in parts:
            known = store.blobs.has(part.layer.digest, part.layer.size)
            if part.content is not None:
                store.blobs.put(part.content)
            elif not known:  # removed by another process since the plan was made
                raise StoreFailed("a file of this model was removed from the store in the meantime; pull or send it again")
            known = known and part.layer.digest not in recipe.converted
            report(Progress(part.status or f"{'using existing' if known else 'creating new'} layer {part.layer.digest}"))
        store.blobs.put(content)
        report(Progress("writing manifest"))
        manifest = Manifest(media_type=kinds.MANIFEST, config=head, layers=tuple(part.layer for part in parts))
        store.commit(name, msgspec.json.encode(manifest) + b"\n")
    report(Progress("success"))


def _plan(store: Store, recipe: Recipe, whole: bool = True) -> tuple[list[_Part], dict[str, Any], tuple[str, ...]]:
    """Every layer in its order, the config, and what the user is to be told. Writes nothing."""
    check_recipe(recipe)
    parameters, warnings = check_parameters(recipe.parameters)
    parts, config, model = _weights(store, recipe, whole)
    if model and recipe.base is None and model.architecture not in ARCHITECTURES:
        warnings += (f"the engine is not known to run models of the kind {excerpt(model.architecture)}; it may not load",)
    chat = find_known_template(model.chat_template) if model and recipe.base is None else None
    if chat:
        found = _text(kinds.TEMPLATE, chat.template)
        parts.append(_Part(found.layer, found.content, f"using autodetected template {chat.name}"))
    for path, digest in recipe.adapters.items():
        parts = _over(parts, _Part(_adapter(store, path, digest, model)))
    if recipe.template:
        parts = _over(parts, _text(kinds.TEMPLATE, recipe.template))
    if recipe.system:
        parts = _over(parts, _text(kinds.SYSTEM, recipe.system))
    known = {part.layer.digest for part in parts if part.layer.media_type == kinds.LICENSE}
    licenses = [_text(kinds.LICENSE, text) for text in dict.fromkeys(recipe.licenses) if text]
    parts += [part for part in licenses if part.layer.digest not in known]
    params = (recipe.base.params if recipe.base else dict(chat.parameters) if chat else {}) | parameters
    if params:
        parts = _over(parts, _part(kinds.PARAMS, _json(dict(sorted(params.items())))))
    if recipe.messages:
        talk = [{"role": message.role, "content": message.content} for message in recipe.messages]
        parts = _over(parts, _part(kinds.MESSAGES, _json(talk)))
    if recipe.requires:
        config = config | {"requires": check_version(recipe.requires)}
    if len(parts) > _MOST_PARTS:
        raise BadRequest(f"the model would have {len(parts)} parts, each license one of them, and may have {_MOST_PARTS}; join the texts")
    return parts, config, (*warnings, *(recipe.base.config.warnings if recipe.base else ()))


def check_recipe(recipe: Recipe) -> None:
    """What is wrong without a look at any file, and what would have to be obeyed and cannot be."""
    for word, value in (("RENDERER", recipe.renderer), ("PARSER", recipe.parser)):
        if value:
            raise Unsupported(f"{word} is not in this version of ndani; take the line out: the model's own chat template is used")
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
    """Refuse paths that are not relative or would not be shown as they are, and digests that are none. Raises BadRequest."""
    for path, digest in (*recipe.files.items(), *recipe.adapters.items()):
        if not _PATH.match(path):
            raise BadRequest("file path must be relative")
        if _CONTROL.search(path):
            raise BadRequest("a file's path holds control characters, and would be shown; rename the file")
        hex_of(digest)


def _weights(store: Store, recipe: Recipe, whole: bool) -> tuple[list[_Part], dict[str, Any], WeightsInfo | None]:
    """The layers and the config that everything else is laid over, and what the weights say of themselves."""
    parts: list[_Part] = []
    config: dict[str, Any] = {}
    model: WeightsInfo | None = None
    base = recipe.base
    if base is not None:
        _ = base.weights, base.config  # a model without them is of no use, nor is one made from it
        for layer in base.layers:
            if not store.blobs.has(layer.digest, layer.size):
                raise StoreFailed(f"the model {base.name} lacks a file in the store; pull it again")
            parts.append(_Part(msgspec.structs.replace(layer, source=str(base.name))))
        config = decode(base.blobs.read(base.manifest.config.digest), dict[str, Any], f"the config of {base.name}")
        if recipe.converted_weights:
            layer, header = read_weights(store, str(base.name), recipe.converted_weights)
            parts = [_Part(layer) if part.layer.media_type == kinds.MODEL else part for part in parts]
            config = config | {"file_type": header.file_type}
    for path, digest in sorted(recipe.files.items()):
        layer, header = read_weights(store, path, digest)
        if whole:
            _require_whole(path, header)
        if header.metadata.get("general.type") == "adapter":
            raise BadRequest(f"{path} is an adapter, not a model; name it with ADAPTER")
        if is_projector(header):
            parts = _over(parts, _Part(msgspec.structs.replace(layer, media_type=kinds.PROJECTOR)))
            continue
        _require_model(path, header)
        if base is not None:
            raise BadRequest(f"{path} and {base.name} are both models; FROM takes one of them")
        if model is not None:
            raise BadRequest(f"{path} is a second model; FROM takes one model, and the projector that belongs to it")
        model, config = header, _config(header)
        parts.append(_Part(layer))
    if base is None and model is None:
        raise BadRequest("there is a projector, but no model; give the model's own file as well")
    if base is not None and recipe.adapters:
        model = store.header(base)
    return parts, config, model


def read_weights(store: Store, path: str, digest: str, adapter: bool = False) -> tuple[Layer, WeightsInfo]:
    """A blob as a layer of weights, or of an adapter, and its head; the numbers that it tells of are all there.

    Sentences name the file as the client does, never the store's path. Raises BadRequest, StoreFailed.
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
    return Layer(kinds.MODEL, digest, size), header


def open_blob(store: Store, path: str, digest: str) -> BinaryIO:
    """A file that a client has sent, to be read; `path` is what the client calls it. Raises BadRequest, StoreFailed."""
    try:
        return store.layout.blob(digest).open("rb")
    except FileNotFoundError:
        raise BadRequest(f"the file {path} ({digest}) is not here; send it to /api/blobs/{digest} first") from None
    except OSError as error:
        raise StoreFailed(f"the file {path} cannot be read in the store ({error.strerror}); change its owner or mode") from None


def _require_whole(path: str, header: WeightsInfo) -> None:
    if _is_part(header):
        count = header.metadata["split.count"]
        raise BadRequest(f"{path} is one of {count} parts of a model; join them into one file and send that")


def _is_part(header: WeightsInfo) -> bool:
    count = header.metadata.get("split.count", 1)
    return isinstance(count, int) and count > 1


def _require_model(path: str, header: WeightsInfo) -> None:
    """Refuse what no engine could run, which would only be found out when it is loaded. Raises BadRequest."""
    if not isinstance(header.metadata.get("tokenizer.ggml.model"), str):
        raise refuse_gguf(path, "it has no vocabulary, without which no text can be read")


def _adapter(store: Store, path: str, digest: str, model: WeightsInfo | None) -> Layer:
    layer, header = read_weights(store, path, digest, adapter=True)
    check_lora(path, header, model)
    return msgspec.structs.replace(layer, media_type=kinds.ADAPTER)


def is_projector(header: WeightsInfo) -> bool:
    """Whether this file turns images or sound into tokens, and is no model by itself."""
    if header.metadata.get("general.type") in ("projector", "mmproj"):
        return True
    sees = header.metadata.get(f"{header.architecture}.vision.block_count") or header.architecture == "clip"
    return bool(sees) and not header.block_count


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


def _over(parts: list[_Part], part: _Part) -> list[_Part]:
    """This part in the place of those of its kind, and behind all others: where Ollama puts it."""
    return [*(other for other in parts if other.layer.media_type != part.layer.media_type), part]


def _text(kind: str, text: str) -> _Part:
    return _part(kind, text.encode("utf-8", "replace"))


def _part(kind: str, content: bytes) -> _Part:
    if len(content) > MAX_SMALL_BLOB_SIZE:
        word = kind.rpartition(".")[2]
        raise BadRequest(
            f"the {word} would take {len(content)} bytes, and no more than {MAX_SMALL_BLOB_SIZE} are ever read of it; make it shorter"
        )
    return _Part(Layer(kind, digest_of(content), len(content)), content)


def _ordered(config: dict[str, Any]) -> bytes:
    order = {key: place for place, key in enumerate(_CONFIG)}
    return _json(dict(sorted(config.items(), key=lambda item: order.get(item[0], len(order)))))


def _json(value: Any) -> bytes:
    """JSON as Go writes it, with the newline at its end."""
    return json.dumps(_whole(value), ensure_ascii=False, separators=(",", ":")).translate(_GO_ESCAPES).encode("utf-8", "replace") + b"\n"


def _whole(value: Any) -> Any:
    """1.0 as 1, which is how Go writes it."""
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_whole(item) for item in value]
    if isinstance(value, float) and math.isfinite(value) and value.is_integer() and abs(value) < 1e15:
        return int(value)
    return value
