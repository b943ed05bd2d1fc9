"""The public library's models: the names that people type, and the registry's own spelling of them, from a data file.

Their digests are not known here: the registry's manifest has them. The spellings are the library's own (`fp16`, `q4_K_M`),
which users rarely type exactly. Pinned models are in `catalogue`.
"""

from __future__ import annotations

from importlib import resources

import msgspec

from ndani.errors import Misconfigured
from ndani.names import DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG, Name, parse

#: Quantisations whose spelling in the library does not follow the rule of `_spelling`.
_IRREGULAR_SPELLINGS = {"f16": "fp16", "f32": "fp32"}


class LibraryModel(msgspec.Struct, frozen=True):
    """One size of one family. `variant` is the registry's name of a quantisation of it (`{}`).

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
        """The registry's spelling of a name of this model: plain or with a quantisation, in any letter case; else None."""
        own = parse(self.name)
        typed = f"{name.model}:{name.tag}".lower()
        if typed == f"{own.model}:{own.tag}".lower():
            return parse(self.registry_name)
        for quantization in self.quantizations:
            canonical = parse(self.variant.format(_spelling(quantization)))
            joined = quantization if own.tag == DEFAULT_TAG else f"{own.tag}-{quantization}"
            spellings = {f"{own.model}:{joined}", f"{own.model}:{joined.replace('f16', 'fp16')}"}
            spellings |= {f"{canonical.model}:{canonical.tag}", f"{canonical.model}:{canonical.tag.replace('fp16', 'f16')}"}
            if typed in {spelling.lower() for spelling in spellings}:
                return canonical
        return None


class _LibraryFile(msgspec.Struct, frozen=True):
    models: tuple[LibraryModel, ...]


def library_models() -> tuple[LibraryModel, ...]:
    """The known models of the library. Raises Misconfigured when the file is damaged."""
    try:
        return msgspec.json.decode((resources.files("ndani.sources") / "library.json").read_bytes(), type=_LibraryFile).models
    except (OSError, msgspec.DecodeError) as error:
        raise Misconfigured(f"the list of the library's names cannot be read: {error}; install ndani again") from None


def registry_spelling(name: Name) -> Name | None:
    """A name in the registry's own spelling; None when it is spelt so already, or is not known."""
    if name.host.lower() != DEFAULT_HOST or name.namespace.lower() != DEFAULT_NAMESPACE:
        return None
    for model in library_models():
        spelling = model.spelling(name)
        if spelling and (spelling.model, spelling.tag) != (name.model, name.tag):
            return spelling
    return None


def _spelling(quantization: str) -> str:
    # q4_k_m is q4_K_M there: the letters after the first underscore are upper case, except for the irregular ones.
    if quantization in _IRREGULAR_SPELLINGS:
        return _IRREGULAR_SPELLINGS[quantization]
    first, _, suffix = quantization.partition("_")
    return f"{first}_{suffix.upper()}" if suffix else first
