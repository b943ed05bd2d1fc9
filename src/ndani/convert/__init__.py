"""Weights made of other weights: quantised, joined, or converted from safetensors. The door: a `Task`, and `make`.

It runs in a process of its own, which has every file open before it starts and can open no other (`supervisor` starts it,
`worker` is its main): for a user's weights and for files that have come from elsewhere alike. The front uses the pure
parts (`kinds`, `shards`, `quantise.plan`) to say what is wrong before a process is started.
Which of a recipe's files need this, and what the result is called, is the front's business.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import dataclass

import msgspec

from ndani.convert.kernels import Kernels, load
from ndani.convert.quantise import open_source, plan, write


class SourceFile(msgspec.Struct, frozen=True):
    """A file to be read: the name that its owner knows it by, and an open descriptor."""

    name: str
    descriptor: int


class Task(msgspec.Struct, frozen=True):
    """What to make: one GGUF file, into an open descriptor.

    Either out of the parts of one model, of `kind` (empty: types stay), or of a `checkpoint`: safetensors and all that
    says what they are.
    """

    sources: tuple[SourceFile, ...]
    output: int
    kind: str = ""
    threads: int = 1
    checkpoint: bool = False


@dataclass(frozen=True, slots=True)
class Conversion:
    """A file about to be made: its bytes, and the steps to it, of which none is done; each says how many of `total` bytes are."""

    size: int
    total: int
    progress: Generator[int]


def load_libraries(task: Task) -> Kernels | None:
    """Load what the task needs, before the jail shuts. Raises Misconfigured."""
    if task.checkpoint:
        # numpy's library for matrices, which nothing here uses, starts a thread per core as it is loaded; a jail holds one.
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        import ndani.convert.checkpoint  # noqa: F401 - with numpy, which only who converts has to load
    return load() if task.kind else None


def plan_conversion(task: Task, kernels: Kernels | None) -> Conversion:
    """Look at the sources, and say what is wrong with them. The steps are then to be consumed; both may raise.

    Raises BadRequest and Unsupported for the weights, OSError for the disk.
    """
    if task.checkpoint:
        from ndani.convert.checkpoint import prepare as converted

        file = converted({source.name: source.descriptor for source in task.sources})
        return Conversion(file.size, file.size, file.fill(task.output))
    sources = [open_source(source.name, source.descriptor) for source in task.sources]
    found = plan(sources, task.kind)
    steps = write(found, [source.descriptor for source in task.sources], task.output, kernels, task.threads)
    return Conversion(found.layout.size, found.total, steps)
