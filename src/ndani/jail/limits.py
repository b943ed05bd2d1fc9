"""The resource limits of a jailed process: descriptors, memory, threads, file sizes.

The kernel enforces these limits, and nothing in the process can raise them again. The thread limit is an exception: the
kernel counts threads per user, so the limit works only if the process has its own user namespace (where no other process
counts), and never for root. `watch.py` watches the threads of all other processes from outside.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path

from ndani.jail import Policy

#: Address space besides memory and files: allocators reserve it for each thread and never use it. Without this limit, many
#: mappings of one file could use unlimited memory for page tables.
_EXTRA_ADDRESS_SPACE = 64 << 30
#: The stack of a thread when the system sets no limit.
_DEFAULT_STACK = 8 << 20
#: Pending timers and signals. The kernel counts them per user, so a process without this limit could use up those of
#: all the user's programs.
_PENDING_SIGNALS = 64
#: The process's OOM score adjustment, from 0 to 1000: the kernel kills processes with a high one first when memory is short.
_OOM_SCORE_ADJ = 500


def lower(policy: Policy, in_user_namespace: bool) -> None:
    """Lower the limits of this process permanently. `in_user_namespace`: it has one of its own. Raises OSError.

    With a GPU the system's limits on memory and file size stay, because what a driver maps cannot be predicted.
    """
    import resource

    limit(resource.RLIMIT_CORE, 0)
    _raise_oom_score()
    limits = policy.limits
    if limits is None:
        return
    limit(resource.RLIMIT_NOFILE, limits.descriptors)
    if sys.platform == "linux":
        limit(resource.RLIMIT_SIGPENDING, _PENDING_SIGNALS)
    if in_user_namespace and _kernel_version() >= (5, 14):  # older kernels count all threads of the user, in any namespace
        limit(resource.RLIMIT_NPROC, limits.threads)
    if policy.gpu:
        return
    limit(resource.RLIMIT_FSIZE, limits.file_size)
    if limits.memory and sys.platform == "linux":  # other systems do not enforce these
        soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
        stack = _DEFAULT_STACK if soft == resource.RLIM_INFINITY else max(soft, _DEFAULT_STACK)
        limit(resource.RLIMIT_STACK, stack)  # the first thread's stack grows on demand, and RLIMIT_DATA does not count it
        extra = limits.memory + limits.threads * stack
        size, *_, data, _ = (int(pages) * resource.getpagesize() for pages in Path("/proc/self/statm").read_text(encoding="ascii").split())
        limit(resource.RLIMIT_DATA, data + extra)
        limit(resource.RLIMIT_AS, size + extra + 4 * limits.mapped + _EXTRA_ADDRESS_SPACE)


def limit(kind: int, value: int) -> None:
    """Lower the soft and hard value of one limit (a constant of `resource`), so that a compromised process cannot raise it again."""
    import resource

    value = min((value, *(current for current in resource.getrlimit(kind) if current != resource.RLIM_INFINITY)))
    resource.setrlimit(kind, (value, value))


def _raise_oom_score() -> None:
    """When memory is short, the kernel should kill this process before the server and the user's other programs."""
    path = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):
        if int(path.read_text(encoding="ascii")) < _OOM_SCORE_ADJ:
            path.write_text(str(_OOM_SCORE_ADJ), encoding="ascii")


def _kernel_version() -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
