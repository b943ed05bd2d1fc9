"""Every way out, tried inside a real runner and outside: as whoever runs the tests, and as an ordinary user."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ndani import names
from ndani.runtime import egress
from ndani.runtime.probe import Targets
from ndani.store import Store
from ordinary import run_as_ordinary_user
from stores import REAL

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the jail's Linux file")

NETWORK = [
    ("TCP v4", "reaches"),
    ("TCP v6", "reaches"),
    ("TCP v4-mapped v6", "reaches"),
    ("MPTCP", "reaches"),
    ("TCP Fast Open", "reaches"),
    ("UDP v4", "reaches"),
    ("UDP v6", "reaches"),
    ("raw socket", "creates"),
    ("AF_PACKET", "creates"),
    ("netlink", "creates"),
    ("vsock", "creates"),
    ("io_uring connect", "reaches"),
    ("loopback TCP, other port", "reaches"),
]
LOCAL = [
    ("unix socket by path", "reaches"),
    ("abstract unix socket", "reaches"),
    ("read a file of the user", "reads"),
    ("write to a temporary folder", "writes"),
    ("empty its weights", "writes"),
    ("write to its weights", "writes"),
    ("memory of the server", "reads"),
]
#: What a kernel answers that was built or set up without a thing; only these may be closed outside as well.
MAY_LACK = {
    "TCP v6": {"EADDRNOTAVAIL", "EAFNOSUPPORT"},
    "UDP v6": {"EADDRNOTAVAIL", "EAFNOSUPPORT"},
    "TCP v4-mapped v6": {"EADDRNOTAVAIL", "EAFNOSUPPORT", "ENETUNREACH"},
    "MPTCP": {"EPROTONOSUPPORT", "ENOPROTOOPT"},
    "TCP Fast Open": {"EOPNOTSUPP"},
    "vsock": {"EAFNOSUPPORT", "EPERM"},
    "io_uring connect": {"ENOSYS", "EPERM", "EINVAL"},
}
#: What the filter itself answers: another refusal would mean that something else, by luck, stood in the way.
ANSWERS = {
    **{name: "EAFNOSUPPORT" for name, _ in NETWORK},
    "io_uring connect": "ENOSYS",
    "unix socket by path": "EPERM",
    "abstract unix socket": "EPERM",
    "read a file of the user": "EACCES",
    "write to a temporary folder": "EPERM",
    "empty its weights": "EPERM",
    "write to its weights": "EPERM",
    "memory of the server": "EACCES",
}

BOTH = """
import asyncio, json, os, sys
from ndani.engines import LaunchOptions
from ndani.runtime import egress
from ndani.runtime.folder import runtime_folder
from ndani.jail import landlock
from ndani.runtime.probe import Targets
from ndani.runtime.runner import Runner
async def main():
    with runtime_folder() as folder:
        weights = os.open(sys.argv[1], os.O_RDONLY) if sys.argv[1:] else -1
        runner = await Runner.spawn(LaunchOptions("llama" if weights >= 0 else "echo", num_thread=2), weights, folder)
        await asyncio.wait_for(runner.ready(), 60)
        with Targets(runner.decoy) as targets:
            inside = await runner.probe(targets.addresses)
            from_inside = sorted(targets.arrived())
        await runner.stop()
        with Targets() as targets:
            outside = egress.attempt(targets.addresses)
            from_outside = sorted(targets.arrived())
    rows = lambda found: [[o.name, o.effect, o.blocked, o.error, o.network] for o in found]
    print(json.dumps({"inside": rows(inside), "outside": rows(outside), "from_inside": from_inside, "root": os.geteuid() == 0,
        "from_outside": from_outside, "word": runner.confinement.status, "landlock": landlock.abi() > 0}))
asyncio.run(main())
"""


def _check(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    inside = {name: (effect, blocked, error) for name, effect, blocked, error, _ in found["inside"]}
    assert [(name, effect) for name, effect, _, _, network in found["inside"] if network] == NETWORK
    assert [(name, effect) for name, effect, _, _, network in found["inside"] if not network] == LOCAL
    assert found["word"] == ("confined" if found["landlock"] else "unconfined")
    held = [name for name in inside if found["landlock"] or inside[name][0] != "reads"]
    assert {name: inside[name][2] for name in held if inside[name][1]} == {name: ANSWERS[name] for name in held}
    assert not set(found["from_inside"]) & set(held)

    needs_root = {route.name for route in egress.routes() if route.root}
    for name, _, blocked, error, _ in found["outside"]:
        if not found["root"] and name in needs_root:
            assert blocked, name
            assert error == "EPERM", name
        elif name in MAY_LACK:
            assert not blocked or error in MAY_LACK[name], (name, error)
        elif name not in needs_root:  # root in a container may lack the capability for these
            assert not blocked, (name, error)
    opened = {name for name, effect, blocked, _, _ in found["outside"] if not blocked and effect in {"reaches", "writes"}}
    assert set(found["from_outside"]) == opened  # what says it got out really arrived


def test_as_this_user() -> None:
    _check(subprocess.run([sys.executable, "-I", "-c", BOTH], capture_output=True, text=True, timeout=300))


def test_as_an_ordinary_user() -> None:
    _check(run_as_ordinary_user([sys.executable, "-I", "-c", BOTH]))


def weights(models: Path) -> str:
    """The file of the real model, as a path."""
    return str(Store(models).find(names.parse(REAL)).weights_path)


@pytest.mark.weights
def test_with_a_real_model_loaded_as_this_user(models: Path) -> None:
    _check(subprocess.run([sys.executable, "-I", "-c", BOTH, weights(models)], capture_output=True, text=True, timeout=300))


@pytest.mark.weights
def test_with_a_real_model_loaded_as_an_ordinary_user(models: Path) -> None:
    _check(run_as_ordinary_user([sys.executable, "-I", "-c", BOTH, weights(models)], timeout=300))


def test_targets_count_only_what_arrives() -> None:
    with Targets() as targets:
        assert targets.arrived() == set()
        outcomes = {outcome.name: outcome for outcome in egress.attempt(targets.addresses)}
        assert {"TCP v4", "UDP v4"} <= targets.arrived()
        assert targets.arrived() == set()
    assert not outcomes["TCP v4"].blocked


FULL = """
import os, sys, tempfile
from pathlib import Path
from ndani.errors import NdaniError
from ndani.runtime.probe import Targets
tempfile.tempdir = "/mnt"  # it was chosen while it had room
before = len(os.listdir("/proc/self/fd"))
try:
    with Targets():
        print("made")
except NdaniError as error:
    print(error)
print([entry.name for entry in Path(tempfile.gettempdir()).iterdir()], len(os.listdir("/proc/self/fd")) - before)
"""


def full(script: str) -> str:
    """What a script says whose folder for temporary files has no room left."""
    mount = 'mount -t tmpfs -o size=16k tmpfs /mnt && head -c 16384 /dev/zero > /mnt/fill; exec "$@"'
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("only root can mount a full folder")
    command = ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, "-I", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=150, check=True).stdout


def test_where_there_is_no_room_a_probe_says_so_and_leaves_nothing() -> None:
    said, left = full(FULL).splitlines()
    assert said.startswith("a probe needs a folder and files in /mnt, and they cannot be made (No space left on device); make room there")
    assert left == "['fill'] 0"


def test_a_file_whose_name_is_no_text_is_not_read_by_a_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")).touch()
    except OSError:
        pytest.skip("this file system takes no such name")
    monkeypatch.setenv("HOME", str(tmp_path))
    with Targets() as targets:
        assert msgspec.json.encode(targets.addresses)


def test_a_closed_port_is_not_a_jail() -> None:
    """A refusal by the other end means that the attempt got out."""
    with Targets() as targets:
        addresses = targets.addresses
    outcomes = {outcome.name: outcome for outcome in egress.attempt(addresses)}
    assert outcomes["TCP v4"].error == "ECONNREFUSED"
    assert not outcomes["TCP v4"].blocked
