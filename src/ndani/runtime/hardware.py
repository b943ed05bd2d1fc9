"""What this machine has: cores and memory, as this process may use them (the limits of its control groups count). Reads only.

A limit is any group's that this process is in, or that group's parents': a container's, a service's, a user's. Version 1
keeps memory and processors in trees of their own, version 2 has one; where they are mounted is read, not assumed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

#: A limit above this is none: version 1 writes "no limit" as the largest number of pages.
_NONE = 1 << 60


@dataclass(frozen=True, slots=True)
class Hardware:
    """Cores an engine may compute with, and memory in bytes: all there is, and what is available now."""

    cores: int
    total: int
    available: int


def detect(root: Path = Path("/")) -> Hardware:
    """Measure now. Memory that page cache holds counts as available, as the kernel counts it. `root`: where /proc and /sys are."""
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    groups = _groups(root)
    for group in groups.get("memory", []):
        limits = [found for name in ("memory.max", "memory.high", "memory.limit_in_bytes") if (found := _number(group / name)) is not None]
        if limits and (limit := min(limits)) < _NONE:
            used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes") or 0
            total, available = min(total, limit), min(available, max(limit - used + _cached(group), 0))
    quotas = [quota for group in groups.get("cpu", []) if (quota := _quota(group)) is not None]
    return Hardware(max(1, min([_cores(root), *quotas])), total, available)


def processors() -> int:
    """All that this process may run on, those of one core counted by themselves: more threads than that only wait for each other."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cores(root: Path) -> int:
    """Cores that this process may run on: a group's cpuset is part of that."""
    if not hasattr(os, "sched_getaffinity"):
        return psutil.cpu_count(logical=False) or os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    # Two threads of one core fight for the same vector units; a machine that hides its cores tells only threads.
    return len({_text(root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list") or number for number in allowed})


def _groups(root: Path) -> dict[str, list[Path]]:
    """For `memory` and `cpu`, the folders of the groups that count: this process's own, and all above it that can be seen."""
    own = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))  # version 2 names no controller
    found: dict[str, list[Path]] = {}
    for line in _text(root / "proc/self/mountinfo").splitlines():
        front, _, back = line.partition(" - ")
        top, mount = front.split()[3:5]
        kind, _, options = (*back.split(maxsplit=2), "", "")[:3]
        named = [""] if kind == "cgroup2" else options.split(",") if kind == "cgroup" else []
        for name in named:
            if name in own:
                for controller in (name,) if name else ("memory", "cpu"):
                    found.setdefault(controller, []).extend(_upwards(root / _plain(mount).lstrip("/"), own[name], _plain(top)))
    return found


def _upwards(mount: Path, path: str, top: str) -> list[Path]:
    """A group's folder below its mount, and those above it. `top` is the group that is mounted: a container sees no other."""
    below = path.removeprefix(top) if top != "/" and (path == top or path.startswith(top + "/")) else path if top == "/" else ""
    parts = [part for part in below.split("/") if part]
    if ".." in parts:  # this process was moved in from outside of what it sees
        parts = []
    return [mount.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]


def _quota(group: Path) -> int | None:
    """Whole cores that a group's share of time is: what is less than one more would make every thread wait for the last."""
    quota, _, period = _text(group / "cpu.max").strip().partition(" ")
    if not period:
        quota, period = (_text(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    try:
        return int(quota) // int(period) if int(quota) > 0 else None
    except (ValueError, ZeroDivisionError):  # "max", or there is none
        return None


def _cached(group: Path) -> int:
    """Bytes of files that the group keeps in memory, and that the kernel gives back when they are needed."""
    found = dict(line.split() for line in _text(group / "memory.stat").splitlines() if line.count(" ") == 1)
    kind = "total_" if "total_active_file" in found else ""  # version 1 counts those below under these names
    return sum(int(found.get(f"{kind}{which}", "0")) for which in ("active_file", "inactive_file"))


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _plain(path: str) -> str:
    """A path of mountinfo as it is: a space and its like stand there as their octal numbers."""
    return path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
