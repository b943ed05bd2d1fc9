"""Map each tensor of a checkpoint to its name in the engine, and check its shape against config.json. Pure.

Each family defines its own names (`llama`, `bert`). The checks of a set of tensors are here, for all families. They run
before anything is built whose length comes from config.json: its numbers are trusted only when the weights confirm them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ndani.convert.gguf_writer import TargetTensor
from ndani.convert.safetensors import WEIGHTS, StoredTensor
from ndani.errors import BadRequest, Unsupported
from ndani.store.parameters import excerpt

#: From a tensor's name in its file to its name in a family's `TensorMap`; None for one that the engine does not need.
Rename = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class TensorRule:
    """What one tensor becomes: the engine's name, the shape of its weight, and whether it has a bias (None: optional).

    With `keep_f32` the weight stays F32 although it is a matrix.
    """

    name: str
    shape: tuple[int, ...]
    bias: bool | None = False
    keep_f32: bool = False


@dataclass(frozen=True, slots=True)
class TensorMap:
    """All tensors of a model, by name without `.weight`: those outside of blocks, and those of each block behind `block_prefix`."""

    blocks: int
    block_prefix: str
    outside: Mapping[str, TensorRule]
    block: Mapping[str, TensorRule]
    optional: frozenset[str] = frozenset()

    def required_names(self) -> Iterator[str]:
        """The engine's names of all tensors that must be present."""
        yield from self._required_names("", self.outside)
        for number in range(self.blocks):
            yield from self._required_names(f"blk.{number}.", self.block)

    def _required_names(self, prefix: str, rules: Mapping[str, TensorRule]) -> Iterator[str]:
        for stem, rule in rules.items():
            if stem not in self.optional:
                yield f"{prefix}{rule.name}.weight"
                if rule.bias:
                    yield f"{prefix}{rule.name}.bias"


def count_rows(tensors: Mapping[str, StoredTensor], rename: Rename, name: str) -> int:
    """The rows of a tensor, where config.json does not give them; 0 when the tensor is missing."""
    return next((stored.shape[0] for full_name, stored in tensors.items() if rename(full_name) == name), 0)


def map_tensors(tensors: Mapping[str, StoredTensor], layout: TensorMap, rename: Rename) -> list[TargetTensor]:
    """The target of every tensor. Raises BadRequest for tensors that do not fit config.json, Unsupported for unknown ones."""
    if layout.blocks > len(tensors):
        raise BadRequest(f"config.json says {layout.blocks} layers, and these are {len(tensors)} tensors; send all files of one model")
    targets: dict[str, TargetTensor] = {}
    for full_name, stored in tensors.items():
        if (name := rename(full_name)) is not None:
            target = _target(full_name, name, stored, layout)
            if target.name in targets:
                raise BadRequest(f"the weights hold the tensor {excerpt(full_name)} twice, under two names; give one set of weights")
            targets[target.name] = target
    missing, first = 0, ""
    for name in layout.required_names():
        if name not in targets:
            missing, first = missing + 1, first or name
    if missing:
        raise BadRequest(f"the weights lack {missing} tensors of this model ({first} is one); send all of its files")
    return list(targets.values())


def _target(full_name: str, name: str, stored: StoredTensor, layout: TensorMap) -> TargetTensor:
    stem, _, suffix = name.rpartition(".")
    prefix, rules = "", layout.outside
    if stem.startswith(layout.block_prefix):
        number, _, stem = stem.removeprefix(layout.block_prefix).partition(".")
        is_block_number = number.isascii() and number.isdigit() and len(number) < 10 and int(number) < layout.blocks
        if not is_block_number:
            raise BadRequest(
                f"the tensor {excerpt(full_name)} does not belong to a model of {layout.blocks} layers; config.json is another model's"
            )
        prefix, rules = f"blk.{int(number)}.", layout.block
    rule = rules.get(stem)
    if rule is not None and suffix == "bias" and rule.bias is False:
        raise Unsupported(
            f"there is no place for the tensor {excerpt(full_name)}: this part of a model has no bias where config.json does not say so"
        )
    if rule is None or suffix not in ("weight", "bias"):
        raise Unsupported(f"there is no place for the tensor {excerpt(full_name)} in a model of this kind that the engine runs")
    shape = rule.shape if suffix == "weight" else rule.shape[:1]
    if stored.shape != shape:
        sizes = f"the shape {list(stored.shape)[:8]}, and config.json asks for {list(shape)}"
        raise BadRequest(f"the tensor {excerpt(full_name)} has {sizes}; it is another model's, send all files of one")
    if stored.dtype not in WEIGHTS:
        raise Unsupported(f"the tensor {excerpt(full_name)} is stored as {stored.dtype}; weights of {', '.join(WEIGHTS)} can be converted")
    return TargetTensor(f"{prefix}{rule.name}.{suffix}", "F16" if len(shape) > 1 and not rule.keep_f32 else "F32", stored)
