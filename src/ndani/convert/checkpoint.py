"""Convert a checkpoint (safetensors, config.json and the tokenizer's files) into one GGUF file in F16.

`architectures` in config.json selects the family. Only one chunk of rows is in memory at a time. The same files give the
same bytes, so the digest of the result can be pinned.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ndani.convert import bert, llama
from ndani.convert.file_selection import choose_files
from ndani.convert.gguf_writer import ByteSink, GgufValue, TargetTensor, encode_head, padded, write
from ndani.convert.safetensors import read_object, read_tensors
from ndani.errors import BadRequest, Unsupported
from ndani.store.file_formats import detect_format
from ndani.store.parameters import excerpt

#: general.file_type of F16, and the current version of the quantisation format.
_FILE_TYPE_F16, _QUANTISATION_VERSION = 1, 2
#: Suffixes of tensors that only quantised weights have: GPTQ's and AWQ's, compressed-tensors', FP8's, bitsandbytes'.
_QUANTISED_SUFFIXES = (".qweight", ".qzeros", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".weight.absmax", ".SCB")


@dataclass(frozen=True, slots=True)
class Converted:
    """A GGUF file that is ready to be written: its header, and the tensors that its data is made from."""

    head: bytes
    targets: tuple[TargetTensor, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.head) + sum(padded(target.size) for target in self.targets)

    def write(self, out: ByteSink) -> Iterator[int]:
        """Write it; yields how many bytes are written so far. Raises Unsupported for values that F16 cannot hold."""
        return write(out, self.head, self.targets)

    def write_to_descriptor(self, descriptor: int) -> Generator[int]:
        """The same, into an open file, from its start."""
        with open(descriptor, "wb", closefd=False) as out:
            out.seek(0)
            yield from self.write(out)


def prepare(sources: Mapping[str, int]) -> Converted:
    """Read everything but the tensors' values, and report what is wrong. `sources` are open descriptors by relative path.

    The checkpoint nearest to the top folder is the model; other files are not read.
    Raises BadRequest for files that are damaged or missing, Unsupported for what cannot be converted.
    """
    chosen = choose_files({name: detect_format(descriptor) for name, descriptor in sources.items()})
    sources = {name: sources[path] for name, path in chosen.items()} or sources
    if "config.json" not in sources:
        raise BadRequest("there is no config.json beside the weights; send it, and the tokenizer's files too")
    config = read_object("config.json", sources["config.json"])
    lay_out = bert.lay_out if require_known(config) in bert.ARCHITECTURES else llama.lay_out
    tensors = read_tensors(sources)
    _require_unquantised(config, tensors)
    keys, targets = lay_out(sources, config, tensors)
    all_keys: dict[str, GgufValue] = keys | {"general.file_type": _FILE_TYPE_F16, "general.quantization_version": _QUANTISATION_VERSION}
    ordered = tuple(sorted(targets, key=_sort_key))
    return Converted(encode_head(all_keys, ordered), ordered)


def require_known(config: Mapping[str, Any]) -> str:
    """The architecture in config.json. Raises BadRequest when it is missing, Unsupported for one that cannot be converted."""
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise BadRequest("unknown architecture: config.json does not say which one; send the model's own config.json")
    supported = (*bert.ARCHITECTURES, *llama.ARCHITECTURES)
    if names[0] not in supported:
        listed = ", ".join(supported)
        raise Unsupported(f'unsupported architecture "{names[0][:60]}"; these can be converted: {listed}; for others, use a GGUF file')
    return names[0]


def _require_unquantised(config: Mapping[str, Any], tensors: Iterable[str]) -> None:
    """Refuse quantised weights. They are known by a key of config.json (three spellings) or by tensors that only they have."""
    for name in ("quantization_config", "quantization", "compression_config"):
        if settings := config.get(name):
            method = settings.get("quant_method") if isinstance(settings, dict) else None
            named = f" ({method[:30]})" if isinstance(method, str) else ""
            raise Unsupported(f"these weights are quantised already{named}; send those that they were made of, or use a GGUF file")
    if tensor := next((name for name in tensors if name.endswith(_QUANTISED_SUFFIXES)), None):
        raise Unsupported(f"these weights are quantised already ({excerpt(tensor)}); send those that they were made of, or use a GGUF file")


def _sort_key(target: TargetTensor) -> tuple[int, str]:
    """Tensors outside of blocks first, then block by block, so that the order does not depend on how the files were split."""
    number = target.name.split(".", 2)[1] if target.name.startswith("blk.") else ""
    return (int(number) if number else -1), target.name
