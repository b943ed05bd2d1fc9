"""A second scheme of names: the aliases and ids of Foundry Local, for models that a store has under Ollama's names.

    smollm2:135m        alias smollm2-135m   id smollm2-135m-generic-cpu:1
    all-minilm:latest   alias all-minilm     id all-minilm-generic-cpu:1
    me/x:tag            alias me-x-tag       id me-x-tag-generic-cpu:1

An id may come without its version, and letters in any case. Nothing here reads the disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ndani.names import DEFAULT_TAG, Name

#: What an id says after the alias: the weights are for no vendor's device alone, and a processor is enough for them.
_DEVICE = "-generic-cpu"
VERSION = "1"


#: An id of Foundry Local's, whatever device it is for; the version may be missing.
_ID = re.compile(r".+-(?:generic|cuda|openvino|qnn|trtrtx|vitis)-(?:cpu|gpu|npu)(?::[0-9]+)?", re.IGNORECASE)


def is_id(text: str) -> bool:
    """Whether a name is an id of Foundry Local's: the client that sends it expects that program's form of answers."""
    return _ID.fullmatch(text) is not None


def alias_of(name: Name) -> str:
    """The alias of a model: its short name without the default tag, in one word."""
    return str(name).removesuffix(f":{DEFAULT_TAG}").replace("/", "-").replace(":", "-")


def id_of(name: Name) -> str:
    """The full id of a model."""
    return f"{alias_of(name)}{_DEVICE}:{VERSION}"


def match(text: str, names: Iterable[Name]) -> Name | None:
    """The name that an alias, an id without version or a full id means; None when there is none.

    Two names may have one alias (`a-b:c` and `a:b-c`): the first in the order of the alphabet has it.
    """
    alias = text.lower().removesuffix(f"{_DEVICE}:{VERSION}").removesuffix(_DEVICE)
    return min((name for name in names if alias_of(name).lower() == alias), key=lambda name: name.key, default=None)


def ids(names: Iterable[Name]) -> dict[Name, str]:
    """The id under which each model is listed: one whose alias is another's is listed by its own name."""
    listed: dict[Name, str] = {}
    taken: set[str] = set()
    for name in sorted(names, key=lambda name: name.key):
        own = id_of(name)
        listed[name] = str(name) if own.lower() in taken else own
        taken.add(own.lower())
    return listed
