"""What holds a runner where a part of its jail is missing: every route again, by Landlock's version, namespace and user.

An older Landlock is simulated on this kernel: the ruleset asks for no right that the older one did not know.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ndani.jail import landlock
from ndani.runtime.egress import routes
from ordinary import run_as_ordinary_user

pytestmark = [pytest.mark.skipif(sys.platform != "linux", reason="the jail's Linux file"), pytest.mark.slow]

VERSIONS = (0, 1, 2, 3, 99)  # the last one: whatever this kernel has

# A front that plays the part of `serve`, and runners of which each believes in another kernel. It prints a row for each.
FRONT = r"""
import asyncio, json, os, sys, tempfile
from pathlib import Path
from ndani import jail
from ndani.engines import LaunchOptions
from ndani.runtime.folder import runtime_folder
from ndani.runtime.probe import Targets
from ndani.runtime.runner import Runner
python = sys.executable
CHILD = '''
import sys
from ndani.jail import landlock, linux
from ndani.runtime import runner_main as child
version, spaces = int(sys.argv[3]), sys.argv[4] == "True"
known, empty = landlock.abi, linux._empty_network
landlock.abi = lambda: min(known(), version)
linux._empty_network = lambda: empty() if spaces else (False, False)
child.main(int(sys.argv[1]), int(sys.argv[2]))
'''
async def tried(folder, scratch, version, spaces):
    (scratch / "child.py").write_text(CHILD)
    lie = scratch / f"python-{version}-{spaces}"
    lie.write_text(f"#!/bin/sh\nshift 3\nexec '{python}' -I '{scratch}/child.py' \"$@\" {version} {spaces}\n")
    lie.chmod(0o755)
    sys.executable = str(lie)
    runner = await Runner.spawn(LaunchOptions("echo"), -1, folder)
    try:
        await asyncio.wait_for(runner.ready(), 120)
        with Targets(runner.decoy) as targets:
            found = {o.name: o.error if o.blocked else "open" for o in await runner.probe(targets.addresses)}
            arrived = sorted(targets.arrived())
        held = runner.confinement
        return [version, spaces, held.status, held.landlock, held.namespace, found, arrived]
    finally:
        await runner.stop()
async def main():
    jail.make_undumpable()
    with runtime_folder() as folder, tempfile.TemporaryDirectory() as scratch:
        for version in json.loads(sys.argv[1]):
            for spaces in (True, False):
                print(json.dumps(await tried(folder, Path(scratch), version, spaces)))
asyncio.run(main())
"""


def _rows(done: subprocess.CompletedProcess[str]) -> list[list[Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def _check(rows: list[list[Any]]) -> None:
    assert len(rows) == 2 * len(VERSIONS)
    names, here = {route.name for route in routes()}, landlock.abi()
    for version, spaces, word, fenced, namespace, found, arrived in rows:
        case = f"Landlock {version}, {'a' if spaces else 'no'} namespace"
        assert fenced == (min(version, here) > 0), case
        assert spaces or not namespace, case
        assert word == ("confined" if fenced else "unconfined"), case
        assert set(found) == names, case
        assert {name for name, how in found.items() if how == "open"} == (set() if fenced else {"read a file of the user"}), (case, found)
        assert arrived == [], case
        assert {found[name] for name in ("empty its weights", "write to its weights", "write to a temporary folder")} == {"EPERM"}, case


def test_every_route_as_this_user() -> None:
    command = [sys.executable, "-I", "-c", FRONT, json.dumps(VERSIONS)]
    _check(_rows(subprocess.run(command, capture_output=True, text=True, timeout=600)))


def test_every_route_as_an_ordinary_user() -> None:
    _check(_rows(run_as_ordinary_user([sys.executable, "-I", "-c", FRONT, json.dumps(VERSIONS)], timeout=600)))


def test_the_table_in_the_docs_is_what_was_tried() -> None:
    text = (Path(__file__).parents[1] / "docs" / "nothing-leaves.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| (\S[^|]*?) \| (\S[^|]*?) \|", text, re.MULTILINE))
    count = len(routes())
    assert table["none (0)"] == f"all {count} but *read a file of the user*"
    assert table["1"] == table["2"] == table["3"] == table["newest"] == f"all {count}"


# How what a jailed process is told about Landlock becomes a word: {what the kernel answers: sentence}.
ASKED = """
import errno, json, os, sys, tempfile
from ndani import errors, jail
from ndani.jail import landlock
def answer(*_):
    raise OSError(getattr(errno, sys.argv[1]), "landlock_create_ruleset")
landlock._call = answer
try:
    held = jail.enter(jail.Policy(tempfile.gettempdir(), require=sys.argv[2] == "required"))
except errors.Unconfined as error:
    print(json.dumps(["refused", str(error)]))
else:
    print(json.dumps([held.status, held.missing[0]]))
"""


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ("ENOSYS", "This kernel has no Landlock, or has it turned off"),
        ("EOPNOTSUPP", "This kernel has no Landlock, or has it turned off"),
        ("EPERM", "Something around this server forbids Landlock (EPERM)"),
    ],
)
def test_without_landlock_nobody_is_called_confined(answer: str, sentence: str) -> None:
    for wanted, word in (("", "unconfined"), ("required", "refused")):
        done = subprocess.run([sys.executable, "-I", "-c", ASKED, answer, wanted], capture_output=True, text=True, timeout=150, check=True)
        said, why = json.loads(done.stdout)
        assert said == word
        assert sentence in why
        assert wanted == "" or why.startswith("NDANI_REQUIRE_JAIL is set")


# Whether each process of ours is closed to others of its user: as one of them, open its memory to write.
SEALED = r"""
import json, os, subprocess, sys, tempfile, time, urllib.request
from pathlib import Path
def look(pid):
    try:
        os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR))
        return "open"
    except OSError:
        return "closed"
found = {"this one": look(os.getpid())}
with tempfile.TemporaryDirectory() as home:
    Path(home, "models").mkdir()
    place = "127.0.0.1:" + sys.argv[1]
    given = {"PATH": os.environ["PATH"], "HOME": home, "TMPDIR": home, "NDANI_MODELS": home + "/models", "NDANI_HOST": place}
    for name, command in {"serve": ["ndani", "serve"], "mirror": ["ndani", "mirror", "--host", place],
                          "fetcher": ["ndani.sources.fetcher_main"]}.items():
        child = subprocess.Popen([sys.executable, "-P", "-m", *command], env=given, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 120
        while look(child.pid) == "open" and time.monotonic() < end:
            time.sleep(0.05)
        found[name] = look(child.pid)
        child.kill()
        child.wait()
print(json.dumps(found))
"""


def test_every_process_of_ours_is_closed_to_others_of_its_user(free: int) -> None:
    done = run_as_ordinary_user([sys.executable, "-I", "-c", SEALED, str(free)], timeout=400)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"this one": "open", "serve": "closed", "mirror": "closed", "fetcher": "closed"}


@pytest.fixture
def free() -> int:
    from cli_server import free_port

    return int(free_port())


# A runner that was taken over and takes what it can: threads (as this user, whom the kernel may not count) and memory.
GREEDY = r"""
import asyncio, ctypes, json, os, sys, tempfile
from pathlib import Path
from ndani.engines import LaunchOptions
from ndani.runtime.folder import runtime_folder
from ndani.runtime.runner import Runner
CHILD = '''
import ctypes, errno, json, mmap, os, resource, sys, threading, time, _thread
from ndani.runtime import runner_main as child
say = child.Pipes.send
def taken(pipes, event):
    if not isinstance(event, child.Ready):
        return say(pipes, event)
    asked = {}
    for name, kind in (("data", resource.RLIMIT_DATA), ("addresses", resource.RLIMIT_AS), ("files", resource.RLIMIT_FSIZE),
                       ("descriptors", resource.RLIMIT_NOFILE)):
        asked[name] = list(resource.getrlimit(kind))
    asked["timers"], number = 0, 222 if os.uname().machine == "x86_64" else 107
    while ctypes.CDLL(None).syscall(number, 1, None, ctypes.byref(ctypes.c_int())) == 0:
        asked["timers"] += 1
    held, pages = [], 0
    try:
        while True:
            held.append(mmap.mmap(-1, 1 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000))
    except OSError as error:
        asked["memory"] = [len(held), errno.errorcode[error.errno]]
    held.clear()
    said = json.dumps(asked)
    say(pipes, child.Refused("load_failed", said)) if sys.argv[3] == "memory" else say(pipes, event)
    _thread.stack_size(32768)
    begun, end = 0, time.monotonic() + 60
    while time.monotonic() < end:
        try:
            _thread.start_new_thread(time.sleep, (600,))
            begun += 1
        except RuntimeError:
            os._exit(70 if begun < 1000 else 71)
child.Pipes.send = taken
child.main(int(sys.argv[1]), int(sys.argv[2]))
'''
async def main():
    with runtime_folder() as folder, tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        (scratch / "child.py").write_text(CHILD)
        taken = scratch / "python"
        taken.write_text(f"#!/bin/sh\nshift 3\nexec '{sys.executable}' -I '{scratch}/child.py' \"$@\" {sys.argv[1]}\n")
        taken.chmod(0o755)
        sys.executable = str(taken)
        runner = await Runner.spawn(LaunchOptions("echo"), -1, folder)
        said = ""
        try:
            await asyncio.wait_for(runner.ready(), 120)
            victim = int(Path(f"/proc/{runner.pid}/oom_score_adj").read_text())
            await asyncio.wait_for(runner.exited.wait(), 120)
        except Exception as error:
            said, victim = str(error), 0
        print(json.dumps([said, runner.returncode, runner.cause, victim]))
        await runner.stop()
asyncio.run(main())
"""


def test_threads_without_end_are_ended_as_this_user() -> None:
    command = [sys.executable, "-I", "-c", GREEDY, "threads"]
    _crowded(subprocess.run(command, capture_output=True, text=True, timeout=400))


def test_threads_without_end_are_ended_as_an_ordinary_user() -> None:
    _crowded(run_as_ordinary_user([sys.executable, "-I", "-c", GREEDY, "threads"], timeout=400))


def _crowded(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr
    said, code, cause, victim = json.loads(done.stdout)
    assert said == ""
    assert victim == 500, "short of memory, the kernel ends a runner first"
    assert (code, cause) == (-9, "it started more threads than an engine needs, and was ended") or code == 70, "the kernel's own limit"


def test_memory_files_and_descriptors_have_an_end() -> None:
    done = subprocess.run([sys.executable, "-I", "-c", GREEDY, "memory"], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    printed = json.loads(json.loads(done.stdout)[0])
    assert printed["files"] == [0, 0]
    assert 0 < printed["descriptors"][0] == printed["descriptors"][1] < 1024
    assert printed["timers"] <= 64, "which a user has so many of"
    pieces, error = printed["memory"]
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert error == "ENOMEM"
    assert 0 < pieces << 30 <= there + (4 << 30)
    assert 0 < printed["data"][0] == printed["data"][1] < printed["addresses"][0] == printed["addresses"][1]


# The first thread's stack grows by itself, and what it takes counts as no data.
STACK = """
import json, resource, sys
from ndani import jail
jail.enter(jail.Policy(sys.argv[1], limits=jail.Limits(64, 64, 0, 1 << 26)))
print(json.dumps(resource.getrlimit(resource.RLIMIT_STACK)))
"""


def test_a_stack_is_no_way_to_take_memory_past_the_limit(tmp_path: Path) -> None:
    endless = 'ulimit -s unlimited 2>/dev/null; exec "$@"'  # the soft limit, up to what this system allows
    done = subprocess.run(["sh", "-c", endless, "sh", sys.executable, "-I", "-c", STACK, str(tmp_path)], capture_output=True, text=True)
    soft, hard = json.loads(done.stdout)
    assert soft == hard == 8 << 20, "and it cannot be raised again"
