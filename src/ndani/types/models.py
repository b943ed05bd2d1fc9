"""Models as they are listed, and the steps of long work on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of long work (pull, push, create, …), as the user reads it. `total` and `completed` are bytes.

    `warning` marks a status that is a warning, for callers that show only some of the steps. No client is sent it.
    """

    status: str
    digest: str | None = None
    total: int | None = None
    completed: int | None = None
    warning: bool = False


#: The step before a manifest is written, and the last step of work that has succeeded, in Ollama's words.
WRITING_MANIFEST = Progress("writing manifest")
SUCCESS = Progress("success")


#: The callback that long work calls with each of its steps; it returns immediately.
Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Details:
    """A model's properties, as a listing shows them; `parent` is the name of the model that it was made from."""

    format: str = "gguf"
    family: str = ""
    families: tuple[str, ...] = ()
    parameter_size: str = ""
    quantization_level: str = ""
    context_length: int = 0
    embedding_length: int = 0
    parent: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """A model in the store. `digest` is its manifest's, as bare hex; `size` includes every file that it needs."""

    name: str
    digest: str
    size: int
    modified: float
    details: Details
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Resident:
    """A model in memory. `expires` is POSIX seconds, or None for never; `confined` says how its runner is jailed ("confined" if fully)."""

    name: str
    digest: str
    size: int
    size_vram: int
    details: Details
    context_length: int
    slots: int
    expires: float | None
    stopping: bool
    pid: int
    confined: str
