"""Make weights from other weights: quantise, join, or convert from safetensors. The entry points: a `Task`, and `plan_conversion`.

The work runs in a process of its own (`supervisor` starts it, `worker_main` is its main). That process has every file open
before it starts and can open no other, both for a user's weights and for downloaded files. The front uses the pure
parts (`quant_types`, `shards`, `quantise.plan`) to report what is wrong before a process is started.
The front decides which files of a recipe need this, and what the result is called.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import dataclass

import msgspec

from ndani.convert.kernels import Kernels, load
from ndani.convert.quantise import open_source, plan, write


class SourceFile(msgspec.Struct, frozen=True):
    """A file to read: the name that its owner knows it by, and an open descriptor."""

    name: str
    descriptor: int


class Task(msgspec.Struct, frozen=True):
    """What to make: one GGUF file, written to an open descriptor.

    The sources are either the parts of one GGUF model, to become one of `kind` (empty: types stay), or a `checkpoint`:
    safetensors with config.json and the tokenizer's files.
    """

    sources: tuple[SourceFile, ...]
    output: int
    kind: str = ""
    threads: int = 1
    checkpoint: bool = False


@dataclass(frozen=True, slots=True)
class Conversion:
    """A planned file: its size, and `progress`, which does the work as it is iterated; it yields how many of `total` bytes are done."""

    size: int
    total: int
    progress: Generator[int]


def load_libraries(task: Task) -> Kernels | None:
    """Load what the task needs, before the process enters the jail. Raises Misconfigured."""
    if task.checkpoint:
        # numpy's BLAS, which nothing here uses, starts a thread per core when it is loaded. The jail needs a single thread.
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        import ndani.convert.checkpoint  # noqa: F401 - with numpy, which only conversions have to load
    return load() if task.kind else None


def plan_conversion(task: Task, kernels: Kernels | None) -> Conversion:
    """Read and check the sources' headers. The caller then iterates over `progress`; both may raise.

    Raises BadRequest and Unsupported for the weights, OSError for the disk.
    """
    if task.checkpoint:
        from ndani.convert.checkpoint import prepare

        file = prepare({source.name: source.descriptor for source in task.sources})
        return Conversion(file.size, file.size, file.write_to_descriptor(task.output))
    work = plan([open_source(source.name, source.descriptor) for source in task.sources], task.kind)
    progress = write(work, [source.descriptor for source in task.sources], task.output, kernels, task.threads)
    return Conversion(work.layout.size, work.total, progress)
