"""A checkpoint (safetensors, config.json and the tokenizer's files) into one GGUF file of F16 numbers.

The family is chosen by `architectures` in config.json. Nothing of the weights is in memory but a run of rows, and the
same files give the same bytes, so that a digest of the result can be pinned.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ndani.convert import bert, llama
from ndani.convert.file_selection import choose_files
from ndani.convert.gguf_writer import ByteSink, GgufValue, TargetTensor, head, padded, write
from ndani.convert.safetensors import read_object, read_tensors
from ndani.errors import BadRequest, Unsupported
from ndani.store.file_formats import detect_format
from ndani.store.parameters import short

#: general.file_type of a file whose numbers are F16, and the version of the form of quantised numbers that all share.
_F16, _VERSION = 1, 2
#: How tensors end that only quantised weights have: GPTQ's and AWQ's, compressed-tensors', FP8's, bitsandbytes'.
_QUANTISED = (".qweight", ".qzeros", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".weight.absmax", ".SCB")


@dataclass(frozen=True, slots=True)
class Converted:
    """A file to be: everything that stands before its numbers, and where these come from."""

    head: bytes
    targets: tuple[TargetTensor, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.head) + sum(padded(target.size) for target in self.targets)

    def write(self, out: ByteSink) -> Iterator[int]:
        """Write it; yields how many bytes are written so far. Raises Unsupported for numbers that F16 cannot hold."""
        return write(out, self.head, self.targets)

    def fill(self, descriptor: int) -> Generator[int]:
        """The same, from the start of an open file."""
        with open(descriptor, "wb", closefd=False) as out:
            out.seek(0)
            yield from self.write(out)


def prepare(sources: Mapping[str, int]) -> Converted:
    """Read all but the numbers, and find everything that is wrong with it. `sources` are open descriptors by their relative path.

    The outermost checkpoint among them is the model; what else lies there is not read.
    Raises BadRequest for files that are damaged or missing, Unsupported for what cannot be converted.
    """
    chosen = choose_files({name: detect_format(descriptor) for name, descriptor in sources.items()})
    sources = {name: sources[path] for name, path in chosen.items()} or sources
    if "config.json" not in sources:
        raise BadRequest("there is no config.json beside the weights; send it, and the tokenizer's files too")
    config = read_object("config.json", sources["config.json"])
    lay_out = bert.lay_out if require_known(config) in bert.ARCHITECTURES else llama.lay_out
    tensors = read_tensors(sources)
    _require_plain(config, tensors)
    keys, targets = lay_out(sources, config, tensors)
    every: dict[str, GgufValue] = keys | {"general.file_type": _F16, "general.quantization_version": _VERSION}
    ordered = tuple(sorted(targets, key=_place))
    return Converted(head(every, ordered), ordered)


def require_known(config: Mapping[str, Any]) -> str:
    """The architecture that config.json says. Raises BadRequest where it says none, Unsupported for one that cannot be converted."""
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise BadRequest("unknown architecture: config.json does not say which one; send the model's own config.json")
    known = (*bert.ARCHITECTURES, *llama.ARCHITECTURES)
    if names[0] not in known:
        can = ", ".join(known)
        raise Unsupported(f'unsupported architecture "{names[0][:60]}"; these can be converted: {can}; for others, use a GGUF file')
    return names[0]


def _require_plain(config: Mapping[str, Any], tensors: Iterable[str]) -> None:
    """Refuse weights that are quantised, by what config.json says (three spellings) or by tensors that only such weights have."""
    for name in ("quantization_config", "quantization", "compression_config"):
        if said := config.get(name):
            kind = said.get("quant_method") if isinstance(said, dict) else None
            called = f" ({kind[:30]})" if isinstance(kind, str) else ""
            raise Unsupported(f"these weights are quantised already{called}; send those that they were made of, or use a GGUF file")
    if found := next((name for name in tensors if name.endswith(_QUANTISED)), None):
        raise Unsupported(f"these weights are quantised already ({short(found)}); send those that they were made of, or use a GGUF file")


def _place(target: TargetTensor) -> tuple[int, str]:
    """Tensors of no block first, then block by block, so that the order does not depend on how the files were split."""
    number = target.name.split(".", 2)[1] if target.name.startswith("blk.") else ""
    return (int(number) if number else -1), target.name
