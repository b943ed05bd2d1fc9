"""Children that what they have read has taken over: no number, no word and no silence of theirs is an error of the front's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ndani.convert.supervisor import Supervisor
from ndani.engines import LaunchOptions
from ndani.errors import EngineFailed, Failed, LoadFailed, NdaniError, SourceFailed, error_from_child
from ndani.jail.process import describe_exit
from ndani.names import parse
from ndani.runtime.folder import runtime_folder
from ndani.runtime.probe import Targets
from ndani.runtime.runner import Runner
from ndani.settings import Settings
from ndani.sources.fetcher import Fetcher
from steps import following
from test_maker import source, task

__all__ = ["source"]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="the jail's Linux file, real-time signals")]

#: What a jailed child becomes: it does as it should until it may read what is foreign, and then something else.
TAKEN_OVER = """
import os, sys
import msgspec
from ndani import jail
from ndani.jail.process import Jailed, Open, Pipes
pipes = Pipes(int(sys.argv[1]), int(sys.argv[2]))
pipes.read_line()
pipes.send(Jailed(jail.enter(jail.Policy(""))))
pipes.read_line()
for line in LINES:
    os.write(int(sys.argv[2]), line.encode() + b"\\n")
END
"""


def take_over(folder: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], end: str = "os._exit(0)") -> None:
    taken = folder / "taken"
    taken.with_suffix(".py").write_text(TAKEN_OVER.replace("LINES", repr(lines)).replace("END", end))
    taken.write_text(f"#!/bin/sh\nshift 3\nexec '{sys.executable}' -I '{taken}.py' \"$@\"\n")
    taken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(taken))


@pytest.mark.parametrize(
    ("lines", "end", "sentence"),
    [
        (['{"type":"stuck","errno":1099511627776}'], "", r"said what it never should"),
        (['{"type":"stuck","errno":-5}'], "", r"said what it never should"),
        (['{"type":"planned","size":9223372036854775808}'], "", r"said what it never should"),
        (['{"type":"planned","size":1099511627776}'], "pipes.read_line()", r"said what it never should"),
        (['{"type":"planned","size":9}', '{"type":"working","completed":1,"total":-1}'], "", r"said what it never should"),
        (['{"type":"planned","size":9}', '{"type":"working","completed":1180591620717411303424,"total":1}'], "", r"never should"),
        (['{"type":"refused","code":"zzz","sentence":"\\u001b[31mred\\nline"}'], "", r"^\[31mred line$"),
        (['{"type":"refused","code":"failed","sentence":"\\u001b"}'], "", r"failed without a word"),
        ([], "import signal; os.kill(os.getpid(), 37)", r"crashed \(signal 37\)|ended by itself"),
    ],
)  # fmt: skip
async def test_a_maker_may_say_and_die_as_it_likes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], end: str, sentence: str
) -> None:
    take_over(tmp_path, monkeypatch, lines, end)
    with task(source, tmp_path / "made", "Q8_0") as work, pytest.raises(Failed, match=sentence):
        async with asyncio.timeout(60), following(Supervisor(True).make, work) as steps:
            async for _ in steps:
                pass


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"type":"refused","code":"zzz","sentence":"\\u001b]0;x\\u0007' + "a" * 9000 + '"}', r"^\]0;xa{1000,2000}$"),
        ('{"type":"ready","load_ns":1180591620717411303424}', "the engine stopped while it loaded"),
        ('{"type":"ready","load_ns":-1}', "the engine stopped while it loaded"),
    ],
)
async def test_a_runner_may_say_what_it_likes_while_it_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, sentence: str
) -> None:
    take_over(tmp_path, monkeypatch, [line], "pipes.read_line()")
    with runtime_folder() as folder:
        runner = await Runner.spawn(LaunchOptions("echo"), -1, folder)
        with pytest.raises(LoadFailed, match=sentence):
            await asyncio.wait_for(runner.ready(), 60)


async def test_a_runner_that_says_nothing_to_a_probe_is_ended() -> None:
    with runtime_folder() as folder, Targets() as targets:
        runner = await Runner.spawn(LaunchOptions("echo"), -1, folder)
        await asyncio.wait_for(runner.ready(), 60)
        os.kill(runner.pid, signal.SIGSTOP)
        async with asyncio.timeout(60):
            with pytest.raises(EngineFailed, match="said nothing"):
                await runner.probe(targets.addresses, 0.2)
        assert runner.returncode == -signal.SIGKILL


async def test_a_runner_that_says_something_else_to_a_probe_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = '{"type":"ready","load_ns":1}'
    take_over(
        tmp_path, monkeypatch, [ready], f"pipes.read_line(); os.write(int(sys.argv[2]), {ready!r}.encode() + b'\\n'); pipes.read_line()"
    )
    with runtime_folder() as folder, Targets() as targets:
        runner = await Runner.spawn(LaunchOptions("echo"), -1, folder)
        async with asyncio.timeout(60):
            await asyncio.wait_for(runner.ready(), 60)
            for _ in range(20):  # whoever asks again hears at once that it is gone
                with pytest.raises(EngineFailed, match="went away while it was probed: it was killed"):
                    await runner.probe(targets.addresses)
        assert runner.returncode == -signal.SIGKILL


#: A runner that its weights take over while they are read: it makes names in the folder of its socket for as long as it lives.
NAMES = """
import itertools, os, socket, sys
from ndani.runtime import runner_main as child
def taken():
    os.chdir(os.path.dirname(given.socket))
    for number in itertools.count():
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(f"n{number}")
start = child._start
def remember(order, pipes):
    global given
    given = order.launch
    return start(order, pipes)
child._start, child.jail.forbid_bind = remember, taken
child.main(int(sys.argv[1]), int(sys.argv[2]))
"""


async def test_a_runner_that_makes_names_without_end_while_it_loads_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = tmp_path / "taken"
    taken.with_suffix(".py").write_text(NAMES)
    taken.write_text(f"#!/bin/sh\nshift 3\nexec '{sys.executable}' -I '{taken}.py' \"$@\"\n")
    taken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(taken))
    with runtime_folder() as folder:
        runner = await Runner.spawn(LaunchOptions("echo"), -1, folder)
        async with asyncio.timeout(60):
            with pytest.raises(LoadFailed, match="it made names of sockets without end, and was ended"):
                await runner.ready()
        assert [entry.name for entry in folder.iterdir()] == ["lock"]


async def test_no_thread_of_a_runner_that_listens_can_name_a_socket() -> None:
    with runtime_folder() as folder:
        runner = await Runner.spawn(LaunchOptions("echo"), -1, folder)
        await asyncio.wait_for(runner.ready(), 60)
        states = [(task / "status").read_text() for task in Path(f"/proc/{runner.pid}/task").iterdir()]
        await runner.stop()
    if "Seccomp_filters" not in states[0]:
        pytest.skip("this kernel does not count filters")
    assert len(states) > 1
    assert all("Seccomp_filters:\t2\n" in state for state in states)


def test_without_descriptors_left_no_start_takes_any() -> None:
    script = """
import os, resource
from ndani.jail import process
from ndani.runtime.runner_main import Probed
top = os.dup(0)
os.close(top)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
for free in (1, 3, 3, 3):
    resource.setrlimit(resource.RLIMIT_NOFILE, (top + free, hard))
    try:
        process.start_child("ndani.runtime.runner_main", Probed([], 1))
    except OSError as error:
        assert error.errno == 24, error
    else:
        raise AssertionError("it started")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
again = os.dup(0)
assert again == top, (top, again)
"""
    subprocess.run([sys.executable, "-I", "-c", script], check=True, timeout=60)


async def test_a_runner_that_dies_of_a_signal_without_a_name_has_a_cause() -> None:
    with runtime_folder() as folder, Targets() as targets:
        runner = await Runner.spawn(LaunchOptions("echo"), -1, folder)
        await asyncio.wait_for(runner.ready(), 60)
        os.kill(runner.pid, 37)
        async with asyncio.timeout(60):
            await runner.exited.wait()
            assert runner.cause == "it crashed (signal 37)"
            with pytest.raises(EngineFailed, match="signal 37"):
                await runner.probe(targets.addresses)


def test_how_children_end_and_what_they_are_told_to_say() -> None:
    assert [describe_exit(code) for code in (0, 3, -11, -37)] == [
        "ended by itself (exit code 0)", "ended by itself (exit code 3)", "crashed (SIGSEGV)", "crashed (signal 37)",
    ]  # fmt: skip
    assert type(error_from_child("error", "x")) is NdaniError
    assert type(error_from_child("", "x", LoadFailed)) is LoadFailed


@pytest.mark.parametrize(
    "line",
    ["[]", "1", "{", "[" * 5000, '{"status":5}', '{"status":"a","total":1180591620717411303424}', '{"status":"a","completed":-1}',
     '{"error":7,"code":"failed"}', '{"status":"' + "a" * (2 << 20) + '"}'],
)  # fmt: skip
async def test_a_fetcher_may_say_what_it_likes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    said = tmp_path / "said"
    said.write_text(json.dumps({"status": "pulling manifest"}) + f"\n{line}\n")
    taken = tmp_path / "taken"
    taken.write_text(f"#!/bin/sh\ncat '{said}'\nexec sleep 60\n")
    taken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(taken))
    with pytest.raises(SourceFailed, match="said what it never should"):
        async with (
            asyncio.timeout(60),
            following(Fetcher(Settings(models=tmp_path)).pull, parse("a"), False) as steps,
        ):
            async for _ in steps:
                pass
