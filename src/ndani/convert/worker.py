"""The main of a worker's process: `python -I -m ndani.convert.worker COMMANDS EVENTS` (two inherited descriptors).

It makes one weights file of others and ends. The order is a runner's (docs/decisions/004): libraries, the jail, a look
from outside, and only then the first byte of foreign weights. It needs less than a runner, so its jail is tighter: no
socket at all, and no file but those that it inherits open. Standard streams lead to /dev/null.
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

_EVERY = 0.06  # seconds between two signs of life
#: Whoever asks a model is waiting for it; whoever makes one has time.
_NICE = 10
#: Bytes of a file that are not numbers.
_HEADS = 64 << 20
#: Bytes that foreign files may make it take, whatever they say of themselves: a checkpoint of any size needs less than one
#: GB. A thread has a stack and three buffers beside that.
_MEMORY, _PER_THREAD = 4 << 30, 64 << 20
#: Threads beside those that it is told to compute with, and descriptors beside those of its sources.
_THREADS, _DESCRIPTORS = 32, 64


#: What a front believes of a worker's numbers: foreign files may have made it say anything.
_Bytes = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
_Errno = Annotated[int, msgspec.Meta(ge=0, lt=1 << 12)]


class Order(msgspec.Struct, frozen=True):
    """The one line that a worker reads: what to make, the process id of who started it, and whether a jail is required."""

    task: convert.Task
    front: int
    require_jail: bool = False


class Planned(msgspec.Struct, frozen=True, tag="planned"):
    """From the worker: nothing is wrong with the sources so far, and the file will have so many bytes."""

    size: _Bytes


class StartWriting(msgspec.Struct, frozen=True, tag="write"):
    """From the front: there is room for that."""


class ConversionProgress(msgspec.Struct, frozen=True, tag="working"):
    """From the worker: so many bytes are done of so many (`convert.Conversion` says of what)."""

    completed: _Bytes
    total: _Bytes


class Finished(msgspec.Struct, frozen=True, tag="made"):
    """From the worker: the file is whole."""


class OsFailure(msgspec.Struct, frozen=True, tag="stuck"):
    """From the worker: the system said no, with this number. Whether that was the disk is for the front to say."""

    errno: _Errno


WorkerEvent = Jailed | Planned | ConversionProgress | Finished | OsFailure | Refused


def main(commands: int, events: int) -> None:
    """Do one task. Ends by `os._exit`: threads may be in native code."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if (number := getattr(signal, name, None)) is not None:
            signal.signal(number, signal.SIG_IGN)  # the front's, which ends this process when it should end
    pipes = Pipes(commands, events)
    order = msgspec.json.decode(pipes.read_line(), type=Order)
    pipes.send(_outcome(order, pipes))  # outside of it: what an error held in memory is gone
    os._exit(0)


def _outcome(order: Order, pipes: Pipes) -> WorkerEvent:
    """Do it; how it went."""
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
        os._exit(0)  # the front died before the kernel was asked to tell us
    pipes.send(Jailed(jail.enter(jail.Policy("", require=order.require_jail, limits=limits_of(order.task)))))
    msgspec.json.decode(pipes.read_line(), type=Open)
    jail.make_undumpable()
    work = convert.plan_conversion(order.task, kernels)
    pipes.send(Planned(work.size))
    msgspec.json.decode(pipes.read_line(), type=StartWriting)
    threading.Thread(target=pipes.read_line, daemon=True).start()  # the lifeline: no more lines come, and its end ends us
    pipes.send(ConversionProgress(0, work.total))
    reported = time.monotonic()
    with contextlib.closing(work.progress) as steps:
        for completed in steps:
            if time.monotonic() - reported >= _EVERY:
                reported = time.monotonic()
                pipes.send(ConversionProgress(completed, work.total))


def max_output_size(task: convert.Task) -> int:
    """Bytes of the largest file that these sources could become: twice as wide at the most, and heads."""
    return 4 * sum(os.fstat(given.descriptor).st_size for given in task.sources) + _HEADS


def limits_of(task: convert.Task) -> jail.Limits:
    """What a worker may take: files that are mapped to be read do not count as its memory, however large they are.

    No file of it grows beyond what these sources could become.
    """
    read = sum(os.fstat(given.descriptor).st_size for given in task.sources)
    memory = _MEMORY + task.threads * _PER_THREAD
    return jail.Limits(max_threads(task), _DESCRIPTORS + len(task.sources), max_output_size(task), memory, read)


def max_threads(task: convert.Task) -> int:
    """More threads than a worker of ours ever has; one with more has been taken over."""
    return _THREADS + 2 * task.threads


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
