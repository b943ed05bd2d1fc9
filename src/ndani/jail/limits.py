"""What a jailed process may take of the machine: descriptors, memory, threads, the sizes of files.

The kernel keeps these limits, and nothing in the process can raise them again. One of them it does not keep for
everybody: threads are counted per user, so a limit on them holds only who has a user namespace of its own (there nobody
else is counted), and never root. `watch.py` looks from outside for all others.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path

from ndani.jail import Policy

#: Bytes of addresses beside memory and files: what allocators reserve for each thread, and never use. Without this limit
#: the tables for maps of one file would be memory without end.
_ADDRESSES = 64 << 30
#: What a thread's stack reserves where the system says nothing.
_STACK = 8 << 20
#: Timers and signals that wait: the kernel keeps as many for a user as he may have, and whoever takes them all takes them from
#: every program of his.
_SIGNALS = 64
#: From 0 to 1000, what the kernel adds to a process when it looks for one to kill because memory is short.
_FIRST_TO_GO = 500


def lower(policy: Policy, alone: bool) -> None:
    """Lower the limits of this process for good; `alone` says that it has a user namespace of its own. Raises OSError.

    What computes on a GPU keeps the system's limits of memory and files: a driver maps more than anybody can foresee.
    """
    import resource

    limit(resource.RLIMIT_CORE, 0)
    _offer()
    given = policy.limits
    if given is None:
        return
    limit(resource.RLIMIT_NOFILE, given.descriptors)
    if sys.platform == "linux":
        limit(resource.RLIMIT_SIGPENDING, _SIGNALS)
    if alone and _kernel() >= (5, 14):  # before that one limit counted all that the user runs, whatever namespace it is in
        limit(resource.RLIMIT_NPROC, given.threads)
    if policy.gpu:
        return
    limit(resource.RLIMIT_FSIZE, given.file_size)
    if given.memory and sys.platform == "linux":  # nowhere else are these kept
        soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
        stack = _STACK if soft == resource.RLIM_INFINITY else max(soft, _STACK)
        limit(resource.RLIMIT_STACK, stack)  # the first thread's grows by itself, and what it takes counts as no data
        most = given.memory + given.threads * stack
        size, *_, data, _ = (int(pages) * resource.getpagesize() for pages in Path("/proc/self/statm").read_text(encoding="ascii").split())
        limit(resource.RLIMIT_DATA, data + most)
        limit(resource.RLIMIT_AS, size + most + 4 * given.mapped + _ADDRESSES)


def limit(kind: int, most: int) -> None:
    """Lower one limit of this process (a number of `resource`) for good: what is read later may make it try to raise it again."""
    import resource

    most = min((most, *(held for held in resource.getrlimit(kind) if held != resource.RLIM_INFINITY)))
    resource.setrlimit(kind, (most, most))


def _offer() -> None:
    """When memory is short, the kernel is to end this process before the server and before what the user does beside it."""
    place = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):
        if int(place.read_text(encoding="ascii")) < _FIRST_TO_GO:
            place.write_text(str(_FIRST_TO_GO), encoding="ascii")


def _kernel() -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
