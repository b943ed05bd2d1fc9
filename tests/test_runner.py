"""Runner processes: started, verified, watched, ended; and ended with their parent however it dies. Real children."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import uvloop

from ndani.engines import LaunchOptions
from ndani.errors import EngineFailed, LoadFailed, Misconfigured, Unconfined
from ndani.jail.process import child_environment
from ndani.runtime.folder import runtime_folder
from ndani.runtime.probe import Targets
from ndani.runtime.runner import Runner
from server import slowness, stretched

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")]


@pytest.fixture
def folder() -> Iterator[Path]:
    with runtime_folder() as path:
        yield path


@contextlib.asynccontextmanager
async def echo(folder: Path, engine: str = "echo", weights: int = -1) -> AsyncIterator[Runner]:
    runner = await Runner.spawn(LaunchOptions(engine), weights, folder)
    try:
        yield runner
    finally:
        await runner.stop()


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone_within(pid: int, at_rest: float) -> bool:
    end = time.monotonic() + stretched(at_rest)
    while time.monotonic() < end:
        if not alive(pid):
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_whole_life(folder: Path, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def live() -> None:
        runner = await Runner.spawn(LaunchOptions("echo"), -1, folder)
        await asyncio.wait_for(runner.ready(), 60)
        assert runner.confinement.status == "confined"
        assert runner.load_ns > 0
        assert stat.S_ISSOCK(os.stat(runner.socket).st_mode)
        assert os.stat(Path(runner.socket).parent).st_mode & 0o777 == 0o700
        assert os.getsid(runner.pid) == runner.pid  # a terminal's Ctrl-C does not reach it
        reader, writer = await asyncio.open_unix_connection(runner.socket)
        writer.write(b"GET /health HTTP/1.1\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
        with Targets() as targets:
            assert all(outcome.blocked for outcome in await runner.probe(targets.addresses) if outcome.network)
        assert not runner.exited.is_set()
        await asyncio.gather(runner.stop(), runner.stop())
        await runner.stop()
        assert runner.returncode == 0  # the lifeline was enough
        assert runner.exited.is_set()
        assert not Path(runner.socket).parent.exists()
        with pytest.raises(ProcessLookupError):
            os.kill(runner.pid, 0)  # reaped
        with pytest.raises(EngineFailed):
            await runner.probe(targets.addresses)

    with asyncio.Runner(loop_factory=loop) as outer:
        outer.run(live())


async def test_a_killed_child_is_seen_at_once(folder: Path) -> None:
    async with echo(folder) as runner:
        await asyncio.wait_for(runner.ready(), 60)
        os.kill(runner.pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            await runner.exited.wait()
        assert runner.returncode == -signal.SIGKILL
        assert "killed" in runner.cause
        assert not Path(runner.socket).exists()


async def test_a_probe_that_is_cancelled_leaves_no_answer_for_the_next(folder: Path) -> None:
    async with echo(folder) as runner:
        await asyncio.wait_for(runner.ready(), 60)
        with Targets() as first, Targets() as second:
            os.kill(runner.pid, signal.SIGSTOP)
            probing = asyncio.create_task(runner.probe(first.addresses))
            await asyncio.sleep(0.1)
            probing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await probing
            os.kill(runner.pid, signal.SIGCONT)
            unfit = msgspec.structs.replace(second.addresses, readable="/nowhere/at/all")
            outcomes = await runner.probe(unfit)
        assert {o.name: o.error for o in outcomes}["read a file of the user"] == "ENOENT"
        assert runner._messages.empty(), "nothing is left that a third probe could take for its own"


async def test_a_folder_that_was_tidied_away_is_made_again(folder: Path) -> None:
    shutil.rmtree(folder)
    async with echo(folder) as runner:
        assert runner.returncode is None
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / "lock").exists()
    shutil.rmtree(folder)
    folder.write_text("somebody else's")
    with pytest.raises(LoadFailed, match="has gone and cannot be made again"):
        async with echo(folder):
            pass
    folder.unlink()


def test_a_folder_without_room_is_said_to_be_that() -> None:
    if os.getuid() != 0 or not shutil.which("unshare"):
        pytest.skip("only root can mount a full folder")
    script = """
import asyncio
from pathlib import Path
from ndani.engines import LaunchOptions
from ndani.errors import LoadFailed
from ndani.runtime.runner import Runner
async def main():
    try:
        await Runner.spawn(LaunchOptions("echo"), -1, Path("/mnt"))
    except LoadFailed as error:
        print(error)
asyncio.run(main())
"""
    mount = 'mount -t tmpfs -o size=16k,mode=700 tmpfs /mnt && head -c 16384 /dev/zero > /mnt/fill; exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, "-I", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=True)
    assert done.stdout == "the folder for sockets /mnt cannot be written to (No space left on device); make room there and try again\n"


async def test_a_folder_whose_name_somebody_else_took_is_not_used(folder: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can make a folder of somebody else's")
    shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)
    with pytest.raises(LoadFailed, match="has gone and cannot be made again"):
        async with echo(folder):
            pass
    assert list(folder.iterdir()) == [], "nothing of ours lies there"


#: What a runner becomes whose prompt has taken it over: it fills the pipe over which it is told things, or never stops talking.
TAKEN_OVER = """
import fcntl, os, sys, time
from ndani.runtime import runner_main as child
said = child.Pipes.send
end = os.open(f"/proc/self/fd/{sys.argv[1]}", os.O_WRONLY | os.O_NONBLOCK)  # inside it could not be opened
fcntl.fcntl(int(sys.argv[1]), 1031, 4096)  # nor made smaller
def taken(pipes, event):
    if not isinstance(event, child.Ready):
        return said(pipes, event)
    if sys.argv[3] == "talks":
        said(pipes, event)
        while True:
            os.write(int(sys.argv[2]), b'{"type":"probed","outcomes":[],"number":1}\\n')
    try:
        while True:
            os.write(end, bytes(4096))
    except BlockingIOError:
        pass
    said(pipes, event)
    time.sleep(600)
child.Pipes.send = taken
child.main(int(sys.argv[1]), int(sys.argv[2]))
"""


@pytest.mark.parametrize("how", ["talks", "is deaf"])
async def test_a_runner_that_was_taken_over_holds_nobody_up(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    taken = tmp_path / "taken"
    taken.with_suffix(".py").write_text(TAKEN_OVER)
    taken.write_text(f"#!/bin/sh\nshift 3\nexec '{sys.executable}' -I '{taken}.py' \"$@\" '{how}'\n")
    taken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(taken))
    async with echo(folder) as runner, asyncio.timeout(60):
        await asyncio.wait_for(runner.ready(), 60)
        with Targets() as targets, contextlib.suppress(EngineFailed):
            while how == "is deaf" or not runner.exited.is_set():
                await runner.probe(targets.addresses)
        await runner.exited.wait()
        assert runner.returncode == -signal.SIGKILL


async def test_two_runners_each_have_their_own_lifeline(folder: Path) -> None:
    async with echo(folder) as first, echo(folder) as second:
        await asyncio.gather(first.ready(), second.ready())
        assert first.socket != second.socket
        await first.stop()
        assert first.returncode == 0
        assert alive(second.pid)


async def test_what_a_runner_is_given(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = child_environment({"PATH": "/bin", "OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "0", "AWS_SECRET": "s", "HOME": "/h"})
    assert given == {
        "PATH": "/bin",
        "OMP_NUM_THREADS": "2",
        "CUDA_VISIBLE_DEVICES": "0",
        "GOMP_SPINCOUNT": "5000",
        "ORT_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    with open("/etc/passwd", "rb") as stray:
        os.set_inheritable(stray.fileno(), True)  # as a careless library would
        async with echo(folder) as runner:
            targets = [os.readlink(f"/proc/{runner.pid}/fd/{name}") for name in os.listdir(f"/proc/{runner.pid}/fd")]
            assert "/etc/passwd" not in targets
            await asyncio.wait_for(runner.ready(), 60)


async def test_an_unknown_engine(folder: Path) -> None:
    async with echo(folder, "abacus") as runner:
        with pytest.raises(Misconfigured, match="abacus"):
            await asyncio.wait_for(runner.ready(), 60)
        assert runner.exited.is_set()


async def test_damaged_weights_are_one_sentence_of_ours(folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"GGUF" + b"secret words" * 100)
    with damaged.open("rb") as file:
        async with echo(folder, "llama", file.fileno()) as runner:
            with pytest.raises(LoadFailed) as failure:
                await asyncio.wait_for(runner.ready(), 60)
    assert "could not load" in str(failure.value)
    assert "secret" not in str(failure.value)


async def test_too_slow_a_load(folder: Path) -> None:
    async with echo(folder) as runner:
        os.kill(runner.pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(runner.ready(), 0.3)
        assert time.monotonic() - began < 3 * slowness()
        assert runner.returncode == -signal.SIGKILL


async def test_a_cancelled_load_leaves_no_child(folder: Path) -> None:
    async with echo(folder) as runner:
        os.kill(runner.pid, signal.SIGSTOP)
        waiting = asyncio.create_task(runner.ready())
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert runner.exited.is_set()


async def test_a_stuck_child_is_killed_by_stop(folder: Path) -> None:
    async with echo(folder) as runner:
        await asyncio.wait_for(runner.ready(), 60)
        os.kill(runner.pid, signal.SIGSTOP)
        began = time.monotonic()
        await runner.stop()
        assert time.monotonic() - began < 3 * slowness()
        assert runner.returncode == -signal.SIGKILL


async def test_a_child_that_lies_about_its_jail_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real process that says it is confined and is not: the kernel's word counts."""
    liar = tmp_path / "liar"
    script = "import sys; from ndani import jail; from ndani.runtime import runner_main as child; "
    script += "jail.enter = lambda _: jail.Confinement(True, True, True); child.main(int(sys.argv[1]), int(sys.argv[2]))"
    # The runner is started as: PYTHON -I -m ndani.runtime.runner_main COMMANDS EVENTS
    liar.write_text(f"#!/bin/sh\nshift 3\nexec '{sys.executable}' -I -c '{script}' \"$@\"\n")
    liar.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(liar))
    async with echo(folder) as runner:
        with pytest.raises(Unconfined, match="does not confirm"):
            await asyncio.wait_for(runner.ready(), 60)
        assert runner.exited.is_set()


PARENT = """
import asyncio, os, sys
from ndani.engines import LaunchOptions
from ndani.runtime.folder import runtime_folder
from ndani.runtime.runner import Runner
async def main():
    with runtime_folder() as folder:
        runner = await Runner.spawn(LaunchOptions("echo"), -1, folder)
        await asyncio.wait_for(runner.ready(), 60)
        print(runner.pid, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.parametrize("stopped", [False, True], ids=["by the lifeline", "by the kernel, when it cannot read its lifeline"])
def test_a_killed_parent_takes_the_runner_along(stopped: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        parent.send_signal(signal.SIGKILL)
    assert gone_within(pid, 1.0)


def test_goodbyes_of_a_service_manager_are_left_to_the_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)
        time.sleep(0.1)
        assert alive(pid)
        parent.kill()
    assert gone_within(pid, 1.0)
