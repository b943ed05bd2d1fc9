"""The server watches a running jailed child: it kills a child with too many threads or too many sockets. Nothing here runs in the child."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
from pathlib import Path

#: Seconds between two checks. A check costs microseconds.
_INTERVAL = 0.5
#: Names in the folder of a child's socket. A child that makes more is compromised.
_MAX_NAMES = 16


async def enforce_limits(process: subprocess.Popen[bytes], max_threads: int, folder: Path | None = None) -> str:
    """Wait until a child exceeds `max_threads`, or has too many names in its `folder`; kill it and return the reason.

    Cancel this when the child has ended. The kernel's own limit (`limits.py`) does not hold for every user. Where /proc
    hides the child, its threads are not counted.
    """
    task = Path(f"/proc/{process.pid}/task")
    while True:
        if count_threads(task) > max_threads:
            reason = "it started more threads than an engine needs, and was ended"
            break
        if folder and count_names(folder) > _MAX_NAMES:
            reason = "it made names of sockets without end, and was ended"
            break
        await asyncio.sleep(_INTERVAL)
    process.kill()
    return reason


def count_threads(task: Path) -> int:
    """The threads of a process, from its `task` folder in /proc; 0 when that is not readable."""
    try:
        return task.stat().st_nlink - 2  # a folder has two links and one more for each folder in it
    except OSError:
        return 0


def count_names(folder: Path) -> int:
    """The names in a folder, counted only up to one more than allowed; 0 when it is not readable."""
    try:
        with os.scandir(folder) as entries:
            return sum(1 for _ in itertools.islice(entries, _MAX_NAMES + 1))
    except OSError:
        return 0
