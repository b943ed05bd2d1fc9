"""The server's look at a jailed child that runs: that it has no threads, and no names, without end. Nothing here runs in the child."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
from pathlib import Path

#: Seconds between two looks. One look is one question to the kernel, of microseconds.
_EVERY = 0.5
#: Names in the folder of a child's socket: one that has more has been taken over while it loaded.
_NAMES = 16


async def enforce_limits(process: subprocess.Popen[bytes], most: int, folder: Path | None = None) -> str:
    """Wait until a child is seen with more than `most` threads, or many names in its `folder`, then kill it; which it was.

    Cancel this when the child has ended. The kernel's own limit (`limits.py`) does not hold every user. Where /proc hides
    the child its threads are not seen.
    """
    task = Path(f"/proc/{process.pid}/task")
    while True:
        if count_threads(task) > most:
            found = "it started more threads than an engine needs, and was ended"
            break
        if folder and count_names(folder) > _NAMES:
            found = "it made names of sockets without end, and was ended"
            break
        await asyncio.sleep(_EVERY)
    process.kill()
    return found


def count_threads(task: Path) -> int:
    """Threads of a process, of the `task` folder that it has in /proc; 0 where that cannot be seen."""
    try:
        return task.stat().st_nlink - 2  # a folder's links: itself, its name, and each folder in it
    except OSError:
        return 0


def count_names(folder: Path) -> int:
    """Names in a folder, no more of them counted than tell that there are too many; 0 where that cannot be seen."""
    try:
        with os.scandir(folder) as found:
            return sum(1 for _ in itertools.islice(found, _NAMES + 1))
    except OSError:
        return 0
