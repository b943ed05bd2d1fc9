"""The process that makes weights: what it can reach, and how it ends when somebody or something ends it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from checkpoints import byte_level, made_of, sources, tiny_llama
from ndani.convert import SourceFile, Task
from ndani.convert.gguf_layout import lay_out_file, number_key
from ndani.convert.supervisor import Supervisor
from ndani.convert.worker_main import ConversionProgress
from ndani.errors import BadRequest, Failed, StoreFailed
from ndani.jail.process import Pipes, Refused
from ndani.store.gguf import Tensor
from ndani.store.layout import Layout
from ndani.store.temporary import TemporaryBlob
from ordinary import run_as_ordinary_user
from steps import all_steps, following
from weights import file, small, types_of

pytestmark = pytest.mark.slow

#: Rows that keep two threads busy for some seconds, in the slowest kind.
MANY, SLOW = 60_000, "IQ4_XS"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "source.gguf"
    path.write_bytes(file(*small(rows=MANY)))
    return path


@contextlib.contextmanager
def task(source: Path, target: Path, kind: str) -> Iterator[Task]:
    given, output = os.open(source, os.O_RDONLY), os.open(target, os.O_RDWR | os.O_CREAT)
    try:
        yield Task((SourceFile(source.name, given),), output, kind, 2)
    finally:
        os.close(given)
        os.close(output)


@contextlib.asynccontextmanager
async def under_way(supervisor: Supervisor, task: Task) -> AsyncGenerator[tuple[AsyncGenerator[ConversionProgress], psutil.Process]]:
    """A task whose first piece is done: its steps, and its process."""
    before = set(psutil.Process().children())
    async with following(supervisor.make, task) as steps:
        while (await anext(steps)).completed == 0:
            pass
        (child,) = set(psutil.Process().children()) - before
        yield steps, child


async def test_a_file_is_made_with_signs_of_life(source: Path, tmp_path: Path) -> None:
    with task(source, tmp_path / "made", "Q6_K") as work:
        done = await all_steps(Supervisor(True).make, work)
    assert [step.completed for step in done] == sorted(step.completed for step in done)
    assert len({step.total for step in done}) == 1
    assert done[-1].completed <= done[0].total < source.stat().st_size
    assert types_of(tmp_path / "made")["token_embd.weight"] == "Q6_K"


async def test_a_maker_that_is_killed_is_one_sentence(source: Path, tmp_path: Path) -> None:
    with task(source, tmp_path / "made", SLOW) as work:
        async with under_way(Supervisor(True), work) as (steps, child):
            child.kill()
            with pytest.raises(Failed, match=r"^the process that makes the weights was killed, which is what"):
                async for _ in steps:
                    pass
        assert not child.is_running()


async def test_a_server_that_ends_says_so(source: Path, tmp_path: Path) -> None:
    supervisor = Supervisor(True)
    with task(source, tmp_path / "made", SLOW) as work:
        async with under_way(supervisor, work) as (steps, child):
            await supervisor.close()
            with pytest.raises(Failed, match=r"^the server is stopping"):
                async for _ in steps:
                    pass
        assert not child.is_running()


async def test_who_waits_no_longer_ends_it(source: Path, tmp_path: Path) -> None:
    with task(source, tmp_path / "made", SLOW) as work:
        async with under_way(Supervisor(True), work) as (_, child):
            pass
        assert not child.is_running()
        # Cancelled between two words, as when a client hangs up.
        held: list[psutil.Process] = []

        async def follow() -> None:
            async with under_way(Supervisor(True), work) as (steps, child):
                held.append(child)
                async for _ in steps:
                    pass

        following = asyncio.create_task(follow())
        while not held:
            await asyncio.sleep(0.01)
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following
        assert not held[0].is_running()


#: A front of its own: makes a file of another, and prints a line for each step.
FRONT = """
import asyncio, os, sys
from ndani.convert import SourceFile, Task
from ndani.convert.supervisor import Supervisor
from ndani.convert.gguf_layout import lay_out_file, number_key
async def main():
    given, output = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)
    await Supervisor(True).make(Task((SourceFile("x", given),), output, sys.argv[3], 2), lambda step: print(step, flush=True))
asyncio.run(main())
"""


async def test_its_front_dies_and_it_goes_too(source: Path, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", FRONT, source, tmp_path / "made", SLOW], stdout=subprocess.PIPE) as front:
        assert front.stdout
        assert await asyncio.to_thread(front.stdout.readline)
        (child,) = psutil.Process(front.pid).children()
        front.kill()
    psutil.wait_procs([child], timeout=60)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_an_ordinary_user_can_make_weights_too(source: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(source, f"{folder}/source")
        for path in (folder, f"{folder}/source"):
            os.chmod(path, 0o777)
        done = run_as_ordinary_user([sys.executable, "-c", FRONT, f"{folder}/source", f"{folder}/made", "Q4_0"])
        assert done.returncode == 0, done.stderr
        assert done.stdout, done.stderr
        assert types_of(Path(folder) / "made")["token_embd.weight"] == "Q6_K"


async def test_a_full_disk_is_the_systems_own_error(source: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no disk that is always full")
    with task(source, Path("/dev/full"), "Q8_0") as work, pytest.raises(OSError) as met:
        async with following(Supervisor(True).make, work) as steps:
            async for _ in steps:
                pass
    assert met.value.errno == errno.ENOSPC


async def test_what_is_wrong_with_the_weights_comes_back_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"GGUF, and then something else")
    with task(tmp_path / "bad", tmp_path / "made", "Q8_0") as work, pytest.raises(BadRequest, match=r"^bad is not a usable GGUF file"):
        async with following(Supervisor(True).make, work) as steps:
            async for _ in steps:
                pass


async def test_a_checkpoint_is_converted_and_there_must_be_room_first(tmp_path: Path) -> None:
    folder, target = tiny_llama(tmp_path / "l", byte_level()), tmp_path / "made"
    with contextlib.ExitStack() as held:
        given = tuple(SourceFile(name, held.enter_context(path.open("rb")).fileno()) for name, path in sources(folder).items())
        work = Task(given, held.enter_context(target.open("w+b")).fileno(), checkpoint=True)
        told: list[int] = []

        def no_room(size: int) -> None:
            told.append(size)
            raise StoreFailed("no room")

        with pytest.raises(StoreFailed, match="no room"):
            async with following(Supervisor(True).make, work, allocate=no_room) as steps:
                await anext(steps)
        assert target.stat().st_size == 0
        await all_steps(Supervisor(True).make, work, allocate=told.append)
    assert target.read_bytes() == made_of(folder)
    assert told == [target.stat().st_size] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="no other system keeps the limit")
async def test_weights_that_ask_for_all_memory_are_refused(tmp_path: Path) -> None:
    """A row of six gigabytes, in a file that takes no room: it would have to be in memory at once."""
    head = lay_out_file([number_key("x", 1)], [Tensor("t.bias", "F32", (6 << 28,))], {"t.bias": "F32"})
    (tmp_path / "wide").write_bytes(head.head)
    os.truncate(tmp_path / "wide", head.size)
    with task(tmp_path / "wide", tmp_path / "made", "") as work, pytest.raises(Failed, match=r"^these files ask for more memory than"):
        async with following(Supervisor(True).make, work) as steps:
            async for _ in steps:
                pass


#: What a worker becomes whose weights have taken it over: it says one thing for ever, and never reads.
TAKEN_OVER = """
import os, sys
from ndani import jail
os.read(int(sys.argv[1]), 1 << 16)
jail.enter(jail.Policy(""))
while True:
    os.write(int(sys.argv[2]), WORDS)
"""


def take_over(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """Have this program started in the place of every worker."""
    taken = folder / "taken"
    taken.with_suffix(".py").write_text(script)
    taken.write_text(f"#!/bin/sh\nshift 3\nexec '{sys.executable}' -I '{taken}.py' \"$@\"\n")
    taken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(taken))
    return taken


@pytest.mark.skipif(sys.platform != "linux", reason="the jail's Linux file")
@pytest.mark.parametrize(
    "says",
    [
        '{"type":"jailed","confinement":{}}',
        '{"type":"planned","size":9}',
        '{"type":"made"}',
        '{"type":"stuck","errno":1099511627776}',
        '{"type":"stuck","errno":-1}',
        "[" * 100_000,
    ],
)
async def test_a_maker_that_was_taken_over_holds_nobody_up(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str
) -> None:
    taken = take_over(tmp_path, monkeypatch, TAKEN_OVER.replace("WORDS", repr(says.encode() + b"\n")))
    with task(source, tmp_path / "made", "Q8_0") as work, pytest.raises(Failed, match=r"said what it never should"):
        async with asyncio.timeout(30), following(Supervisor(True).make, work) as steps:
            async for _ in steps:
                pass
    assert not [child for child in psutil.Process().children() if str(taken) in " ".join(child.cmdline())]


#: What a worker may end with, and what is said of it. Only a disk's own errors are the store's.
ENDS = {
    f'os.write(int(sys.argv[2]), b\'{{"type":"stuck","errno":{errno.EACCES}}}\\n\')': r"was refused something by the system \(EACCES\)",
    'os.write(int(sys.argv[2]), b\'{"type":"stuck","errno":999}\\n\')': r"was refused something by the system \(number 999\)",
    "os.kill(os.getpid(), 37)": r"crashed \(signal 37\)",
    "os.kill(os.getpid(), 11)": r"crashed \(SIGSEGV\)",
}


@pytest.mark.skipif(sys.platform != "linux", reason="signals above the named ones are Linux's")
@pytest.mark.parametrize("last", ENDS)
async def test_however_a_maker_ends_it_has_a_name_and_the_stores_rights_are_not_blamed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    take_over(tmp_path, monkeypatch, f"import os, sys, time\nos.read(int(sys.argv[1]), 1 << 16)\n{last}\ntime.sleep(60)\n")
    store = Layout(tmp_path / "store")
    store.blobs.mkdir(parents=True)
    file = TemporaryBlob(store)
    with contextlib.closing(source.open("rb")) as given, pytest.raises(Failed, match=f"^the process that makes the weights {ENDS[last]}"):
        work = Task((SourceFile("x", given.fileno()),), file.descriptor, "Q8_0")
        async with following(Supervisor(True).fill, work, file, "making", None) as steps:
            async for _ in steps:
                pass
    file.discard()


async def test_a_file_grows_no_further_than_its_sources_could_make_it(source: Path, tmp_path: Path) -> None:
    with task(source, tmp_path / "made", SLOW) as work:
        async with under_way(Supervisor(True), work) as (_, child):
            assert child.rlimit(psutil.RLIMIT_FSIZE) == (4 * source.stat().st_size + (64 << 20),) * 2, "and it cannot be raised again"


async def test_what_no_maker_says_is_not_blamed_on_memory(source: Path, tmp_path: Path) -> None:
    """Its pipe is written to from outside, where its words would come."""
    with task(source, tmp_path / "made", SLOW) as work:
        async with under_way(Supervisor(True), work) as (steps, child):
            pipe = Path(f"/proc/{child.pid}/cmdline").read_text().split("\0")[-2]
            Path(f"/proc/{child.pid}/fd/{pipe}").write_text("?\n")
            with pytest.raises(Failed, match=r"^the process that makes the weights said what it never should"):
                async for _ in steps:
                    pass
        assert not child.is_running()


async def test_a_long_sentence_arrives_cut() -> None:
    read, write = os.pipe()
    Pipes(-1, write).send(Refused("bad_request", "\x01" * 100_000 + "\ud800"))
    Pipes(-1, write).send(Refused("bad_request", "half a letter: \ud800"))
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        long, half = (msgspec.json.decode(line, type=Refused).sentence for line in pipe)
    assert long == "\x01" * 1000
    assert half == "half a letter: ?"


INSIDE = """
import errno, json, mmap, os, socket, sys, threading
from ndani import jail
found = {}
def attempt(name, call):
    try:
        call()
    except OSError as error:
        found[name] = errno.errorcode[error.errno]
    else:
        found[name] = "ok"
read, write = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)
held = jail.enter(jail.Policy(""))
def thread():
    ran = threading.Event()
    threading.Thread(target=ran.set).start()
    assert ran.wait(60)
attempt("read what is open", lambda: os.pread(read, 1, 0))
attempt("write what is open", lambda: (os.pwrite(write, b"x", 0), os.ftruncate(write, 9)))
attempt("thread", thread)
attempt("unix socket", lambda: socket.socket(socket.AF_UNIX))
attempt("inet socket", lambda: socket.socket(socket.AF_INET))
attempt("pair", socket.socketpair)
attempt("open what is open", lambda: os.open(sys.argv[1], os.O_RDONLY))
attempt("open it to write", lambda: os.open(f"/proc/self/fd/{read}", os.O_RDWR))
attempt("empty it", lambda: os.open(f"/proc/self/fd/{read}", os.O_RDONLY | os.O_TRUNC))
attempt("memory that is shared without a file", lambda: mmap.mmap(-1, 4096))
attempt("make a file", lambda: os.open(sys.argv[2] + "2", os.O_RDWR | os.O_CREAT))
print(json.dumps([found, held.status, held.landlock]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the jail's Linux file")
def test_its_jail_has_no_socket_and_no_file_but_its_own(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"x")
    command = [sys.executable, "-I", "-c", INSIDE, str(tmp_path / "in"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    found, word, landlock = json.loads(done)
    allowed = dict.fromkeys(("read what is open", "write what is open", "thread"), "ok")
    refused = dict.fromkeys(("unix socket", "inet socket", "pair"), "EPERM")
    files = {"open what is open": "EACCES" if landlock else "ok", "open it to write": "EPERM", "empty it": "EPERM", "make a file": "EPERM"}
    files["memory that is shared without a file"] = "EPERM"
    assert (found, word) == (allowed | refused | files, "confined" if landlock else "unconfined")


#: A worker that foreign weights have taken over.
CROWD = """
import sys, time, _thread
from ndani.convert import worker_main as worker
def taken(task, kernels):
    while True:
        try:
            _thread.start_new_thread(time.sleep, (600,))
        except RuntimeError:
            time.sleep(600)
worker.convert.plan_conversion = taken
worker.main(int(sys.argv[1]), int(sys.argv[2]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only there is a process looked at")
async def test_a_maker_that_starts_threads_without_end_is_ended(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = tmp_path / "taken"
    taken.with_suffix(".py").write_text(CROWD)
    taken.write_text(f"#!/bin/sh\nshift 3\nexec '{sys.executable}' -I '{taken}.py' \"$@\"\n")
    taken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(taken))
    with task(source, tmp_path / "made", "Q8_0") as work, pytest.raises(Failed, match=r"started threads without end, and was ended"):
        async with asyncio.timeout(60), following(Supervisor(True).make, work) as steps:
            async for _ in steps:
                pass
