"""Starting a model's runner: its files are opened, it gets so much time, and whatever goes wrong is an error of the tree."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from ndani.engines import Launch
from ndani.errors import LoadFailed, NdaniError
from ndani.runtime.clock import Clock
from ndani.runtime.residence import LoadedModel, RunnerProcess

#: Start a runner: the launch, with the descriptor of its adapter, and that of its weights (-1: none).
Spawn = Callable[[Launch, int], Awaitable[RunnerProcess]]


async def start(model: LoadedModel, spawn: Spawn, clock: Clock, limit: float) -> RunnerProcess:
    """A runner that answers, within `limit` seconds (0: however long it takes). Raises NdaniError, and nothing else."""
    with ExitStack() as files:  # the child inherits them; ours are closed in any case
        try:
            weights, adapter = (_opened(path, files) for path in (model.spec.weights, model.spec.adapter))
            async with clock.timeout(limit if limit > 0 else None):
                return await spawn(replace(model.launch, adapter=adapter), weights)
        except TimeoutError:
            why = f"timed out waiting for the runner to start - the model did not load within {limit:.0f} s"
        except NdaniError:
            raise
        except OSError as error:
            why = f"the model could not be started: {error.strerror}"
        except Exception as error:  # whatever it was, nobody may wait for this load for ever
            why = f"the model could not be started ({type(error).__name__}); please report it"
        raise LoadFailed(why)


def _opened(path: Path | None, files: ExitStack) -> int:
    """A descriptor to read from; -1 where there is no file."""
    if path is None:
        return -1
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    files.callback(os.close, descriptor)
    return descriptor
