"""Which tensor of a checkpoint goes where: its name in the engine, and the shape that config.json says it has. Pure.

Each family says its own names (`llama`, `bert`). What is wrong with a set of tensors is found here for all of them, and
before anything is made that is as long as config.json claims: its numbers are believed where the weights bear them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ndani.convert.gguf_writer import TargetTensor
from ndani.convert.safetensors import WEIGHTS, StoredTensor
from ndani.errors import BadRequest, Unsupported
from ndani.store.parameters import short

#: A tensor's name as a family's layout has it, out of the one that its file has; None for one that the engine does without.
Rename = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class TensorRule:
    """Where a tensor goes: the engine's name, the shape of its weight, and whether a bias belongs to it (None: it may).

    A weight that is `plain` stays F32 although it is a matrix.
    """

    name: str
    shape: tuple[int, ...]
    bias: bool | None = False
    plain: bool = False


@dataclass(frozen=True, slots=True)
class TensorMap:
    """All tensors of a model, by their names without `.weight`: those of no block, and those of each, which begin with `begin`."""

    blocks: int
    begin: str
    whole: Mapping[str, TensorRule]
    block: Mapping[str, TensorRule]
    optional: frozenset[str] = frozenset()

    def needed(self) -> Iterator[str]:
        """The engine's names of all that has to be there."""
        yield from self._needed("", self.whole)
        for number in range(self.blocks):
            yield from self._needed(f"blk.{number}.", self.block)

    def _needed(self, before: str, places: Mapping[str, TensorRule]) -> Iterator[str]:
        for stem, place in places.items():
            if stem not in self.optional:
                yield f"{before}{place.name}.weight"
                if place.bias:
                    yield f"{before}{place.name}.bias"


def rows_of(tensors: Mapping[str, StoredTensor], rename: Rename, name: str) -> int:
    """How many rows a tensor has that config.json does not tell; 0 when it is not there."""
    return next((stored.shape[0] for full, stored in tensors.items() if rename(full) == name), 0)


def map_tensors(tensors: Mapping[str, StoredTensor], layout: TensorMap, rename: Rename) -> list[TargetTensor]:
    """Every tensor in its place. Raises BadRequest for a set that is not this model's, Unsupported for what has no place."""
    if layout.blocks > len(tensors):
        raise BadRequest(f"config.json says {layout.blocks} layers, and these are {len(tensors)} tensors; send all files of one model")
    made: dict[str, TargetTensor] = {}
    for full, stored in tensors.items():
        if (name := rename(full)) is not None:
            target = _target(full, name, stored, layout)
            if target.name in made:
                raise BadRequest(f"the weights hold the tensor {short(full)} twice, under two names; give one set of weights")
            made[target.name] = target
    missing, first = 0, ""
    for name in layout.needed():
        if name not in made:
            missing, first = missing + 1, first or name
    if missing:
        raise BadRequest(f"the weights lack {missing} tensors of this model ({first} is one); send all of its files")
    return list(made.values())


def _target(full: str, name: str, stored: StoredTensor, layout: TensorMap) -> TargetTensor:
    stem, _, end = name.rpartition(".")
    before, places = "", layout.whole
    if stem.startswith(layout.begin):
        number, _, stem = stem.removeprefix(layout.begin).partition(".")
        if not (number.isascii() and number.isdigit() and len(number) < 10 and int(number) < layout.blocks):
            raise BadRequest(
                f"the tensor {short(full)} does not belong to a model of {layout.blocks} layers; config.json is another model's"
            )
        before, places = f"blk.{int(number)}.", layout.block
    place = places.get(stem)
    if place is not None and end == "bias" and place.bias is False:
        raise Unsupported(
            f"there is no place for the tensor {short(full)}: this part of a model has no bias where config.json does not say so"
        )
    if place is None or end not in ("weight", "bias"):
        raise Unsupported(f"there is no place for the tensor {short(full)} in a model of this kind that the engine runs")
    shape = place.shape if end == "weight" else place.shape[:1]
    if stored.shape != shape:
        sizes = f"the shape {list(stored.shape)[:8]}, and config.json asks for {list(shape)}"
        raise BadRequest(f"the tensor {short(full)} has {sizes}; it is another model's, send all files of one")
    if stored.dtype not in WEIGHTS:
        raise Unsupported(f"the tensor {short(full)} is stored as {stored.dtype}; weights of {', '.join(WEIGHTS)} can be converted")
    return TargetTensor(f"{before}{place.name}.{end}", "F16" if len(shape) > 1 and not place.plain else "F32", stored)
