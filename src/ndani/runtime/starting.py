"""Starting a model's runner: opens its files, limits the time, and turns every failure into an NdaniError."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

from ndani.engines import LaunchOptions
from ndani.errors import LoadFailed, NdaniError
from ndani.runtime.clock import Clock
from ndani.runtime.residence import LoadedModel, RunnerProcess

#: Starts a runner. Parameters: its options, and the descriptors of the weights, of the adapter and of the projector (-1: none).
Spawn = Callable[[LaunchOptions, int, int, int], Awaitable[RunnerProcess]]


async def start(model: LoadedModel, spawn: Spawn, clock: Clock, timeout: float) -> RunnerProcess:
    """A runner that is ready, within `timeout` seconds (0: no limit). Raises only NdaniError."""
    with ExitStack() as files:  # the child process inherits the descriptors; ours are always closed
        try:
            spec = model.spec
            weights, adapter, projector = (_open(path, files) for path in (spec.weights, spec.adapter, spec.projector))
            async with clock.timeout(timeout if timeout > 0 else None):
                return await spawn(model.options, weights, adapter, projector)
        except TimeoutError:
            reason = f"timed out waiting for the runner to start - the model did not load within {timeout:.0f} s"
        except NdaniError:
            raise
        except OSError as error:
            reason = f"the model could not be started: {error.strerror}"
        except Exception as error:  # any other failure must end the load too, or requests would wait for it forever
            reason = f"the model could not be started ({type(error).__name__}); please report it"
        raise LoadFailed(reason)


def _open(path: Path | None, files: ExitStack) -> int:
    """A descriptor open for reading, closed with `files`; -1 when there is no file."""
    if path is None:
        return -1
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    files.callback(os.close, descriptor)
    return descriptor
