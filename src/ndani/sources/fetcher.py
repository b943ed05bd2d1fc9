"""The front's side of a pull: starts the fetcher, forwards its progress, raises its error, kills it when nobody waits.

Equal requests share one fetcher: those with the same verb, name, `insecure`, and blobs to repair. The store's locks coordinate
two servers on one store.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path

import msgspec

from ndani.errors import Failed, NdaniError, SourceFailed, error_from_child
from ndani.names import Name
from ndani.settings import Settings
from ndani.sources.job import PUSH_GRACE, Job, JobFailed
from ndani.types import SUCCESS, Progress, Report

_MAX_LINE = 1 << 20  # bytes of one line, far more than the child ever writes


class Fetcher:
    """All pulls and pushes of one server."""

    def __init__(self, settings: Settings, catalogue: Path | None = None) -> None:
        self._settings, self._catalogue = settings, catalogue
        self._runs: dict[str, _Run] = {}

    async def pull(self, name: Name, insecure: bool, report: Report) -> None:
        """Bring a model into the store; reports its steps, at most one per 60 ms and blob.

        `insecure` permits a registry without TLS, or with an untrusted certificate. Cancelling ends the pull when nobody else
        waits for the same one. Raises the fetcher's error: NotFound, SourceFailed, StoreFailed, Offline, Failed.
        """
        await self._run_shared(name, self._job(name, insecure), report)

    async def repair(self, name: Name, digests: frozenset[str], insecure: bool, report: Report) -> None:
        """Fetch these blobs again from the model's source, in place of those that are here; otherwise as `pull`."""
        await self._run_shared(name, msgspec.structs.replace(self._job(name, insecure), repair=tuple(sorted(digests))), report)

    async def push(self, name: Name, insecure: bool, report: Report) -> None:
        """Send a model of the store to its registry; otherwise as `pull`."""
        await self._run_shared(name, self._job(name, insecure, push=True), report)

    async def close(self) -> None:
        """End every pull and push; the next one resumes where they stopped."""
        await asyncio.gather(*(run.end() for run in list(self._runs.values())))

    async def _run_shared(self, name: Name, job: Job, report: Report) -> None:
        key = f"{job.verb} {name.key} {job.insecure} {job.repair}"
        while (run := self._runs.get(key)) and not run.followers:
            await asyncio.wait([run.task])  # it is ending, and a push may take some seconds for that
            if self._runs.get(key) is run:
                del self._runs[key]  # the first of several waiting tasks starts the next run, the others join it
        if run is None:
            run = self._runs[key] = _Run(job)
        run.followers += 1
        try:
            await run.follow(report)
        finally:
            run.followers -= 1
            if not run.followers:
                try:
                    await run.end()
                finally:
                    if self._runs.get(key) is run:
                        del self._runs[key]

    def _job(self, name: Name, insecure: bool, push: bool = False) -> Job:
        settings = self._settings
        return Job(
            name=name.full,
            models=str(settings.models),
            offline=settings.offline,
            catalogue=str(self._catalogue) if self._catalogue else None,
            insecure=insecure,
            push=push,
            registry=settings.registry,
            folders=tuple(str(Path(folder).expanduser().absolute()) for folder in settings.sources),
            streams=settings.max_transfer_streams,
            require_jail=settings.require_jail,
        )


def without_success(report: Report) -> Report:
    """A report without the step SUCCESS, for a pull that is only a part of a larger operation."""
    return lambda step: report(step) if step != SUCCESS else None


class _Run:
    """One fetcher child and its followers. `steps` has its progress; the last step is replaced while only its count grows."""

    def __init__(self, job: Job) -> None:
        self.followers = 0
        self.steps: list[Progress] = []
        self._job = job
        self._error: NdaniError | None = None
        self._changed = asyncio.Event()
        self._child: Process | None = None
        self.task = asyncio.create_task(self._supervise())

    async def follow(self, report: Report) -> None:
        """Report every step from the first on, and raise the error if there was one."""
        index, reported = 0, None
        while True:
            changed = self._changed
            if index < len(self.steps) and self.steps[index] is not reported:
                reported = self.steps[index]
                report(reported)
            elif index + 1 < len(self.steps):
                index += 1
            elif self.task.done():
                break
            else:
                await changed.wait()
        if self.task.cancelled():
            raise SourceFailed(f"the {self._job.verb} was ended before it began; {self._job.verb} again")
        self.task.result()
        if self._error:
            # A new exception for each follower: a shared one would share its traceback.
            raise type(self._error)(str(self._error))

    async def end(self) -> None:
        """Kill the child, if it lives, and wait until it is gone."""
        if self._child is None:
            self.task.cancel()
        elif self._child.returncode is None and self._job.push and self._child.stdin:
            self._child.stdin.close()  # it ends when the current part is sent
            await asyncio.wait([self.task], timeout=PUSH_GRACE)
        if self._child and self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._child.kill()
        await asyncio.wait([self.task])

    async def _supervise(self) -> None:
        try:
            self._error = await self._communicate()
        except OSError as error:
            self._error = Failed(f"the fetcher could not be started ({error.strerror}); free memory or processes and try again")
        finally:
            # Notify after this task counts as done, so that the followers see its end.
            asyncio.get_running_loop().call_soon(self._notify)

    async def _communicate(self) -> NdaniError | None:
        child = self._child = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "ndani.sources.fetcher_main", stdin=PIPE, stdout=PIPE, stderr=DEVNULL, limit=_MAX_LINE
        )
        error: NdaniError | None = None
        try:
            if child.stdin and child.stdout:
                child.stdin.write(msgspec.json.encode(self._job) + b"\n")
                with contextlib.suppress(ConnectionError):
                    await child.stdin.drain()
                async for line in child.stdout:
                    error = self._handle_line(line)
        except (ValueError, TypeError, msgspec.MsgspecError, RecursionError):
            error = SourceFailed(f"the process that does the {self._job.verb} said what it never should; {self._job.verb} again")
        finally:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
            if child.stdin:
                child.stdin.close()
            await child.wait()
        verb = self._job.verb
        if error is None and (not self.steps or self.steps[-1] != SUCCESS):
            error = SourceFailed(f"the {verb} was ended from outside before it was done; {verb} again: it goes on where it stopped")
        return error

    def _handle_line(self, line: bytes) -> NdaniError | None:
        fields = msgspec.json.decode(line)
        if "error" in fields:
            failure = msgspec.convert(fields, JobFailed)
            return error_from_child(failure.code, failure.error)
        step = msgspec.convert(fields, Progress)
        if not all(0 <= (count or 0) < 1 << 63 for count in (step.total, step.completed)):
            raise ValueError("no number of bytes")
        if self.steps and self.steps[-1].digest == step.digest and self.steps[-1].status == step.status:
            self.steps[-1] = step
        else:
            self.steps.append(step)
        self._notify()
        return None

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
