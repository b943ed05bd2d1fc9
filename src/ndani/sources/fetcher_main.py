"""The fetcher: the only process that connects to the network; it runs during one pull or push. `python -m ndani.sources.fetcher_main`.

It reads one JSON job from stdin. It writes one line per step (types.Progress) to stdout, and after a failure one line with
the error's code and message; it writes nothing else. Killing it cancels the job at any moment: the store stays consistent.
Stdin stays open, so that the process ends with its parent. A push finishes the current part first, because many registries
forget an upload whose connection breaks.
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
from ndani.control_characters import replace_controls
from ndani.errors import Failed, NdaniError
from ndani.sources import choose, open_registry
from ndani.sources.job import PUSH_GRACE, Job, JobFailed
from ndani.sources.pull import pull
from ndani.sources.push import push
from ndani.sources.repair import repair
from ndani.store import Store
from ndani.types import Progress

_PROGRESS_INTERVAL_S = 0.06  # seconds between two progress lines of one blob, as Ollama's
_MAX_MESSAGE = 1000  # letters of a sentence


def main() -> int:
    """Read the job, do it, report. The exit status is 0 when the model is there."""
    jail.make_undumpable()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        # Ctrl-C and a service manager signal the whole process group; the front decides when this process ends.
        if (number := getattr(signal, name, None)) is not None:
            signal.signal(number, signal.SIG_IGN)
    line = sys.stdin.buffer.readline()
    job = msgspec.json.decode(line, type=Job)
    stopping = threading.Event()
    threading.Thread(target=_watch_lifeline, args=(stopping, PUSH_GRACE if job.push else 0.0), daemon=True).start()
    try:
        asyncio.run(_run(job, stopping))
    except NdaniError as error:
        _write(JobFailed(error.code, _printable(str(error))))
        return 1
    except Exception as error:  # the front turns it into one sentence; a traceback would reach nobody
        _write(
            JobFailed(Failed.code, f"the {job.verb} failed unexpectedly ({type(error).__name__}); run it again, and report it if it stays")
        )
        return 1
    return 0


async def _run(job: Job, stopping: threading.Event) -> None:
    name, store, report = names.parse(job.name), Store(Path(job.models)), _Reporter()
    if job.push:
        registry = open_registry(name, offline=job.offline, insecure=job.insecure, default_registry=job.registry)
        await push(store, name, registry, report, stopping)
        return
    catalogue = Path(job.catalogue) if job.catalogue else None
    folders = tuple(Path(folder) for folder in job.folders)
    sources = choose(
        name,
        job.offline,
        catalogue,
        insecure=job.insecure,
        default_registry=job.registry,
        folders=folders,
        store_root=store.layout.root,
        streams=job.streams,
    )
    if job.repair:
        await repair(store, name, sources, frozenset(job.repair), report, require_jail=job.require_jail)
    else:
        await pull(store, name, sources, report, require_jail=job.require_jail)


class _Reporter:
    """Writes a line for each step, but limits the progress lines of one blob. It blocks while the front does not read."""

    def __init__(self) -> None:
        self._reported_at, self._last_step = 0.0, Progress("")

    def __call__(self, step: Progress) -> None:
        step, last = replace(step, status=_printable(step.status)), self._last_step
        complete = step.completed is not None and step.completed == step.total
        progressed = step.total is not None and (step.digest, step.status) == (last.digest, last.status)
        if step == last or (progressed and not complete and time.monotonic() - self._reported_at < _PROGRESS_INTERVAL_S):
            return
        self._reported_at, self._last_step = time.monotonic(), step
        _write(step)


def _printable(text: str) -> str:
    """A message that is safe for a terminal: the registry's text in it may have escape sequences, or be very long."""
    printable = replace_controls(" ".join(text.split()))
    return printable if len(printable) <= _MAX_MESSAGE else f"{printable[:_MAX_MESSAGE]}…"


def _write(message: Any) -> None:
    try:
        sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # The parent is gone. The closed stdin will end this process; until then a push may finish its part.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _watch_lifeline(stopping: threading.Event, grace: float) -> None:
    # A thread, because the event loop may be busy with unpacking when the parent dies; the bare descriptor, because a
    # buffered reader would block the interpreter's shutdown.
    while os.read(0, 1024):
        pass
    stopping.set()
    time.sleep(grace)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
