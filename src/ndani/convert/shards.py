"""A model that comes in several GGUF files: which files belong together, in which order, and whether all are there. Pure.

Their numbers are brought together in `quantise`, whose plan takes one file or many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ndani.errors import BadRequest

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
KEYS = (NUMBER, COUNT, TENSORS)


def is_shard(keys: Mapping[str, Any]) -> bool:
    """Whether a file says that it is one of several."""
    count = keys.get(COUNT, 1)
    return isinstance(count, int) and count > 1


def in_order(shards: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The names of a model's files, the first first; `shards` has each one's key/values by its name.

    Raises BadRequest when they are not all there, or are not of one model.
    """
    first, count = next((name, keys[COUNT]) for name, keys in shards.items())
    places: dict[int, str] = {}
    for name, keys in shards.items():
        number = keys.get(NUMBER)
        if keys[COUNT] != count:
            raise BadRequest(f"{name} is one of {keys[COUNT]} parts of a model, and {first} one of {count}; give those of one model")
        if not isinstance(number, int) or not 0 <= number < count:
            raise BadRequest(f"{name} is one of {count} parts of a model, and says that it is part {number}, counted from 0; get it again")
        if number in places:
            raise BadRequest(f"{name} and {places[number]} are both part {number + 1} of {count}; give each part once")
        places[number] = name
    missing = next((number + 1 for number in range(count) if number not in places), 0)
    if missing:
        other = f"part {missing} (…-{missing:05}-of-{count:05}.gguf)"
        raise BadRequest(f"{first} is one of {count} parts of a model, and {other} is missing; give all of them")
    return [places[number] for number in range(count)]


def check_whole(shards: Sequence[tuple[str, Mapping[str, Any]]], tensors: int) -> None:
    """Raise BadRequest when the parts together have other than the number of tensors that the first one says."""
    said = shards[0][1].get(TENSORS)
    if len(shards) > 1 and isinstance(said, int) and said != tensors:
        raise BadRequest(f"the parts have {tensors} tensors together, and {shards[0][0]} says {said}; get the parts again")
