"""The cores and the memory that this process may use, within the limits of its control groups. Only reads.

A limit can come from any control group of this process or from a parent of that group: a container's, a service's, a user's.
Version 1 of control groups has separate trees for memory and processors, version 2 has one. The mount points are read from the
system, not assumed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

#: A limit from here on means "no limit", which version 1 writes as the largest number of pages.
_MIN_UNLIMITED = 1 << 60


@dataclass(frozen=True, slots=True)
class Hardware:
    """The number of cores that an engine may use, and memory in bytes: the total, and what is available now."""

    cores: int
    total: int
    available: int


def detect(root: Path = Path("/")) -> Hardware:
    """Measure now. Page cache counts as available memory, as in the kernel. `root` is the folder that has /proc and /sys."""
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    groups = _groups(root)
    for group in groups.get("memory", []):
        files = (group / name for name in ("memory.max", "memory.high", "memory.limit_in_bytes"))
        limits = [number for file in files if (number := _read_number(file)) is not None]
        if limits and (limit := min(limits)) < _MIN_UNLIMITED:
            used = _read_number(group / "memory.current") or _read_number(group / "memory.usage_in_bytes") or 0
            total, available = min(total, limit), min(available, max(limit - used + _cached(group), 0))
    quotas = [quota for group in groups.get("cpu", []) if (quota := _quota(group)) is not None]
    return Hardware(max(1, min([_cores(root), *quotas])), total, available)


def processors() -> int:
    """The logical processors that this process may run on. More threads than that would only wait for each other."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cores(root: Path) -> int:
    """The physical cores that this process may run on, within its groups' cpusets."""
    if not hasattr(os, "sched_getaffinity"):
        return psutil.cpu_count(logical=False) or os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    # Two hardware threads of one core share its vector units. A machine that hides its topology only shows threads.
    return len({_read_text(root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list") or number for number in allowed})


def _groups(root: Path) -> dict[str, list[Path]]:
    """For `memory` and `cpu`, the folders of the groups with limits: this process's own group and all its visible parents."""
    own_paths = {}
    for line in _read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        own_paths.update(dict.fromkeys(controllers.split(","), path))  # version 2 names no controller
    folders: dict[str, list[Path]] = {}
    for line in _read_text(root / "proc/self/mountinfo").splitlines():
        fields, _, filesystem = line.partition(" - ")
        root_group, mount = fields.split()[3:5]
        kind, _, options = (*filesystem.split(maxsplit=2), "", "")[:3]
        mounted = [""] if kind == "cgroup2" else options.split(",") if kind == "cgroup" else []
        for name in mounted:
            if name not in own_paths:
                continue
            groups = _with_parents(root / _unescape(mount).lstrip("/"), own_paths[name], _unescape(root_group))
            for controller in (name,) if name else ("memory", "cpu"):
                folders.setdefault(controller, []).extend(groups)
    return folders


def _with_parents(mount: Path, path: str, root_group: str) -> list[Path]:
    """A group's folder under its mount point, and its parents. `root_group` is the group that is mounted: a container sees no other."""
    if root_group == "/":
        relative = path
    elif path == root_group or path.startswith(root_group + "/"):
        relative = path.removeprefix(root_group)
    else:
        relative = ""
    parts = [part for part in relative.split("/") if part]
    if ".." in parts:  # this process was moved here from a group outside of its cgroup namespace
        parts = []
    return [mount.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]


def _quota(group: Path) -> int | None:
    """A group's CPU quota in whole cores, rounded down: with a fraction of a core more, all threads would wait for the last one."""
    quota, _, period = _read_text(group / "cpu.max").strip().partition(" ")
    if not period:
        quota, period = (_read_text(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    try:
        return int(quota) // int(period) if int(quota) > 0 else None
    except (ValueError, ZeroDivisionError):  # "max", or there is no quota
        return None


def _cached(group: Path) -> int:
    """Bytes of page cache in the group, which the kernel frees when memory is needed."""
    counters = dict(line.split() for line in _read_text(group / "memory.stat").splitlines() if line.count(" ") == 1)
    prefix = "total_" if "total_active_file" in counters else ""  # version 1: these counters include the child groups
    return sum(int(counters.get(f"{prefix}{name}", "0")) for name in ("active_file", "inactive_file"))


def _read_number(path: Path) -> int | None:
    text = _read_text(path).strip()
    return int(text) if text.isdecimal() else None


def _unescape(path: str) -> str:
    """A path of mountinfo with its octal escapes (of spaces and the like) decoded."""
    return path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
