"""What a recipe's weights still need before a model can be made of them: parts joined, numbers quantised.

Decided here, worked out by `convert`, done in a process of its own by `runtime/maker.py`. Everything that can be refused is
refused before that process starts.
"""

from __future__ import annotations

import math
import os
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace

from ndani.convert import Given, Task, shards
from ndani.convert.kinds import parse_kind
from ndani.convert.quantise import Plan, Source, open_source, plan
from ndani.runtime.machine import look
from ndani.runtime.maker import Maker
from ndani.store import Store
from ndani.store.create import Recipe, check, projects, read_weights, refuse
from ndani.store.disk import on_disk
from ndani.store.inspect import file_type_of
from ndani.store.nameless import Nameless
from ndani.store.offloop import settled
from ndani.types import Progress


@dataclass(frozen=True, slots=True)
class _Work:
    """What is to be done. `parts` are digests by the names that their sender knows; all files are open."""

    status: str
    parts: dict[str, str]
    plan: Plan
    task: Task
    file: Nameless


async def made(store: Store, maker: Maker, recipe: Recipe) -> AsyncGenerator[Progress | Recipe]:
    """Make what the recipe's weights still need: its steps, and last the recipe as `create` can use it.

    Consume it under aclosing: closing it stops the work, and nothing of it stays. Raises BadRequest, StoreFailed, Failed, …
    """
    with ExitStack() as opened:
        work = await settled(_begin, store, recipe, opened)
        if work is None:
            yield recipe
            return
        for _ in work.parts:
            yield Progress("parsing GGUF")
        digest, total = next(iter(work.parts.values())), work.plan.total
        with on_disk(store.layout.root, work.file.size):
            async with aclosing(maker.make(work.task)) as steps:
                async for completed in steps:
                    yield Progress(work.status, digest, total, completed)
        yield Progress(work.status, digest, total, total)
        size, naming = work.file.size, iter(work.file.name())
        yield Progress("verifying conversion", total=size, completed=0)
        while hashed := await settled(next, naming, 0):
            yield Progress("verifying conversion", total=size, completed=hashed)
        yield Progress("verifying conversion", total=size, completed=size)
        yield _finished(recipe, work)


def _begin(store: Store, recipe: Recipe, opened: ExitStack) -> _Work | None:
    """Look at the weights, and open what is needed, or None where nothing is to be done. In a thread; `opened` closes it all."""
    parts = _parts(store, recipe)
    if not parts:
        return None
    given = []
    for name, digest in parts.items():
        with on_disk(store.layout.root):
            descriptor = os.open(store.layout.blob(digest), os.O_RDONLY | os.O_CLOEXEC)
        opened.callback(os.close, descriptor)
        given.append(Given(name, descriptor))
    kind = parse_kind(recipe.quantize) if recipe.quantize else ""
    sources = [open_source(part.name, part.descriptor) for part in given]
    work = plan(sources, kind)
    if work.same:
        return None
    file = Nameless(store.layout, work.outline.size)
    opened.callback(file.discard)
    status = f"quantizing {_called(sources[0])} model to {kind}" if kind else f"joining {len(given)} parts"
    return _Work(status, parts, work, Task(tuple(given), file.descriptor, kind, look().cores), file)


def _parts(store: Store, recipe: Recipe) -> dict[str, str]:
    """What a file is to be made of: the parts of a model in their order, or what is to be quantised; nothing, if neither."""
    refuse(recipe)
    headers = {path: read_weights(store, path, digest)[1] for path, digest in sorted(recipe.files.items())}
    split = {path: header.keys for path, header in headers.items() if shards.is_shard(header.keys)}
    if not split and not recipe.quantize:
        return {}
    order = shards.in_order(split) if split else []
    check(store, replace(recipe, files={path: digest for path, digest in recipe.files.items() if path not in order[1:]}))
    model = order or [path for path, header in headers.items() if not projects(header)]
    if model:
        return {path: recipe.files[path] for path in model}
    assert recipe.base  # else `check` has found that there is no model
    return {str(recipe.base.name): recipe.base.weights.digest}


def _called(source: Source) -> str:
    """The kind that a file says it is, or that most of it is."""
    largest = max(source.head.tensors, key=lambda tensor: math.prod(tensor.shape), default=None)
    return file_type_of(source.head.keys) or (largest.type if largest else "F16")


def _finished(recipe: Recipe, work: _Work) -> Recipe:
    """The recipe with the file that was made in the place of its parts."""
    fresh = recipe.made | ({work.file.digest} if work.file.fresh else set())
    named = [path for path in work.parts if path in recipe.files]
    if not named:
        return replace(recipe, weights=work.file.digest, made=fresh)
    others = {path: digest for path, digest in recipe.files.items() if path not in named}
    return replace(recipe, files=others | {named[0]: work.file.digest}, made=fresh)
