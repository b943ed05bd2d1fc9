"""The models that a user may choose from: those of the store, and those that a pull would bring by a known name.

What is known beforehand is in two files of the package (`sources/catalogue`, `sources/families`); nothing is asked over the
network.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from functools import cache

from ndani import names
from ndani.errors import BadName, StoreFailed
from ndani.names import Name
from ndani.service import model_ids
from ndani.service.models import Models
from ndani.sources import catalogue, families
from ndani.types import Model

#: What a model of each type can do, before its weights are here to say it.
_CAPABILITIES = {"embedding": ("embedding",)}


@dataclass(frozen=True, slots=True)
class AvailableModel:
    """A model of the store, or one that can be pulled. `size` is in bytes, 0 where only its source knows it.

    `type` (instruct, base, embedding) and `size_class` (tiny, small, medium, large) are empty for models that nobody has described.
    """

    name: Name
    installed: bool
    size: int = 0
    capabilities: tuple[str, ...] = ("completion",)
    context_length: int = 0
    license: str = ""
    type: str = ""
    size_class: str = ""


async def available(models: Models) -> list[AvailableModel]:
    """Every model of the store, then those that can be pulled; each part by its name."""
    installed = await models.installed()
    described = {model.name.key: model for model in _pullable()}
    here = await asyncio.to_thread(lambda: [_installed(models, model, described) for model in installed])
    keys = {model.name.key for model in here}
    return [*sorted(here, key=lambda model: model.name.key), *(model for model in _pullable() if model.name.key not in keys)]


def pullable_name(text: str) -> Name:
    """The name to pull for a text: what a known model's alias or id means, else the text itself. Raises BadName."""
    known = [model.name for model in _pullable()]
    with contextlib.suppress(BadName):
        name = names.parse(text)
        if name.key in {other.key for other in known}:
            return name
    return model_ids.match(text, known) or names.parse(text)


def is_pullable(text: str) -> bool:
    """Whether a text is the name, the alias or an id of a model that can be pulled by a known name."""
    with contextlib.suppress(BadName):
        return pullable_name(text).key in {model.name.key for model in _pullable()}
    return False


def _installed(models: Models, model: Model, described: dict[str, AvailableModel]) -> AvailableModel:
    name = names.parse(model.name)
    known = described.get(name.key, AvailableModel(name, True))
    embeds = "embedding" in model.capabilities
    return AvailableModel(
        name,
        True,
        model.size,
        model.capabilities,
        model.details.context_length,
        known.license or _license(models, name),
        known.type or ("embedding" if embeds else ""),
        known.size_class,
    )


def _license(models: Models, name: Name) -> str:
    """The licence that the weights name, or an empty text."""
    with contextlib.suppress(StoreFailed):  # a damaged model is listed all the same; a request for it gets the error
        return str(models.store.header_summary(models.store.find(name)).metadata.get("general.license") or "")
    return ""


@cache
def _pullable() -> tuple[AvailableModel, ...]:
    """The models of both files, by name. A pinned one is described better, so it counts where both have it."""
    found = {}
    for model in families.library_models():
        name = names.parse(model.name)
        found[name.key] = AvailableModel(
            name, False, 0, _CAPABILITIES.get(model.type, ("completion",)), 0, model.license, model.type, model.size_class
        )
    for pinned in catalogue.load().models:
        name = names.parse(pinned.name)
        capabilities = _CAPABILITIES.get(pinned.type, ("completion",))
        size = sum(layer.size for layer in pinned.layers)
        found[name.key] = AvailableModel(
            name, False, size, capabilities, pinned.context_length, pinned.license, pinned.type, pinned.size_class
        )
    return tuple(sorted(found.values(), key=lambda model: model.name.key))
