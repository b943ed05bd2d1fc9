"""The supervisor of conversion workers: a child for each weights file, told what to do, watched, and killed when nobody waits.

The front has one made for `create`, the fetcher for a pull whose files are not weights yet. What the child is told is a
`convert.Task` with descriptors that are open here, so that it needs no path and no right to open anything. What becomes
of the file afterwards is the caller's business; when this raises, its content is worthless.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
from collections.abc import Callable

import msgspec

from ndani import errors, jail
from ndani.convert import Task, worker
from ndani.jail import threads
from ndani.jail.process import Jailed, Open, Refused, describe_exit, send_command, start_child
from ndani.store.disk import on_disk
from ndani.store.temporary import TemporaryBlob
from ndani.store.threads import in_thread, in_thread_reporting
from ndani.types import Progress, Report

_STOPPING = "the server is stopping; create the model again when it runs"  # a pull's workers end with its fetcher
_REPORT = "try again, and report it if it stays"
_ODD = f"the process that makes the weights said what it never should, and was ended; {_REPORT}"
#: What a disk says: there is no room, it is broken, gone, or may not be written to any more. Every file is open before a
#: worker starts, so whatever else the system refuses it is no matter of the store's rights.
_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE, errno.ENODEV, errno.ENXIO})
_CROWDED = f"the process that makes the weights started threads without end, and was ended; {_REPORT}"
#: Seconds between the end of a worker's words and SIGKILL.
_GRACE = 0.5


class Supervisor:
    """The workers of one process, which is the front or a fetcher."""

    def __init__(self, require_jail: bool) -> None:
        self._require_jail = require_jail
        self._workers: set[_Worker] = set()
        self._closing = False

    async def fill(self, task: Task, file: TemporaryBlob, status: str, digest: str | None, report: Report) -> None:
        """Have a task done into a file of the store, and work out the file's digest; the steps of both, the first ones under `status`.

        The caller names the file. Raises as `make`, and StoreFailed.
        """
        total = 0

        def working(done: worker.ConversionProgress) -> None:
            nonlocal total
            total = done.total
            report(Progress(status, digest, total, done.completed))

        def verifying(hashed: int) -> None:
            report(Progress("verifying conversion", total=file.size, completed=hashed))

        with on_disk(file.root):
            await self.make(task, working, file.allocate)
        report(Progress(status, digest, total, total))
        verifying(0)
        await in_thread_reporting(file.compute_digest, verifying)
        verifying(file.size)

    async def make(
        self, task: Task, report: Callable[[worker.ConversionProgress], None], allocate: Callable[[int], None] | None = None
    ) -> None:
        """Have a task done, and report how far it is. Cancelled, it kills the child.

        `allocate` is called in a thread, before the first byte is written, with the number that the file will have; what
        it raises ends the work. For a checkpoint the bytes are those of that file, else those of the sources.
        Raises BadRequest for weights that cannot be used, OSError for the disk, Unconfined, Misconfigured, Failed.
        """
        if self._closing:
            raise errors.Failed(_STOPPING)
        child = _Worker(worker.Order(task, os.getpid(), self._require_jail))
        self._workers.add(child)
        watch = threads.enforce_limits(child.process, worker.max_threads(task))
        watcher = asyncio.create_task(watch, name="threads of a conversion worker")
        steps = 0  # it is jailed, then it has planned, then it works; each once, for it may have read what makes it say anything
        try:
            while not isinstance(event := await child.receive(), worker.Finished):
                match event:
                    case worker.ConversionProgress() if steps == 2:
                        report(event)
                    case Jailed(confinement) if steps == 0:
                        steps = 1
                        jail.verify(child.process.pid, confinement)
                        child.send(Open())
                    case worker.Planned(size) if steps == 1 and size <= worker.max_output_size(task):
                        steps = 2
                        if allocate:
                            await in_thread(allocate, size)
                        child.send(worker.StartWriting())
                    case Refused(code, sentence):
                        raise errors.error_from_child(code, sentence)
                    case worker.OsFailure(number):
                        raise _stopped(number)
                    case None:
                        raise errors.Failed(_CROWDED if watcher.done() else self._cause(await child.end(_GRACE)))
                    case _:
                        raise errors.Failed(_ODD)
            if steps < 2:
                raise errors.Failed(_ODD)
        finally:
            watcher.cancel()
            self._workers.discard(child)
            await child.end()

    async def close(self) -> None:
        """End whatever is being made; those who wait for it hear that the server stops."""
        self._closing = True
        for child in self._workers:
            child.process.kill()

    def _cause(self, code: int) -> str:
        if self._closing:
            return _STOPPING
        if code == -signal.SIGKILL:
            return "the process that makes the weights was killed, which is what a system short of memory does; try again"
        return f"the process that makes the weights {describe_exit(code)}; {_REPORT}"


def _stopped(number: int) -> Exception:
    """What a system's number means that a worker ended with: the disk's own error, else a fault that has nothing to do with it."""
    if number in _DISK:
        return OSError(number, os.strerror(number))
    name = errno.errorcode.get(number, f"number {number}")
    return errors.Failed(f"the process that makes the weights was refused something by the system ({name}); {_REPORT}")


class _Worker:
    """One process and its two pipes."""

    def __init__(self, order: worker.Order) -> None:
        inherited = (*(given.descriptor for given in order.task.sources), order.task.output)
        try:
            self.process, self._commands, events = start_child("ndani.convert.worker", order, inherited)
        except OSError as error:
            sentence = f"no process could be started to make the weights ({error.strerror}); close something and try again"
            raise errors.Failed(sentence) from None
        self._events = os.fdopen(events, "rb", 0)
        self._decoder: msgspec.json.Decoder[worker.WorkerEvent] = msgspec.json.Decoder(worker.WorkerEvent)
        self._reader = asyncio.StreamReader()
        self._transport: asyncio.ReadTransport | None = None
        self._code: int | None = None

    def send(self, line: msgspec.Struct) -> None:
        """Write it a line. Raises Failed, and ends it, when it does not read what it is told."""
        if not send_command(self.process, self._commands, line):
            raise errors.Failed(_ODD)

    async def receive(self) -> worker.WorkerEvent | None:
        """The next thing that it says; None when nothing more comes. Raises Failed, and ends it, for what no worker of ours says."""
        if self._transport is None:
            protocol = asyncio.StreamReaderProtocol(self._reader)
            self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, self._events)
        try:
            line = await self._reader.readline()
            return self._decoder.decode(line) if line else None
        except (ValueError, msgspec.DecodeError, RecursionError):
            self.process.kill()
            raise errors.Failed(_ODD) from None

    async def end(self, grace: float = 0.0) -> int:
        """Make sure that it is gone, killed after `grace` seconds, and how it went. May be called again."""
        if self._code is None:
            self._code = await in_thread(self._reap, grace)
            os.close(self._commands)
            self._transport.close() if self._transport else self._events.close()
        return self._code

    def _reap(self, grace: float) -> int:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(grace)
        self.process.kill()
        return self.process.wait()
