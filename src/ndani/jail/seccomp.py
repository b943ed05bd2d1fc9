"""The system-call filter: the part of the Linux jail that closes every route to the network. Pure ctypes.

It is a deny list, because an engine needs many calls and an attacker few. It denies:
- connections: only AF_UNIX stream sockets can be created, `connect` is refused, and so are datagram sockets (a datagram's
  address can be in memory, which a filter cannot read) and io_uring;
- other processes: no new program, no child, no tracing, no signal to another process, no shared memory by key, no change
  of scheduling;
- kernel interfaces: namespaces, mounts, BPF, keys, modules, clocks, calls newer than `syscalls.NEWEST_SYSCALL`;
- every change of a file: no file can be opened for writing, truncated, created, renamed or removed, under any name (a
  descriptor that is open for reading also has a name in /proc/self/fd). Modes, owners, times, links, attributes and locks
  of files, and watching folders, are denied too;
- memory that the limits of `limits.py` do not count: memfds, pages in pipes, Landlock rules.
A process with a GPU may open devices for writing and share memory with its driver. Landlock then limits both, as it
limits what may be read (`landlock.py`).
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence

from ndani.jail.syscalls import ARCHITECTURES, NEWEST_SYSCALL, Architecture, syscall_number

_LOAD, _AND, _EQUAL, _ABOVE, _ANY, _RETURN = 0x20, 0x54, 0x15, 0x25, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_SET_MODE_FILTER, _TSYNC = 1, 1

_AF_UNIX, _SOCK_STREAM, _SOCK_FLAGS = 1, 1, 0o2000000 | 0o4000
_MSG_FASTOPEN = 0x20000000
_CLONE_THREAD, _CLONE_NAMESPACES = 0x10000, 0x7E020000

#: prctl options that could undo protections of the jail or the front: parent-death signal, ptrace, capabilities.
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECUREBITS, _PR_CAP_AMBIENT, _PR_SET_PTRACER = 1, 4, 28, 47, 0x59616D61
#: Two more options: core scheduling, and further filters.
_PR_SCHED_CORE, _PR_SET_SECCOMP = 62, 22
#: fcntl commands that lock a file, cause signals to other processes, take leases, watch folders, enlarge a pipe (all pipes of
#: a user share one limit), or give hints about a file.
_FCNTL_REFUSED = (6, 7, 8, 10, 15, 37, 38, 1024, 1026, 1031, 1036, 1038)
#: With a GPU, these ioctl commands are refused: they type into a terminal, cause signals, or change a file (flags, attributes,
#: version, verity, shared extents). Without one, only those of a stream are allowed: reading a terminal's settings and size
#: (TCGETS, TIOCGWINSZ, TCGETS2), FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
_IOCTL_REFUSED = (0x5412, 0x541C, 0x8901, 0x8902, 0x40086602, 0x401C5820, 0x40087602, 0x40806685, 0x40049409, 0x4020940D, 0xC0189436)
_IOCTL_ALLOWED = (0x5401, 0x5413, 0x802C542A, 0x541B, 0x5421, 0x5450, 0x5451)
#: Flags of open: O_CREAT, O_TRUNC and O_TMPFILE create or empty a file even if it is opened for reading; O_WRONLY and O_RDWR.
_OPEN_MAKES, _OPEN_WRITES = 0o100 | 0o1000 | 0o20000000, 0o3
#: Memory that counts toward no process's limit: memfds, anonymous shared mappings, and mappings marked as a stack.
_UNCOUNTED = ("memfd_create", "memfd_secret")
_MAP_SHARED_ANONYMOUS, _MAP_GROWSDOWN = 0x21, 0x100

#: Calls that fail with ENOSYS, so that callers fall back to calls whose arguments the filter can check.
ABSENT = ("io_uring_setup", "io_uring_enter", "io_uring_register", "clone3", "openat2")

#: Refused with any arguments.
REFUSED = (
    *("connect", "tkill", "fork", "vfork", "execve", "execveat", "ptrace", "process_vm_readv", "process_vm_writev"),
    *("process_madvise", "process_mrelease", "kcmp", "pidfd_open", "pidfd_getfd", "pidfd_send_signal"),
    *("unshare", "setns", "mount", "umount2", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick", "open_tree"),
    *("open_tree_attr", "mount_setattr", "statmount", "listmount", "pivot_root", "chroot", "lsm_set_self_attr"),
    *("bpf", "perf_event_open", "userfaultfd", "fanotify_init", "fanotify_mark", "lookup_dcookie", "open_by_handle_at"),
    *("name_to_handle_at", "add_key", "request_key", "keyctl", "kexec_load", "kexec_file_load", "create_module"),
    *("init_module", "finit_module", "delete_module", "reboot", "swapon", "swapoff", "acct", "quotactl", "quotactl_fd"),
    *("nfsservctl", "syslog", "vhangup", "settimeofday", "clock_settime", "adjtimex", "clock_adjtime", "sethostname"),
    *("setdomainname", "iopl", "ioperm", "modify_ldt", "uselib", "_sysctl", "personality", "migrate_pages", "move_pages"),
    *("shmget", "shmat", "shmctl", "msgget", "msgsnd", "msgrcv", "msgctl", "semget", "semop", "semtimedop", "semctl"),
    *("mq_open", "mq_unlink", "mq_timedsend", "mq_timedreceive", "mq_notify"),
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat", "setxattr", "lsetxattr"),
    *("fsetxattr", "setxattrat", "removexattr", "lremovexattr", "fremovexattr", "removexattrat", "file_setattr", "utime"),
    *("utimes", "futimesat", "utimensat", "truncate", "link", "linkat", "symlink", "symlinkat", "mknod", "mknodat"),
    *("creat", "rename", "renameat", "renameat2", "mkdir", "mkdirat", "rmdir", "unlink", "unlinkat", "flock", "sync", "syncfs"),
    *("io_setup",),  # its requests are in memory too, and all processes of the machine share one limit
    *("getxattr", "lgetxattr", "fgetxattr", "getxattrat", "listxattr", "llistxattr", "flistxattr", "listxattrat"),
    *("inotify_init", "inotify_init1", "inotify_add_watch"),
    "vmsplice",  # pages in a pipe count for no process: one byte of a huge page keeps two megabytes
    "map_shadow_stack",  # its memory counts as a stack
    *("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"),  # the number of rules in a ruleset has no limit
    *("sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr", "setpriority", "ioprio_set"),
)


class Instruction(ctypes.Structure):
    """One instruction of the filter: `struct sock_filter`."""

    _fields_ = (("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("value", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("steps", ctypes.POINTER(Instruction)))


Instructions = list[tuple[int, int, int, int]]
_ALLOWED: Instructions = [(_RETURN, 0, 0, _ALLOW)]


def program(machine: Architecture, pid: int, sockets: bool = True, gpu: bool = False) -> Instructions:
    """The whole filter as (code, yes, no, value), for one architecture and for the process `pid` that it will confine.

    Without `sockets` the process can create no socket at all; with `gpu` it may open devices for writing and use their ioctls.
    """
    steps: Instructions = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, machine.audit),  # 32-bit calls have other numbers, so this filter would not fit: end the process
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_ABOVE, 0, 1, NEWEST_SYSCALL),  # also refuses the x32 calls of x86-64, which have bit 30 set
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]
    bodies = _with_arguments(pid) | _of_files(gpu)
    if not sockets:
        bodies |= dict.fromkeys(("socket", "socketpair"), _refuse(errno.EPERM))
    # An engine's frequent calls come first: the kernel walks this list for each call whose arguments are checked.
    rules = [*bodies.items(), *((call, _refuse(errno.ENOSYS)) for call in ABSENT), *((call, _refuse(errno.EPERM)) for call in REFUSED)]
    for call, body in rules:
        if (call_number := syscall_number(call, machine)) is not None:
            steps += [(_EQUAL, 0, len(body), call_number), *body]
    return [*steps, (_RETURN, 0, 0, _ALLOW)]


def apply(sockets: bool = True, gpu: bool = False) -> None:
    """Install the filter in all threads of this process at once. Needs NoNewPrivs. Raises OSError when the kernel refuses."""
    machine = _this_architecture()
    _install(program(machine, os.getpid(), sockets, gpu), machine)


def forbid_bind() -> None:
    """Install one more filter in all threads at once: it forbids `bind` and any further filter.

    Raises OSError when the kernel refuses.
    """
    machine = _this_architecture()
    _install(bind_filter(machine), machine)


def bind_filter(machine: Architecture) -> Instructions:
    """The additional filter of a process that already listens. The first filter has checked the architecture."""
    steps: Instructions = [(_LOAD, 0, 0, _NUMBER_AT)]
    no_filter = [*_never(0, (_PR_SET_SECCOMP,)), *_ALLOWED]
    for call, body in {"bind": _refuse(errno.EPERM), "seccomp": _refuse(errno.EPERM), "prctl": no_filter}.items():
        steps += [(_EQUAL, 0, len(body), syscall_number(call, machine) or 0), *body]
    return [*steps, *_ALLOWED]


def _this_architecture() -> Architecture:
    machine = ARCHITECTURES.get(os.uname().machine)
    if machine is None or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise OSError(errno.ENOSYS, f"there is no filter for {os.uname().machine}")
    return machine


def _install(steps: Instructions, machine: Architecture) -> None:
    array = (Instruction * len(steps))(*(Instruction(*step) for step in steps))
    bpf_program = _Program(len(steps), array)
    libc = ctypes.CDLL(None, use_errno=True)
    call = ctypes.c_long(syscall_number("seccomp", machine) or 0)
    result = libc.syscall(call, ctypes.c_ulong(_SET_MODE_FILTER), ctypes.c_ulong(_TSYNC), ctypes.byref(bpf_program))
    if result != 0:  # positive: the id of a thread that could not be synchronised
        raise OSError(ctypes.get_errno() if result < 0 else errno.EBUSY, "the filter was not accepted")


def _with_arguments(pid: int) -> dict[str, Instructions]:
    """The calls that are allowed for some arguments only."""
    socket = [
        *_only(0, (_AF_UNIX,), errno.EAFNOSUPPORT),
        *_argument(1),
        (_AND, 0, 0, 0xFFFFFFFF & ~_SOCK_FLAGS),
        (_EQUAL, 1, 0, _SOCK_STREAM),
        *_refuse(errno.ESOCKTNOSUPPORT),
        *_ALLOWED,
    ]
    allow = _ALLOWED
    pid_only = [*_only(0, (pid,), errno.EPERM), *allow]
    return {
        "socket": socket,
        "socketpair": socket,
        "sendto": [*_without(3, _MSG_FASTOPEN), *_null(4), *allow],
        "sendmsg": [*_without(2, _MSG_FASTOPEN), *allow],
        "sendmmsg": [*_without(3, _MSG_FASTOPEN), *allow],
        "clone": [*_without(0, _CLONE_NAMESPACES), *_argument(0), (_ANY, 1, 0, _CLONE_THREAD), *_refuse(errno.EPERM), *allow],
        "kill": pid_only,
        "tgkill": pid_only,
        "rt_sigqueueinfo": pid_only,
        "rt_tgsigqueueinfo": pid_only,
        "prlimit64": [*_only(0, (0, pid), errno.EPERM), *allow],
        "fcntl": [*_never(1, _FCNTL_REFUSED), *allow],
        "prctl": [
            *_never(0, (_PR_SET_PDEATHSIG, _PR_SET_SECUREBITS, _PR_CAP_AMBIENT, _PR_SET_PTRACER, _PR_SCHED_CORE)),
            *_argument(0),
            (_EQUAL, 0, 3, _PR_SET_DUMPABLE),  # may be set to 0 but not back to 1
            *_argument(1),
            (_EQUAL, 1, 0, 0),
            *_refuse(errno.EPERM),
            *allow,
        ],
    }


def _of_files(gpu: bool) -> dict[str, Instructions]:
    """The rules for files, and for memory that could replace files."""
    flags = _OPEN_MAKES if gpu else _OPEN_MAKES | _OPEN_WRITES
    calls = {"openat": [*_without(2, flags), *_ALLOWED], "open": [*_without(1, flags), *_ALLOWED]}
    if gpu:
        return calls | {"ioctl": [*_never(1, _IOCTL_REFUSED), *_ALLOWED]}
    shared = [*_argument(3), (_AND, 0, 0, _MAP_SHARED_ANONYMOUS), (_EQUAL, 0, 1, _MAP_SHARED_ANONYMOUS), *_refuse(errno.EPERM)]
    return {
        "mmap": [*shared, *_without(3, _MAP_GROWSDOWN), *_ALLOWED],
        **calls,
        "ioctl": [*_only(1, _IOCTL_ALLOWED, errno.EPERM), *_ALLOWED],
        **dict.fromkeys(_UNCOUNTED, _refuse(errno.EPERM)),
    }


def _refuse(code: int) -> Instructions:
    return [(_RETURN, 0, 0, _ERRNO | code)]


def _argument(index: int, high: bool = False) -> Instructions:
    # Both architectures are little-endian. For an int the kernel reads the low half and ignores the high half.
    return [(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index + (4 if high else 0))]


def _only(index: int, values: Sequence[int], code: int) -> Instructions:
    """Continue if an argument is one of `values`, else refuse."""
    tests: Instructions = [(_EQUAL, len(values) - at, 0, value) for at, value in enumerate(values)]
    return [*_argument(index), *tests, *_refuse(code)]


def _never(index: int, values: Sequence[int]) -> Instructions:
    """Refuse when an argument is one of `values`."""
    last = len(values) - 1
    tests: Instructions = [(_EQUAL, last - at, int(at == last), value) for at, value in enumerate(values)]
    return [*_argument(index), *tests, *_refuse(errno.EPERM)]


def _without(index: int, bits: int) -> Instructions:
    """Refuse when an argument has any of `bits`."""
    return [*_argument(index), (_ANY, 0, 1, bits), *_refuse(errno.EPERM)]


def _null(index: int) -> Instructions:
    """Refuse when a pointer is not null."""
    low, high = _argument(index), _argument(index, high=True)
    return [*low, (_EQUAL, 0, 2, 0), *high, (_EQUAL, 1, 0, 0), *_refuse(errno.EPERM)]
