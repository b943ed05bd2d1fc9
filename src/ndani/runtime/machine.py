"""What this machine has: cores and memory, as this process may use them (a container's limits count). Reads only."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Machine:
    """Cores an engine may compute with, and memory in bytes: all there is, and what is available now."""

    cores: int
    total: int
    available: int


def look() -> Machine:
    """Measure now. Memory that page cache holds counts as available, as the kernel counts it."""
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    limit, used = _number("memory.max"), _number("memory.current")
    if limit is not None and limit < total:
        total = limit
        available = min(available, max(limit - (used or 0) + _cached(), 0))
    return Machine(_cores(), total, available)


def _cores() -> int:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Two threads of one core fight for the same vector units; a machine that hides its cores tells only threads.
    physical = psutil.cpu_count(logical=False) or allowed
    quota = _quota()
    return max(1, min(allowed, physical, quota if quota else allowed))


def _quota() -> int | None:
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return None if quota == "max" else max(1, round(int(quota) / int(period)))
    except (OSError, ValueError):
        return None


def _cached() -> int:
    """Bytes of files that the container keeps in memory, and that the kernel gives back when they are needed."""
    try:
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
        found = dict(line.split() for line in lines)
        return int(found["active_file"]) + int(found["inactive_file"])
    except (OSError, ValueError, KeyError):
        return 0


def _number(name: str) -> int | None:
    try:
        text = (_CGROUP / name).read_text().strip()
        return None if text == "max" else int(text)
    except (OSError, ValueError):
        return None
