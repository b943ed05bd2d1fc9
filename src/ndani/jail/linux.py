"""The jail on Linux: its steps, their order, and the reason for that order. Pure ctypes, x86-64 and arm64.

NoNewPrivs and the system-call filter are mandatory. Landlock is applied where the kernel has it; a process without it is
never called confined. An empty network namespace is used where the system allows one. The filter comes last, because it
forbids calls that the other steps need.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from dataclasses import replace
from pathlib import Path

from ndani.errors import Unconfined
from ndani.jail import Confinement, Policy, landlock, limits, seccomp
from ndani.jail.syscalls import ARCHITECTURES, syscall_number

_PDEATHSIG, _DUMPABLE, _CAPBSET_DROP, _NO_NEW_PRIVS, _CAP_AMBIENT, _CLEAR_ALL = 1, 4, 24, 38, 47, 4
_NEWUSER, _NEWNET = 0x10000000, 0x40000000
_CAPABILITY_VERSION = 0x20080522

#: What an engine reads besides its weights (observed with strace): facts about processors, memory and itself, no user files.
_READABLE = {
    "/proc/self": landlock.READ_FILE | landlock.READ_DIR,
    "/proc/cpuinfo": landlock.READ_FILE,
    "/proc/meminfo": landlock.READ_FILE,
    "/proc/stat": landlock.READ_FILE,
    "/sys/devices/system/cpu": landlock.READ_FILE | landlock.READ_DIR,
    "/sys/devices/system/node": landlock.READ_FILE | landlock.READ_DIR,
    "/dev/null": landlock.READ_FILE | landlock.WRITE_FILE,
    "/dev/urandom": landlock.READ_FILE,
}

#: The devices that a driver's library opens to compute on a GPU (NVIDIA, render nodes of any vendor, AMD), and the files that
#: describe them.
_GPU_DEVICES = (
    "dev/nvidia[0-9]*",
    "dev/nvidiactl",
    "dev/nvidia-uvm",
    "dev/nvidia-uvm-tools",
    "dev/nvidia-caps",
    "dev/dri/renderD*",
    "dev/kfd",
)
_GPU_FACTS = ("proc/driver/nvidia", "proc/modules", "sys/class/kfd", "sys/class/drm", "sys/bus/pci/devices", "sys/devices/pci*")


def enter(policy: Policy) -> Confinement:
    """Apply the jail. Raises Unconfined when the filter, or an available Landlock, cannot be applied."""
    threads = sum(1 for _ in Path("/proc/self/task").iterdir())
    if threads != 1:
        raise Unconfined(f"the jail would hold one of {threads} threads only; this is a fault of the engine's host, please report it")
    parent = os.getppid()
    policy = replace(policy, gpu=policy.gpu and bool(gpu_paths()))  # no GPU on this machine: no rights for one
    try:
        namespace, in_user_namespace = _empty_network()
        limits.lower(policy, in_user_namespace)
        _drop_capabilities()
        _prctl(_PDEATHSIG, signal.SIGKILL)  # only now: a change of credentials, as in the steps above, clears it
        if os.getppid() != parent:
            os._exit(1)  # the front died in the meantime, so the signal would never come
        _prctl(_NO_NEW_PRIVS, 1)
        landlock_missing = _confine_files(policy)
        seccomp.apply(sockets=bool(policy.socket_folder), gpu=policy.gpu)
    except OSError as error:
        raise _jail_failed(error) from None
    missing = [landlock_missing] if landlock_missing else []
    if not namespace:
        missing.append("This system allows no network namespace: the system-call filter alone keeps a runner off the network.")
    return Confinement(seccomp=True, landlock=not landlock_missing, namespace=namespace, missing=tuple(missing))


def forbid_bind() -> None:
    """Apply the additional filter of a process that already listens (`seccomp.bind_filter`). Raises Unconfined if the kernel refuses it."""
    try:
        seccomp.forbid_bind()
    except OSError as error:
        raise _jail_failed(error) from None


def _jail_failed(error: OSError) -> Unconfined:
    name = errno.errorcode.get(error.errno or 0, "unknown")
    return Unconfined(
        f"this kernel would not shut the jail ({error.strerror}: {name}), so the weights are not used; `ndani doctor` shows what is missing"
    )


def verify(pid: int, claim: Confinement) -> Confinement:
    """Check a process's jail in /proc: `NoNewPrivs: 1`, `Seccomp: 2`, and its network namespace where that is readable."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        raise Unconfined("the runner's state cannot be read in /proc, so its jail could not be verified; mount /proc") from None
    state = dict(line.split(":", 1) for line in lines if ":" in line)
    if state.get("NoNewPrivs", "").strip() != "1" or state.get("Seccomp", "").strip() != "2":
        raise Unconfined("the kernel does not confirm the runner's jail (NoNewPrivs and Seccomp), so it was stopped")
    try:
        shared = Path(f"/proc/{pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink()
    except OSError:  # we may not read this for a runner in its own user namespace; its claim is then accepted
        shared = not claim.namespace
    return replace(claim, seccomp=True, namespace=claim.namespace and not shared)


def make_undumpable() -> None:
    """Forbid debuggers and core dumps, except for root."""
    _prctl(_DUMPABLE, 0)


def _empty_network() -> tuple[bool, bool]:
    """Enter a network namespace without interfaces; an ordinary user needs a user namespace too. Returns whether each was entered."""
    user, group = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEWNET) == 0:
        return True, False
    if libc.unshare(_NEWUSER | _NEWNET) != 0:
        return False, False
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        try:
            Path(f"/proc/self/{name}").write_text(text, encoding="ascii")
        except OSError:
            break  # the ids then show as "nobody"; file permissions are unchanged
    return True, True


def _drop_capabilities() -> None:
    """Drop every capability and every way to regain one: root in the jail has no privileges."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(64):
        if libc.prctl(_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) != 0:
            break  # no such capability, or we may not drop any because we have none
    libc.prctl(_CAP_AMBIENT, ctypes.c_ulong(_CLEAR_ALL), 0, 0, 0)
    machine = ARCHITECTURES.get(os.uname().machine)
    if machine is None:
        raise OSError(errno.ENOSYS, "capset")
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    empty = (ctypes.c_uint32 * 6)()
    if libc.syscall(ctypes.c_long(syscall_number("capset", machine) or 0), ctypes.byref(header), ctypes.byref(empty)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _confine_files(policy: Policy) -> str:
    """Apply Landlock; returns a sentence when it is unavailable, else an empty string."""
    try:
        version = landlock.abi()
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "unknown")
        return (
            f"Something around this server forbids Landlock ({name}), as the rules of a container or a service can: a runner can read "
            "files that its user can read. Allow landlock_create_ruleset, landlock_add_rule and landlock_restrict_self there."
        )
    if version == 0:
        return "This kernel has no Landlock, or has it turned off: a runner can read files that its user can read."
    paths = dict(_READABLE)
    if policy.socket_folder:
        paths[policy.socket_folder] = landlock.MAKE_SOCK
    if policy.gpu:
        paths |= gpu_paths()
    landlock.restrict(version, paths, dict.fromkeys(policy.files, landlock.READ_FILE))
    return ""


def gpu_paths(root: Path = Path("/")) -> dict[str, int]:
    """The existing paths that computing on a GPU needs, with their rights. `root` is for tests."""
    read = landlock.READ_FILE | landlock.READ_DIR
    use = read | landlock.WRITE_FILE | landlock.COMMAND_DEVICE
    paths = {str(path): use for pattern in _GPU_DEVICES for path in sorted(root.glob(pattern))}
    if not paths:
        return {}
    paths |= {str(path): landlock.READ_DIR for path in root.glob("dev/dri")}  # only to list the folder: the display devices stay closed
    return paths | {str(path): read for pattern in _GPU_FACTS for path in sorted(root.glob(pattern))}


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
