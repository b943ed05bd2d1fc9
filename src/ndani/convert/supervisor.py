"""The supervisor of conversion workers: one child process per weights file, watched, and killed when nobody waits for it.

The front uses it for `create`, the fetcher for a pull whose files must be converted first. The child gets a
`convert.Task` with descriptors that are open here, so it needs no path and no right to open a file. The caller decides
what happens to the file afterwards; after an exception its content is unusable.
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
from ndani.background import run_in_thread, run_in_thread_reporting
from ndani.convert import Task, worker_main
from ndani.jail import watch
from ndani.jail.process import Jailed, Open, Refused, describe_exit, send_command, start_child
from ndani.store.disk import translate_disk_errors
from ndani.store.temporary import TemporaryBlob
from ndani.types import Progress, Report

_STOPPING = "the server is stopping; create the model again when it runs"  # a pull's workers end with its fetcher
_REPORT = "try again, and report it if it stays"
_UNEXPECTED = f"the process that makes the weights said what it never should, and was ended; {_REPORT}"
#: Errors of a disk: it is full, broken, gone, or read-only. Every file is open before a worker starts, so any other error of
#: the system does not come from the store's permissions.
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE, errno.ENODEV, errno.ENXIO})
_TOO_MANY_THREADS = f"the process that makes the weights started threads without end, and was ended; {_REPORT}"
#: Seconds between the end of a worker's events and SIGKILL.
_GRACE = 0.5


class Supervisor:
    """The workers of one process, which is the front or a fetcher."""

    def __init__(self, require_jail: bool) -> None:
        self._require_jail = require_jail
        self._workers: set[_Worker] = set()
        self._closing = False

    async def fill(self, task: Task, file: TemporaryBlob, status: str, digest: str | None, report: Report) -> None:
        """Run a task with a file of the store as its output, then compute the file's digest; reports both, the first as `status`.

        The caller names the file. Raises as `make`, and StoreFailed.
        """
        total = 0

        def report_conversion(progress: worker_main.ConversionProgress) -> None:
            nonlocal total
            total = progress.total
            report(Progress(status, digest, total, progress.completed))

        def report_hashing(hashed: int) -> None:
            report(Progress("verifying conversion", total=file.size, completed=hashed))

        with translate_disk_errors(file.root):
            await self.make(task, report_conversion, file.allocate)
        report(Progress(status, digest, total, total))
        report_hashing(0)
        await run_in_thread_reporting(file.compute_digest, report_hashing)
        report_hashing(file.size)

    async def make(
        self, task: Task, report: Callable[[worker_main.ConversionProgress], None], allocate: Callable[[int], None] | None = None
    ) -> None:
        """Run a task in a worker and report its progress. Cancellation kills the worker.

        `allocate` is called in a thread with the file's size, before the first byte is written; an exception from it ends
        the task. For a checkpoint, progress counts bytes of the output file, else bytes of the sources.
        Raises BadRequest for weights that cannot be used, OSError for the disk, Unconfined, Misconfigured, Failed.
        """
        if self._closing:
            raise errors.Failed(_STOPPING)
        child = _Worker(worker_main.Order(task, os.getpid(), self._require_jail))
        self._workers.add(child)
        limits = watch.enforce_limits(child.process, worker_main.max_threads(task))
        watcher = asyncio.create_task(limits, name="threads of a conversion worker")
        # A worker sends Jailed, then Planned, then its progress. The first two may come once only: untrusted files may have
        # made it send anything.
        is_jailed = is_planned = False
        try:
            while not isinstance(event := await child.receive(), worker_main.Finished):
                match event:
                    case worker_main.ConversionProgress() if is_planned:
                        report(event)
                    case Jailed(confinement) if not is_jailed:
                        is_jailed = True
                        jail.verify(child.process.pid, confinement)
                        child.send(Open())
                    case worker_main.Planned(size) if is_jailed and not is_planned and size <= worker_main.max_output_size(task):
                        is_planned = True
                        if allocate:
                            await run_in_thread(allocate, size)
                        child.send(worker_main.StartWriting())
                    case Refused(code, sentence):
                        raise errors.error_from_child(code, sentence)
                    case worker_main.OsFailure(number):
                        raise _system_error(number)
                    case None:
                        raise errors.Failed(_TOO_MANY_THREADS if watcher.done() else self._cause(await child.end(_GRACE)))
                    case _:
                        raise errors.Failed(_UNEXPECTED)
            if not is_planned:
                raise errors.Failed(_UNEXPECTED)
        finally:
            watcher.cancel()
            self._workers.discard(child)
            await child.end()

    async def close(self) -> None:
        """Kill all workers; their callers get an error that says that the server is stopping."""
        self._closing = True
        for child in self._workers:
            child.process.kill()

    def _cause(self, code: int) -> str:
        if self._closing:
            return _STOPPING
        if code == -signal.SIGKILL:
            return "the process that makes the weights was killed, which is what a system short of memory does; try again"
        return f"the process that makes the weights {describe_exit(code)}; {_REPORT}"


def _system_error(number: int) -> Exception:
    """The error for an errno that a worker ended with: OSError for the disk, else Failed."""
    if number in _DISK_ERRORS:
        return OSError(number, os.strerror(number))
    name = errno.errorcode.get(number, f"number {number}")
    return errors.Failed(f"the process that makes the weights was refused something by the system ({name}); {_REPORT}")


class _Worker:
    """One worker process and its two pipes."""

    def __init__(self, order: worker_main.Order) -> None:
        inherited = (*(source.descriptor for source in order.task.sources), order.task.output)
        try:
            self.process, self._commands, events = start_child("ndani.convert.worker_main", order, inherited)
        except OSError as error:
            sentence = f"no process could be started to make the weights ({error.strerror}); close something and try again"
            raise errors.Failed(sentence) from None
        self._events = os.fdopen(events, "rb", 0)
        self._decoder: msgspec.json.Decoder[worker_main.WorkerEvent] = msgspec.json.Decoder(worker_main.WorkerEvent)
        self._reader = asyncio.StreamReader()
        self._transport: asyncio.ReadTransport | None = None
        self._exit_code: int | None = None

    def send(self, command: msgspec.Struct) -> None:
        """Send a command. When the worker does not read its pipe, this kills it and raises Failed."""
        if not send_command(self.process, self._commands, command):
            raise errors.Failed(_UNEXPECTED)

    async def receive(self) -> worker_main.WorkerEvent | None:
        """The next event; None at the end of the pipe. For an invalid event this kills the worker and raises Failed."""
        if self._transport is None:
            protocol = asyncio.StreamReaderProtocol(self._reader)
            self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, self._events)
        try:
            line = await self._reader.readline()
            return self._decoder.decode(line) if line else None
        except (ValueError, msgspec.DecodeError, RecursionError):
            self.process.kill()
            raise errors.Failed(_UNEXPECTED) from None

    async def end(self, grace: float = 0.0) -> int:
        """Wait for the exit, with SIGKILL after `grace` seconds; returns the exit code. May be called again."""
        if self._exit_code is None:
            self._exit_code = await run_in_thread(self._reap, grace)
            os.close(self._commands)
            events = self._transport or self._events
            events.close()
        return self._exit_code

    def _reap(self, grace: float) -> int:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(grace)
        self.process.kill()
        return self.process.wait()
