"""The fetcher: the process that may dial out, alive only while something is pulled. `python -m ndani.sources.child`.

One JSON job on stdin; on stdout a line per step (types.Progress), and in the end, when it failed, one line with the
error's code and sentence. It says nothing else to anyone. Killing it is the cancellation, at any moment: the store is
whole after it. Stdin stays open as a lifeline, so that it dies with whoever started it; a push finishes the part that is
travelling first, for many a registry forgets an upload whose connection breaks.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from ndani import jail, names
from ndani.control_characters import without_controls
from ndani.errors import Failed, NdaniError
from ndani.sources import choose, open_registry
from ndani.sources.job import PUSH_GRACE, Job, JobFailed
from ndani.sources.pull import pull
from ndani.sources.push import push
from ndani.store import Store
from ndani.types import Progress

_EVERY = 0.06  # seconds between two progress lines of one blob, as Ollama's
_LONGEST = 1000  # letters of a sentence


def main() -> int:
    """Read the job, do it, report. The exit status is 0 when the model is there."""
    jail.make_undumpable()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        # Ctrl-C and a service manager's goodbye reach the whole group; the front takes its time with a push, then cuts us off.
        if (number := getattr(signal, name, None)) is not None:
            signal.signal(number, signal.SIG_IGN)
    line = sys.stdin.buffer.readline()
    job = msgspec.json.decode(line, type=Job)
    leaving = threading.Event()
    threading.Thread(target=_watch_lifeline, args=(leaving, PUSH_GRACE if job.push else 0.0), daemon=True).start()
    try:
        asyncio.run(_run(job, leaving))
    except NdaniError as error:
        _write(JobFailed(error.code, _plain(str(error))))
        return 1
    except Exception as error:  # the front turns it into one sentence; a traceback would reach nobody
        _write(
            JobFailed(Failed.code, f"the {job.verb} failed unexpectedly ({type(error).__name__}); run it again, and report it if it stays")
        )
        return 1
    return 0


async def _run(job: Job, leaving: threading.Event) -> None:
    name, store, report = names.parse(job.name), Store(Path(job.models)), _Reporter()
    if job.push:
        registry = open_registry(name, offline=job.offline, insecure=job.insecure, house=job.registry)
        await push(store, name, registry, report, leaving)
        return
    catalogue = Path(job.catalogue) if job.catalogue else None
    folders = tuple(Path(folder) for folder in job.folders)
    sources = choose(
        name, job.offline, catalogue, insecure=job.insecure, house=job.registry, folders=folders, own=store.layout.root, streams=job.streams
    )
    await pull(store, name, sources, report, repair=frozenset(job.repair), require_jail=job.require_jail)


class _Reporter:
    """Writes a line for each step, but no more of one blob's growth than anybody could read. While nobody reads, it waits."""

    def __init__(self) -> None:
        self._at, self._last = 0.0, Progress("")

    def __call__(self, step: Progress) -> None:
        step, last = replace(step, status=_plain(step.status)), self._last
        whole = step.completed is not None and step.completed == step.total
        grown = step.total is not None and (step.digest, step.status) == (last.digest, last.status)
        if step == last or (grown and not whole and time.monotonic() - self._at < _EVERY):
            return
        self._at, self._last = time.monotonic(), step
        _write(step)


def _plain(text: str) -> str:
    """A sentence fit for a terminal: what registries and hubs have said in it may hold escapes, and be without end."""
    plain = without_controls(" ".join(text.split()))
    return plain if len(plain) <= _LONGEST else f"{plain[:_LONGEST]}…"


def _write(line: Any) -> None:
    try:
        sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # Whoever started us has gone. The lifeline ends this process, and a push may still finish its part.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _watch_lifeline(leaving: threading.Event, grace: float) -> None:
    # A thread, because the event loop may be busy unpacking just when the parent dies; and the bare descriptor,
    # because a buffered reader would hold up the interpreter's own end.
    while os.read(0, 1024):
        pass
    leaving.set()
    time.sleep(grace)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
