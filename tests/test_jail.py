"""The jail itself: the filter's decisions as a table, on both machines; then the kernel's, on this one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from ndani import jail
from ndani.errors import Unconfined
from ndani.jail import Confinement, Policy, seccomp
from ndani.jail.syscalls import ARCHITECTURES, NEWEST_SYSCALL, syscall_number
from ordinary import NOBODY, run_as_ordinary_user

linux = pytest.mark.skipif(sys.platform != "linux", reason="the jail's Linux file")
PID = 4711
ALLOW, KILL = 0x7FFF0000, 0x80000000


def decide(machine: str, call: int, arguments: Sequence[int] = (), audit: int | None = None, gpu: bool = False) -> int:
    """Run the filter as the kernel would, over one call; an errno, 0 for allowed, -1 for killed."""
    return follow(seccomp.program(ARCHITECTURES[machine], PID, gpu=gpu), machine, call, arguments, audit)


def follow(steps: seccomp.Instructions, machine: str, call: int, arguments: Sequence[int] = (), audit: int | None = None) -> int:
    words = [call, ARCHITECTURES[machine].audit if audit is None else audit, 0, 0]
    for value in [*arguments, *[0] * (6 - len(arguments))]:
        words += [value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF]
    at, held = 0, 0
    while True:
        code, yes, no, value = steps[at]
        at += 1
        if code == 0x20:
            held = words[value // 4]
        elif code == 0x54:
            held &= value
        elif code == 0x06:
            return 0 if value == ALLOW else -1 if value == KILL else value & 0xFFFF
        else:
            taken = {0x15: held == value, 0x25: held > value, 0x45: bool(held & value)}[code]
            at += yes if taken else no


FASTOPEN, THREAD = 0x20000000, 0x3D0F00
DECISIONS = [
    ("socket", (1, 1), 0),
    ("socket", (1, 1 | 0o2004000), 0),
    ("socket", (1 | 7 << 32, 1), 0),  # the kernel reads an int: so does the filter
    ("socket", (1, 2), errno.ESOCKTNOSUPPORT),  # a datagram socket could name its target where nobody looks
    ("socket", (1, 5), errno.ESOCKTNOSUPPORT),
    ("socket", (2, 1), errno.EAFNOSUPPORT),
    ("socket", (10, 2), errno.EAFNOSUPPORT),
    ("socket", (40, 1), errno.EAFNOSUPPORT),
    ("socketpair", (1, 1), 0),
    ("socketpair", (1, 2), errno.ESOCKTNOSUPPORT),
    ("connect", (3, 1, 16), errno.EPERM),
    ("sendto", (3, 1, 5, 0, 0, 0), 0),
    ("sendto", (3, 1, 5, FASTOPEN, 0, 0), errno.EPERM),
    ("sendto", (3, 1, 5, 0, 0x1000, 16), errno.EPERM),
    ("sendto", (3, 1, 5, 0, 0x7F00000000, 16), errno.EPERM),  # an address with a zero low half
    ("sendmsg", (3, 1, FASTOPEN), errno.EPERM),
    ("sendmsg", (3, 1, 0x4000), 0),
    ("sendmmsg", (3, 1, 1, FASTOPEN), errno.EPERM),
    ("io_uring_setup", (), errno.ENOSYS),
    ("clone3", (), errno.ENOSYS),
    ("clone", (THREAD,), 0),
    ("clone", (17,), errno.EPERM),  # a fork
    ("clone", (THREAD | 0x40000000,), errno.EPERM),
    ("execve", (), errno.EPERM),
    ("kill", (PID, 9), 0),
    ("kill", (PID + 1, 9), errno.EPERM),
    ("kill", (2**32 - 1, 9), errno.EPERM),  # everybody
    ("tgkill", (PID, 1, 9), 0),
    ("tgkill", (1, 1, 9), errno.EPERM),
    ("fcntl", (3, 3), 0),
    ("fcntl", (3, 8), errno.EPERM),
    ("fcntl", (3, 10), errno.EPERM),
    ("fcntl", (3, 15), errno.EPERM),
    ("ioctl", (0, 0x5412), errno.EPERM),
    ("ioctl", (0, 0x8902), errno.EPERM),
    ("ioctl", (0, 0x40086602), errno.EPERM),  # flags of the weights' own file
    ("fcntl", (3, 1024), errno.EPERM),
    ("fcntl", (3, 6), errno.EPERM),  # a lock
    ("fcntl", (3, 1031), errno.EPERM),  # room in a pipe, of which a user has so much
    ("ioctl", (0, 0x5421), 0),
    ("ioctl", (0, 0x5401), 0),
    ("ioctl", (3, 0x40049409), errno.EPERM),  # FICLONE
    ("openat", (-100, 0, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), 0),
    *(("openat", (-100, 0, flags), errno.EPERM) for flags in (os.O_TRUNC, os.O_CREAT, os.O_WRONLY, os.O_RDWR, 3, 0o20200000)),
    ("openat", (-100, 0, os.O_TRUNC | 7 << 32), errno.EPERM),
    ("openat2", (), errno.ENOSYS),
    ("mmap", (0, 4096, 1, 0x1), 0),  # weights
    ("mmap", (0, 4096, 3, 0x22), 0),
    ("mmap", (0, 4096, 3, 0x21), errno.EPERM),  # shared without a file: no limit counts it
    ("mmap", (0, 4096, 3, 0x23), errno.EPERM),
    ("mmap", (0, 4096, 3, 0x122), errno.EPERM),  # said to be a stack
    ("memfd_create", (), errno.EPERM),
    ("io_setup", (), errno.EPERM),
    ("vmsplice", (3,), errno.EPERM),
    ("map_shadow_stack", (), errno.EPERM),
    ("landlock_create_ruleset", (), errno.EPERM),
    ("landlock_add_rule", (), errno.EPERM),
    ("renameat2", (), errno.EPERM),
    ("unlinkat", (), errno.EPERM),
    ("prctl", (1, 0), errno.EPERM),
    ("prctl", (4, 0), 0),
    ("prctl", (4, 1), errno.EPERM),
    ("prctl", (15, 0), 0),
    ("prctl", (62, 1), errno.EPERM),  # cores that nobody else may use
    ("prlimit64", (0, 1), 0),
    ("prlimit64", (PID + 1, 1), errno.EPERM),
]


@pytest.mark.parametrize("machine", sorted(ARCHITECTURES))
@pytest.mark.parametrize(("call", "arguments", "expected"), DECISIONS)
def test_arguments_decide(machine: str, call: str, arguments: tuple[int, ...], expected: int) -> None:
    found = syscall_number(call, ARCHITECTURES[machine])
    assert found is not None
    assert decide(machine, found, arguments) == expected


def test_the_older_calls_of_one_machine_are_held_as_well() -> None:
    for flags in (os.O_TRUNC, os.O_CREAT, os.O_WRONLY, os.O_RDWR):
        assert decide("x86_64", 2, (0, flags)) == errno.EPERM
    assert decide("x86_64", 2, (0, os.O_RDONLY)) == 0
    assert decide("x86_64", 85) == errno.EPERM, "creat"


@pytest.mark.parametrize("machine", sorted(ARCHITECTURES))
def test_who_computes_on_a_gpu_opens_devices_and_empties_nothing(machine: str) -> None:
    def asked(call: str, *arguments: int) -> int:
        return decide(machine, syscall_number(call, ARCHITECTURES[machine]) or 0, arguments, gpu=True)

    assert asked("openat", 0, 0, os.O_RDWR) == asked("ioctl", 3, 0xC020462A) == asked("mmap", 0, 4096, 3, 0x21) == 0
    assert asked("openat", 0, 0, os.O_RDWR | os.O_TRUNC) == asked("openat", 0, 0, os.O_RDONLY | os.O_TRUNC) == errno.EPERM
    assert asked("openat", 0, 0, os.O_WRONLY | os.O_CREAT) == asked("ioctl", 3, 0x40049409) == errno.EPERM


@pytest.mark.parametrize("machine", sorted(ARCHITECTURES))
def test_every_refused_call_is_refused_and_the_rest_is_allowed(machine: str) -> None:
    refused = {found for call in seccomp.REFUSED if (found := syscall_number(call, ARCHITECTURES[machine])) is not None}
    absent = {found for call in seccomp.ABSENT if (found := syscall_number(call, ARCHITECTURES[machine])) is not None}
    assert all(decide(machine, call) == errno.EPERM for call in refused)
    assert all(decide(machine, call) == errno.ENOSYS for call in absent)
    for call in ("read", "futex"):
        assert decide(machine, {"read": (0, 63), "futex": (202, 98)}[call][ARCHITECTURES[machine].column]) == 0


@pytest.mark.parametrize("machine", sorted(ARCHITECTURES))
def test_other_tables_and_later_calls_are_refused(machine: str) -> None:
    assert decide(machine, 0, audit=0x40000003) == -1  # i386
    assert decide(machine, NEWEST_SYSCALL + 1) == errno.ENOSYS
    assert decide(machine, 0x40000000 + 41, (2, 1)) == errno.ENOSYS  # x32's socket()


def test_the_numbers_are_those_of_this_machine() -> None:
    table = {"x86_64": {"getpid": 39}, "aarch64": {"getpid": 172}}.get(os.uname().machine)
    if table is None:
        pytest.skip("no table for this machine")
    script = f"import ctypes,os; assert ctypes.CDLL(None).syscall({table['getpid']}) == os.getpid()"
    subprocess.run([sys.executable, "-I", "-c", script], check=True)


# What a jailed process finds, tried in one of its own; it prints {what: errno name or "ok"}.
INSIDE = """
import ctypes, errno, fcntl, json, mmap, os, signal, socket, subprocess, sys, threading
from ndani import jail
folder = sys.argv[1]
with open(folder + "/weights", "w") as file:
    file.write("weights")
weights = os.open(folder + "/weights", os.O_RDONLY)
name, how = ctypes.create_string_buffer(b"/proc/self/fd/%d" % weights), (ctypes.c_uint64 * 3)(0, 0, 0)
older = (2, ctypes.addressof(name)) if os.uname().machine == "x86_64" else ()
def fail(number):
    raise OSError(number, "")
found = {}
def attempt(name, call):
    try:
        call()
    except OSError as error:
        found[name] = errno.errorcode[error.errno]
    else:
        found[name] = "ok"
pairs = socket.socketpair()
held = jail.enter(jail.Policy(folder, (weights,)))
def listen():
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(folder + "/s")
        end.listen()
def thread():
    ran = threading.Event()
    threading.Thread(target=ran.set).start()
    assert ran.wait(60)
libc = ctypes.CDLL(None, use_errno=True)
def raw(*args):
    if libc.syscall(*map(ctypes.c_long, args)) < 0:
        raise OSError(ctypes.get_errno(), "raw")
def prctl(*args):
    if libc.prctl(*map(ctypes.c_ulong, args)) < 0:
        raise OSError(ctypes.get_errno(), "prctl")
attempt("thread", thread)
attempt("listen", listen)
attempt("talk on what is connected", lambda: pairs[0].sendall(b"x"))
attempt("cpuinfo", lambda: open("/proc/cpuinfo").close())
attempt("signal self", lambda: os.kill(os.getpid(), 0))
attempt("memory of its own", lambda: mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close())
attempt("weights", lambda: os.close(os.open(f"/proc/self/fd/{weights}", os.O_RDONLY)))
attempt("weights, emptied", lambda: os.close(os.open(f"/proc/self/fd/{weights}", os.O_RDONLY | os.O_TRUNC)))
attempt("weights, emptied by the older call", lambda: raw(*older, 0o1000) if older else fail(errno.EPERM))
attempt("weights, by a call whose flags are in memory", lambda: raw(437, -100, ctypes.addressof(name), ctypes.addressof(how), 24))
attempt("weights, to write", lambda: os.close(os.open(f"/proc/self/fd/{weights}", os.O_RDWR)))
attempt("weights, locked", lambda: fcntl.flock(weights, fcntl.LOCK_EX | fcntl.LOCK_NB))
attempt("weights, shared with others of their extents", lambda: fcntl.ioctl(weights, 0xC0189436, bytes(56)))
attempt("anonymous file", lambda: os.close(os.memfd_create("m")))
attempt("memory that is shared without a file", lambda: mmap.mmap(-1, 4096).close())
attempt("memory of the parent", lambda: os.close(os.open(f"/proc/{os.getppid()}/mem", os.O_RDWR)))
attempt("rename", lambda: os.rename(folder + "/weights", folder + "/x"))
attempt("remove", lambda: os.unlink(folder + "/s"))
attempt("folder", lambda: os.mkdir(folder + "/d"))
attempt("file without a name", lambda: os.close(os.open(folder, os.O_TMPFILE | os.O_RDWR)))
attempt("asynchronous requests", lambda: raw({"x86_64": 206, "aarch64": 0}[os.uname().machine], 1, ctypes.addressof(how)))
vector = (ctypes.c_uint64 * 2)(ctypes.addressof(how), 8)
pipe = os.pipe()
x86 = os.uname().machine == "x86_64"
attempt("pages left in a pipe", lambda: raw(278 if x86 else 75, pipe[1], ctypes.addressof(vector), 1, 0))
attempt("a larger pipe", lambda: fcntl.fcntl(pipe[1], 1031, 1 << 17))
rules = (ctypes.c_uint64 * 1)(1)
attempt("rules without end", lambda: raw(444, ctypes.addressof(rules), 8, 0))
attempt("inet", lambda: socket.socket(socket.AF_INET))
attempt("datagram", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
attempt("datagram pair", lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
attempt("connect", lambda: socket.socket(socket.AF_UNIX).connect(folder + "/s"))
attempt("fork", os.fork)
attempt("exec", lambda: os.execv("/bin/true", ["true"]))
attempt("signal parent", lambda: os.kill(os.getppid(), 0))
attempt("signal all", lambda: os.kill(-1, 0))
attempt("forget the death signal", lambda: prctl(1, 0))
attempt("read", lambda: open("/etc/passwd").close())
attempt("read the library", lambda: open(jail.__file__).close())
attempt("list", lambda: os.listdir("/"))
attempt("write", lambda: open(folder + "/w", "w").close())
attempt("mode", lambda: os.chmod(folder, 0o700))
attempt("link", lambda: os.symlink("a", folder + "/l"))
import resource
caps = [line.split()[1] for line in open("/proc/self/status") if line.startswith(("CapPrm", "CapEff", "CapBnd"))]
state = {"word": held.status, "landlock": held.landlock, "namespace": held.namespace, "caps": caps,
         "core": resource.getrlimit(resource.RLIMIT_CORE)}
print(json.dumps([found, state]))
"""

FOUND = {
    **dict.fromkeys(("thread", "listen", "talk on what is connected", "cpuinfo", "signal self", "memory of its own", "weights"), "ok"),
    **dict.fromkeys(("weights, emptied", "weights, emptied by the older call", "weights, to write", "weights, locked"), "EPERM"),
    **dict.fromkeys(("weights, shared with others of their extents", "rename", "remove", "folder", "file without a name"), "EPERM"),
    **dict.fromkeys(("anonymous file", "memory that is shared without a file", "memory of the parent", "write"), "EPERM"),
    "asynchronous requests": "EPERM",
    **dict.fromkeys(("pages left in a pipe", "a larger pipe", "rules without end"), "EPERM"),
    "weights, by a call whose flags are in memory": "ENOSYS",
    "inet": "EAFNOSUPPORT",
    "datagram": "ESOCKTNOSUPPORT",
    "datagram pair": "ESOCKTNOSUPPORT",
    **dict.fromkeys(("connect", "fork", "exec", "signal parent", "signal all", "forget the death signal", "mode", "link"), "EPERM"),
}
BY_LANDLOCK = dict.fromkeys(("read", "read the library", "list"), "EACCES")


def _check(said: str) -> None:
    found, state = json.loads(said)
    if state["landlock"]:
        assert found == FOUND | BY_LANDLOCK
    else:
        assert {name: found[name] for name in FOUND} == FOUND
    assert state["word"] == ("confined" if state["landlock"] else "unconfined")
    assert state["core"] == [0, 0]
    assert set(state["caps"][:2]) == {"0" * 16}


@linux
def test_inside_as_this_user(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-I", "-c", INSIDE, str(tmp_path)], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    _check(done.stdout)


@linux
def test_inside_as_an_ordinary_user() -> None:
    folder = Path(tempfile.mkdtemp(prefix="ndani-test-"))  # pytest's own folders are closed to others
    try:
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        done = run_as_ordinary_user([sys.executable, "-I", "-c", INSIDE, str(folder)])
    finally:
        shutil.rmtree(folder)
    assert done.returncode == 0, done.stderr
    _check(done.stdout)


@linux
def test_the_same_outside_gets_through(tmp_path: Path) -> None:
    """The table above would be worth nothing if these failed anywhere."""
    script = INSIDE.replace("held = jail.enter(jail.Policy(folder, (weights,)))", "held = jail.Confinement()")
    for name in ("fork", "exec", "weights, locked"):
        script = script.replace(f'attempt("{name}"', f'0 and attempt("{name}"')
    done = subprocess.run([sys.executable, "-I", "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    found, _ = json.loads(done.stdout)
    refused = {name for name, what in found.items() if what != "ok"}
    # Nobody listens at that path any more; files that share nothing; a parent of somebody else.
    assert refused <= {"connect", "weights, shared with others of their extents", "memory of the parent", "asynchronous requests"}


@linux
def test_verify_fails_closed() -> None:
    claim = Confinement(seccomp=True, landlock=True, namespace=True)
    with pytest.raises(Unconfined, match="NoNewPrivs"):
        jail.verify(os.getpid(), claim)
    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(Unconfined, match="/proc"):
        jail.verify(gone.pid, claim)


@linux
@pytest.mark.parametrize(
    ("before", "sentence"),
    [
        ("import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()", "one of 2 threads"),
        ("from ndani.jail import syscalls; syscalls.ARCHITECTURES.clear()", "would not shut the jail"),
        (
            "import resource; from ndani.jail import seccomp; seccomp.program = lambda *_: [(0xFFFF, 0, 0, 0)]",
            "the filter was not accepted: EINVAL",
        ),
    ],
)
def test_shutting_fails_closed(before: str, sentence: str, tmp_path: Path) -> None:
    script = f"{before}\nimport os, sys\nfrom ndani import errors, jail\n"
    script += "try:\n    jail.enter(jail.Policy(sys.argv[1]))\nexcept errors.Unconfined as error:\n"
    script += "    os.write(1, str(error).encode())\nos._exit(0)"
    done = subprocess.run([sys.executable, "-I", "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=150)
    assert sentence in done.stdout, done


def test_where_there_is_no_jail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "sunos5")
    held = jail.enter(Policy("/nowhere"))
    assert held.status == "unconfined"
    assert held.missing
    assert jail.verify(1, held) == held
    with pytest.raises(Unconfined, match="NDANI_REQUIRE_JAIL"):
        jail.enter(Policy("/nowhere", require=True))


@linux
def test_landlock_alone_holds_files_and_tcp(tmp_path: Path) -> None:
    """Each layer is real, not only the one in front of it."""
    script = """
import errno, socket, sys
from ndani.jail import landlock
import ctypes
version = landlock.abi()
if not version:
    sys.exit(77)
ctypes.CDLL(None).prctl(38, ctypes.c_ulong(1), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))
descriptor = open(sys.argv[1] + "/mine").fileno()
kept = open(sys.argv[1] + "/mine")
paths = dict.fromkeys(("/proc/cpuinfo", "/no/such"), landlock.READ_FILE)
landlock.restrict(version, paths, {kept.fileno(): landlock.READ_FILE})
open("/proc/cpuinfo").close()
open(sys.argv[1] + "/mine").close()
for name in ("/other", "/new"):
    try:
        open(sys.argv[1] + name, "w" if name == "/new" else "r")
    except PermissionError as error:
        assert error.errno == errno.EACCES
    else:
        sys.exit(1)
if landlock.abi() >= 4:
    assert socket.socket().connect_ex(("127.0.0.1", 9)) == errno.EACCES
"""
    (tmp_path / "mine").touch()
    (tmp_path / "other").touch()
    done = subprocess.run([sys.executable, "-I", "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=150)
    if done.returncode == 77:
        pytest.skip("this kernel has no Landlock")
    assert done.returncode == 0, done.stderr
