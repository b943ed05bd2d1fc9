"""The public library's families: names as people type them, and as the library's registry spells them. A data file.

No digest is known of these: what a name stands for is the registry's manifest's to say. The spellings are the library's
own (`fp16`, `q4_K_M`), which users rarely get right. What is pinned is in `catalogue`.
"""

from __future__ import annotations

from importlib import resources

import msgspec

from ndani.errors import Misconfigured
from ndani.names import DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG, Name, parse

#: Quantisations whose spelling in the library is not the small letters that people type.
_SPELT = {"f16": "fp16", "f32": "fp32"}


class LibraryModel(msgspec.Struct, frozen=True):
    """One size of one family. `at` is its name in the registry, `variant` that of a quantisation of it (`{}`).

    `type` and `size_class` as in the catalogue.
    """

    name: str
    registry_name: str
    variant: str
    quantizations: tuple[str, ...]
    family: str
    parameters: str
    license: str
    type: str
    size_class: str

    def spelling(self, name: Name) -> Name | None:
        """How the registry spells this name, if it is this model's: plain, with a quantisation, or in another case."""
        own = parse(self.name)
        typed = f"{name.model}:{name.tag}".lower()
        if typed == f"{own.model}:{own.tag}".lower():
            return parse(self.registry_name)
        for quantization in self.quantizations:
            there = parse(self.variant.format(_spelling(quantization)))
            joined = quantization if own.tag == DEFAULT_TAG else f"{own.tag}-{quantization}"
            alike = {f"{own.model}:{joined}", f"{own.model}:{joined.replace('f16', 'fp16')}"}
            alike |= {f"{there.model}:{there.tag}", f"{there.model}:{there.tag.replace('fp16', 'f16')}"}
            if typed in {word.lower() for word in alike}:
                return there
        return None


class _LibraryFile(msgspec.Struct, frozen=True):
    models: tuple[LibraryModel, ...]


def library_models() -> tuple[LibraryModel, ...]:
    """Every model that the library is known to have. Raises Misconfigured when the file is damaged."""
    try:
        return msgspec.json.decode((resources.files("ndani.sources") / "library.json").read_bytes(), type=_LibraryFile).models
    except (OSError, msgspec.DecodeError) as error:
        raise Misconfigured(f"the list of the library's names cannot be read: {error}; install ndani again") from None


def registry_spelling(name: Name) -> Name | None:
    """The same model as the library's registry spells it, or None when that is how it was typed, or nothing is known of it."""
    if name.host.lower() != DEFAULT_HOST or name.namespace.lower() != DEFAULT_NAMESPACE:
        return None
    for model in library_models():
        found = model.spelling(name)
        if found and (found.model, found.tag) != (name.model, name.tag):
            return found
    return None


def _spelling(quantization: str) -> str:
    # q4_k_m is q4_K_M there: the letters after the first underscore are large, but for those of the oldest kinds.
    if quantization in _SPELT:
        return _SPELT[quantization]
    first, _, rest = quantization.partition("_")
    return f"{first}_{rest.upper()}" if rest else first
