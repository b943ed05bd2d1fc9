"""A model that is split into several GGUF files: which files belong together, their order, and whether all are present. Pure.

`quantise` joins their tensors; its plan takes one file or many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ndani.errors import BadRequest

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
KEYS = (NUMBER, COUNT, TENSORS)


def is_shard(keys: Mapping[str, Any]) -> bool:
    """Whether a file's keys declare it one of several parts."""
    count = keys.get(COUNT, 1)
    return isinstance(count, int) and count > 1


def in_order(shards: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The names of a model's files, in order; `shards` has each file's key/values by name.

    Raises BadRequest when some are missing, or they are not of one model.
    """
    first, count = next((name, keys[COUNT]) for name, keys in shards.items())
    by_number: dict[int, str] = {}
    for name, keys in shards.items():
        number = keys.get(NUMBER)
        if keys[COUNT] != count:
            raise BadRequest(f"{name} is one of {keys[COUNT]} parts of a model, and {first} one of {count}; give those of one model")
        if not isinstance(number, int) or not 0 <= number < count:
            raise BadRequest(f"{name} is one of {count} parts of a model, and says that it is part {number}, counted from 0; get it again")
        if number in by_number:
            raise BadRequest(f"{name} and {by_number[number]} are both part {number + 1} of {count}; give each part once")
        by_number[number] = name
    missing = next((number + 1 for number in range(count) if number not in by_number), 0)
    if missing:
        part = f"part {missing} (…-{missing:05}-of-{count:05}.gguf)"
        raise BadRequest(f"{first} is one of {count} parts of a model, and {part} is missing; give all of them")
    return [by_number[number] for number in range(count)]


def check_whole(shards: Sequence[tuple[str, Mapping[str, Any]]], tensors: int) -> None:
    """Raise BadRequest when the parts together have another number of tensors than the first part states."""
    stated = shards[0][1].get(TENSORS)
    if len(shards) > 1 and isinstance(stated, int) and stated != tensors:
        raise BadRequest(f"the parts have {tensors} tensors together, and {shards[0][0]} says {stated}; get the parts again")
