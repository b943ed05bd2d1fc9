"""The server's look at a jailed child that runs: that it does not start threads without end. Nothing here runs in the child."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

#: Seconds between two looks. One look is one question to the kernel, of microseconds.
_EVERY = 0.5


async def hold(process: subprocess.Popen[bytes], most: int) -> None:
    """Wait until a child is seen with more than `most` threads, then kill it and return. Cancel this when the child has ended.

    The kernel's own limit (`limits.py`) does not hold every user. Where /proc hides the child this waits for ever.
    """
    task = Path(f"/proc/{process.pid}/task")
    while threads(task) <= most:  # noqa: ASYNC110 - nothing tells when a process starts a thread
        await asyncio.sleep(_EVERY)
    process.kill()


def threads(task: Path) -> int:
    """Threads of a process, of the `task` folder that it has in /proc; 0 where that cannot be seen."""
    try:
        return task.stat().st_nlink - 2  # a folder's links: itself, its name, and each folder in it
    except OSError:
        return 0
