"""The main module of a worker process: `python -I -m ndani.convert.worker_main COMMANDS EVENTS` (two inherited descriptors).

It converts one weights file and exits. The sequence is a runner's (docs/decisions/004): libraries, the jail, a check from
outside, and only then the first byte of untrusted weights. It needs less than a runner, so its jail is tighter: no socket
at all, and no file but those that it inherits open. Standard streams lead to /dev/null.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from typing import Annotated

import msgspec

from ndani import convert, errors, jail
from ndani.jail.process import Jailed, Open, Pipes, Refused

_REPORT_INTERVAL = 0.06  # seconds between two progress events
#: Running models have priority: somebody waits for an answer, and a conversion can take its time.
_NICE = 10
#: The most bytes of a file's header.
_MAX_HEADER_BYTES = 64 << 20
#: The memory limit, whatever the untrusted files state: a checkpoint of any size needs less than one GB. Each thread needs
#: a stack and three buffers in addition.
_MEMORY, _MEMORY_PER_THREAD = 4 << 30, 64 << 20
#: Threads in addition to the computing ones, and descriptors in addition to the sources.
_EXTRA_THREADS, _EXTRA_DESCRIPTORS = 32, 64


#: The range of a worker's numbers that the front accepts: untrusted files may have made the worker send anything.
_Bytes = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
_Errno = Annotated[int, msgspec.Meta(ge=0, lt=1 << 12)]


class Order(msgspec.Struct, frozen=True):
    """The first line that a worker reads: the task, the process id of its parent (`front`), and whether a jail is required."""

    task: convert.Task
    front: int
    require_jail: bool = False


class Planned(msgspec.Struct, frozen=True, tag="planned"):
    """From the worker: the sources' headers are valid, and the file will have `size` bytes."""

    size: _Bytes


class StartWriting(msgspec.Struct, frozen=True, tag="write"):
    """From the front: the disk space is allocated."""


class ConversionProgress(msgspec.Struct, frozen=True, tag="working"):
    """From the worker: `completed` of `total` bytes are done, as `convert.Conversion` counts them."""

    completed: _Bytes
    total: _Bytes


class Finished(msgspec.Struct, frozen=True, tag="made"):
    """From the worker: the file is complete."""


class OsFailure(msgspec.Struct, frozen=True, tag="stuck"):
    """From the worker: a system call failed with this errno. The front decides whether the disk is the cause."""

    errno: _Errno


WorkerEvent = Jailed | Planned | ConversionProgress | Finished | OsFailure | Refused


def main(commands: int, events: int) -> None:
    """Do one task. It exits with `os._exit`, because threads may be in native code."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if (number := getattr(signal, name, None)) is not None:
            signal.signal(number, signal.SIG_IGN)  # these are for the front, which ends this process when necessary
    pipes = Pipes(commands, events)
    order = msgspec.json.decode(pipes.read_line(), type=Order)
    pipes.send(_outcome(order, pipes))  # after the except blocks, so that memory held by an exception is free again
    os._exit(0)


def _outcome(order: Order, pipes: Pipes) -> WorkerEvent:
    """Do the task; returns the last event."""
    try:
        _work(order, pipes)
    except errors.NdaniError as error:
        return Refused(error.code, str(error))
    except OSError as error:
        return OsFailure(error.errno or 0)
    except MemoryError:
        return Refused("failed", "these files ask for more memory than there is, or than any model's do; look at them, or free some")
    except BaseException as error:
        return Refused("failed", f"the weights could not be made ({type(error).__name__}); try again, and report it if it stays")
    return Finished()


def _work(order: Order, pipes: Pipes) -> None:
    kernels = convert.load_libraries(order.task)
    with contextlib.suppress(OSError, AttributeError):
        os.nice(_NICE)
    if os.getppid() != order.front:
        os._exit(0)  # the front died before the jail could set the parent-death signal
    pipes.send(Jailed(jail.enter(jail.Policy("", require=order.require_jail, limits=limits_of(order.task)))))
    msgspec.json.decode(pipes.read_line(), type=Open)
    jail.make_undumpable()
    work = convert.plan_conversion(order.task, kernels)
    pipes.send(Planned(work.size))
    msgspec.json.decode(pipes.read_line(), type=StartWriting)
    threading.Thread(target=pipes.read_line, daemon=True).start()  # no more lines come; it exits when the front is gone
    pipes.send(ConversionProgress(0, work.total))
    last_report = time.monotonic()
    with contextlib.closing(work.progress) as progress:
        for completed in progress:
            if time.monotonic() - last_report >= _REPORT_INTERVAL:
                last_report = time.monotonic()
                pipes.send(ConversionProgress(completed, work.total))


def max_output_size(task: convert.Task) -> int:
    """The largest size of a file made from these sources: values of at most four times the width, and a header."""
    return 4 * _source_size(task) + _MAX_HEADER_BYTES


def limits_of(task: convert.Task) -> jail.Limits:
    """The resource limits of a worker. Mapped source files do not count as its memory, whatever their size."""
    memory = _MEMORY + task.threads * _MEMORY_PER_THREAD
    return jail.Limits(max_threads(task), _EXTRA_DESCRIPTORS + len(task.sources), max_output_size(task), memory, _source_size(task))


def _source_size(task: convert.Task) -> int:
    return sum(os.fstat(source.descriptor).st_size for source in task.sources)


def max_threads(task: convert.Task) -> int:
    """More threads than a worker ever has; a worker with more is compromised."""
    return _EXTRA_THREADS + 2 * task.threads


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
