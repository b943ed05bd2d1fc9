"""The jail of a process that listens already: its second filter's decisions, then the kernel's, with a thread that was there before."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ndani.jail import seccomp
from ndani.jail.syscalls import ARCHITECTURES, syscall_number
from test_jail import follow, linux

NEW_THREAD = 0x3D0F00


@pytest.mark.parametrize("machine", sorted(ARCHITECTURES))
def test_no_further_name_and_no_further_filter(machine: str) -> None:
    steps = seccomp.bind_filter(ARCHITECTURES[machine])
    asked = [
        ("bind", (3,)),
        ("seccomp", (1,)),
        ("prctl", (22, 2)),
        ("prctl", (15, 0)),
        ("openat", ()),
        ("mmap", ()),
        ("clone", (NEW_THREAD,)),
    ]
    found = [follow(steps, machine, syscall_number(call, ARCHITECTURES[machine]) or 0, arguments) for call, arguments in asked]
    assert found == [errno.EPERM] * 3 + [0] * 4


# It prints {what: errno name or "ok"}.
INSIDE = """
import ctypes, errno, json, os, socket, sys, threading
from ndani import jail
folder, found = sys.argv[1], {}
def attempt(name, call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        found[name] = errno.errorcode[error.errno]
    else:
        found[name] = "ok"
def listen(name):
    end = socket.socket(socket.AF_UNIX)
    end.bind(folder + name)
    end.listen()
libc = ctypes.CDLL(None, use_errno=True)
one = (ctypes.c_uint64 * 1)(0x7FFF000000000006)  # a filter that allows everything
program = (ctypes.c_uint64 * 2)(1, ctypes.addressof(one))
def lay(call, *arguments):
    if call(*map(ctypes.c_ulong, (*arguments, ctypes.addressof(program), 0, 0))) < 0:
        raise OSError(ctypes.get_errno(), "")
seccomp = 317 if os.uname().machine == "x86_64" else 277
go = threading.Event()
def older():
    go.wait()
    attempt("listen, from a thread that was there", listen, "/a")
jail.enter(jail.Policy(folder))
thread = threading.Thread(target=older, daemon=True)
thread.start()
attempt("listen", listen, "/r")
if sys.argv[2] == "listens":
    jail.forbid_bind()
go.set()
thread.join()
attempt("listen elsewhere", listen, "/b")
attempt("listen by an abstract name", lambda: socket.socket(socket.AF_UNIX).bind("\\0ndani-test-%d" % os.getpid()))
attempt("a filter", lay, libc.syscall, seccomp, 1, 0)
attempt("a filter, the older way", lay, libc.prctl, 22, 2)
attempt("a socket pair", lambda: [end.close() for end in socket.socketpair()])
attempt("a thread", lambda: threading.Thread(target=int).start())
print(json.dumps(found))
"""
REFUSED = {"listen, from a thread that was there", "listen elsewhere", "listen by an abstract name", "a filter", "a filter, the older way"}
STILL = {"listen", "a socket pair", "a thread"}


@linux
@pytest.mark.parametrize("when", ["listens", "loads"])
def test_inside(tmp_path: Path, when: str) -> None:
    done = subprocess.run([sys.executable, "-I", "-c", INSIDE, str(tmp_path), when], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == dict.fromkeys(REFUSED, "EPERM" if when == "listens" else "ok") | dict.fromkeys(STILL, "ok")
