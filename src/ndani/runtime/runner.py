"""One runner process, as the front sees it: start, verify, watch, ask, end.

The child is told what to run over one pipe and answers over another; the first is also its lifeline. It is started
with `subprocess` itself, not through the event loop: its death signal belongs to the thread that forks, and what it
inherits must be exactly what is named here, under uvloop as under plain asyncio.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec

from ndani import errors
from ndani.engines import Launch
from ndani.runtime import child, jail
from ndani.runtime.jail import Confinement
from ndani.runtime.routes import Addresses, Outcome

#: What a runner gets of the front's environment: how libraries are found and how many threads they start. No secrets.
_PASSED = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TZ")
_PASSED_PREFIXES = ("OMP_", "GOMP_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "GGML_", "KMP_")
_ALWAYS = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
#: How long a computing thread spins for its fellows before it sleeps. Where a core has something else to do as well,
#: libgomp's own 300,000 turns let threads spin away each other's time: two answers at once on two cores made 7 tokens
#: a second each, and 40 with 5,000 turns, which cost nothing where nothing else runs. The user's own value counts.
_DEFAULTS = {"GOMP_SPINCOUNT": "5000"}
#: Seconds between the end of a runner's event pipe, or its lifeline, and SIGKILL.
_GRACE = 0.5

_E = TypeVar("_E", child.Jailed, child.Ready)


class Runner:
    """A child process with one loaded model. Made by `spawn`; `ready` must succeed before anything else is asked."""

    def __init__(self, process: subprocess.Popen[bytes], launch: Launch, commands: int, events: int) -> None:
        self.launch = launch
        self.socket = launch.socket
        self.pid = process.pid
        #: Set as soon as the child is gone and reaped; `returncode` and `cause` say how.
        self.exited = asyncio.Event()
        self.confinement = Confinement()
        self.load_ns = 0
        self._process = process
        self._commands: int | None = commands
        self._said: asyncio.Queue[child.Event | None] = asyncio.Queue()
        self._asking = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._watcher = asyncio.create_task(self._watch(events), name=f"runner {process.pid}")

    @classmethod
    async def spawn(cls, launch: Launch, weights: int | None, folder: Path, *, require_jail: bool = False) -> Runner:
        """Start a child in a folder of its own under `folder`; `launch.socket` and `launch.weights` are filled in here.

        `weights` is a descriptor of ours, open for reading, or None, and `launch.adapter` one or -1; the child inherits
        them, we may close ours after.
        Raises LoadFailed when no process can be started.
        """
        place = folder / secrets.token_hex(4)
        place.mkdir(mode=0o700)
        # llama.cpp takes a name for a Unix socket only when it ends in .sock, and looks up anything else as a host.
        launch = replace(launch, socket=str(place / "r.sock"), weights=-1 if weights is None else weights)
        try:
            process, commands, events = start("ndani.runtime.child", tuple(held for held in (launch.weights, launch.adapter) if held >= 0))
        except OSError as error:
            place.rmdir()
            sentence = f"no process could be started for the model ({error.strerror}); close something and try again"
            raise errors.LoadFailed(sentence) from None
        runner = cls(process, launch, commands, events)
        runner._send(msgspec.json.encode(child.Order(launch, os.getpid(), require_jail)))
        return runner

    async def ready(self, timeout: float | None = None) -> None:
        """Wait until the jail was verified and the model answers; `timeout` in seconds, None or 0 for no limit.

        Raises LoadFailed, Unconfined or Misconfigured; the child is gone then, and when the wait is cancelled.
        """
        try:
            async with asyncio.timeout(timeout if timeout and timeout > 0 else None):
                await self._begin()
        except TimeoutError:
            await self.kill()
            raise errors.LoadFailed(
                f"the model did not load within {timeout:g} seconds; raise OLLAMA_LOAD_TIMEOUT or use a smaller model"
            ) from None
        except BaseException:
            await self.kill()
            raise

    async def probe(self, addresses: Addresses) -> list[Outcome]:
        """Have the child try every way out (`routes.py`). Raises EngineFailed when it is gone."""
        async with self._asking:
            number = next(self._numbers)
            self._send(msgspec.json.encode(child.Probe(addresses, number)))
            said = await self._said.get()
            while isinstance(said, child.Probed) and said.number != number:  # the answer to a probe that was cancelled
                said = await self._said.get()
        if not isinstance(said, child.Probed):
            self._said.put_nowait(None)
            raise errors.EngineFailed(f"the runner went away while it was probed: {self.cause}")
        return said.outcomes

    async def stop(self) -> None:
        """End the child: cut the lifeline, then SIGKILL after a short grace. Reaped, its socket gone; may be called again."""
        self._cut()
        try:
            async with asyncio.timeout(_GRACE):
                await self.exited.wait()
        except TimeoutError:
            await self.kill()
        except BaseException:
            self._process.kill()
            raise

    async def kill(self) -> None:
        """End the child now, whatever it does."""
        self._process.kill()
        await self.exited.wait()

    @property
    def returncode(self) -> int | None:
        """None while it lives, then its exit code, or a signal's number below zero."""
        return self._process.returncode

    @property
    def cause(self) -> str:
        """How it ended, in a few words for a log or a sentence."""
        code = self.returncode
        if code is None:
            return "it is running"
        if code == -signal.SIGKILL:
            return "it was killed, which is what a system short of memory does"
        if code < 0:
            return f"it crashed ({signal.Signals(-code).name})"
        return f"it ended by itself (exit code {code})"

    async def _begin(self) -> None:
        jailed = await self._hear(child.Jailed)
        # The folder of /proc is read on this thread: a few microseconds, never a disk.
        self.confinement = jail.verify(self.pid, jailed.confinement)
        self._send(msgspec.json.encode(child.Open()))
        self.load_ns = (await self._hear(child.Ready)).load_ns

    async def _hear(self, kind: type[_E]) -> _E:
        said = await self._said.get()
        if isinstance(said, kind):
            return said
        if isinstance(said, child.Refused):
            raise errors.tree().get(said.code, errors.LoadFailed)(said.sentence)
        await self.kill()
        raise errors.LoadFailed(f"the engine stopped while it loaded the model: {self.cause}")

    def _send(self, line: bytes) -> None:
        if self._commands is not None:
            with contextlib.suppress(BrokenPipeError):  # it is gone, which whoever waits for an answer hears
                os.write(self._commands, line + b"\n")

    def _cut(self) -> None:
        if self._commands is not None:
            os.close(self._commands)
            self._commands = None

    async def _watch(self, events: int) -> None:
        """Read what the child says; when its pipe ends the child is dead, or is made so; then reap and clear away."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(events, "rb", 0))
        decoder = msgspec.json.Decoder(child.Event)
        try:
            while line := await reader.readline():
                self._said.put_nowait(decoder.decode(line))
        except (ValueError, msgspec.DecodeError):  # a line that no runner of ours writes: it is not ours any more
            self._process.kill()
        finally:
            transport.close()
            self._cut()
            await self._reap()

    async def _reap(self) -> None:
        pause, waited = 0.001, 0.0
        while self._process.poll() is None:
            await asyncio.sleep(pause)
            waited += pause
            pause = min(pause * 2, 0.05)
            if waited > _GRACE:
                self._process.kill()
        shutil.rmtree(Path(self.socket).parent, ignore_errors=True)
        self._said.put_nowait(None)
        self.exited.set()


def start(module: str, inherited: tuple[int, ...] = ()) -> tuple[subprocess.Popen[bytes], int, int]:
    """Start a child of ours in a module, with two pipes and these descriptors: the process, its commands, its events.

    The two descriptors are ours to close; the commands' end is the child's lifeline. Raises OSError when there is no process to be had.
    """
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    try:
        # Blocks for the milliseconds of a vfork; on a thread of a pool the child would die with that thread.
        process = subprocess.Popen(
            [sys.executable, "-I", "-m", module, str(theirs_in), str(theirs_out)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs_in, theirs_out, *inherited),
            env=environment(os.environ),
            cwd="/" if os.name == "posix" else None,
            start_new_session=True,  # a terminal's Ctrl-C is for the front
        )
    except OSError:
        os.close(ours_out)
        os.close(ours_in)
        raise
    finally:
        os.close(theirs_in)
        os.close(theirs_out)
    return process, ours_out, ours_in


def environment(outer: Mapping[str, str]) -> dict[str, str]:
    """The few variables a runner needs of ours, and the switches that keep libraries from reporting home."""
    passed = {name: value for name, value in outer.items() if name in _PASSED or name.startswith(_PASSED_PREFIXES)}
    return _DEFAULTS | passed | _ALWAYS
