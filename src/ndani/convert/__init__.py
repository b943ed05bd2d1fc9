"""Weights made of other weights: quantised, or brought together out of several files. The door: a `Task`, and `make`.

It runs in a maker's process, which has every file open before it starts and can open no other (`runtime/maker.py`).
The front uses the pure parts (`kinds`, `shards`, `quantise.plan`) to say what is wrong before a process is started.
Which of a recipe's files need this, and what the result is called, is the front's business.
"""

from __future__ import annotations

from collections.abc import Generator

import msgspec

from ndani.convert.kernels import Kernels, load
from ndani.convert.quantise import open_source, plan, write


class Given(msgspec.Struct, frozen=True):
    """A file to be read: the name that its owner knows it by, and an open descriptor."""

    name: str
    descriptor: int


class Task(msgspec.Struct, frozen=True):
    """What to make: one GGUF file of `kind` (empty: types stay) out of the parts of one model, into an open descriptor."""

    sources: tuple[Given, ...]
    output: int
    kind: str = ""
    threads: int = 1


def prepare(task: Task) -> Kernels | None:
    """Load what the task needs, before the jail shuts. Raises Misconfigured."""
    return load() if task.kind else None


def make(task: Task, kernels: Kernels | None) -> Generator[int]:
    """Do the task; yields how many bytes of the sources are done. Raises BadRequest for the weights, OSError for the disk."""
    sources = [open_source(given.name, given.descriptor) for given in task.sources]
    yield from write(plan(sources, task.kind), [given.descriptor for given in task.sources], task.output, kernels, task.threads)
