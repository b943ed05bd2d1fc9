"""One runner process, as the front sees it: start, verify, watch, ask, end.

The child is told what to run over one pipe and answers over another; the first is also its lifeline. It is started
with `subprocess` itself, not through the event loop: its death signal belongs to the thread that forks, and what it
inherits must be exactly what is named here, under uvloop as under plain asyncio.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import secrets
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec

from ndani import errors, jail
from ndani.engines import Launch, bare_socket
from ndani.jail import Confinement, threads
from ndani.jail.process import Jailed, Open, Refused, describe_exit, send_command, start_child
from ndani.runtime import child, hardware
from ndani.runtime.folder import is_ours, remake
from ndani.runtime.probe import lay_spare
from ndani.runtime.routes import Addresses, Outcome

#: Events of a runner that wait to be heard; it says one, and then is asked before it says another.
_MOST_SAID = 16
#: Seconds between the end of a runner's event pipe, or its lifeline, and SIGKILL.
_GRACE = 0.5
#: Seconds that a probe of every route may take; each gives up by itself after two.
PROBE = 60.0

_E = TypeVar("_E", Jailed, child.Ready)


class Runner:
    """A child process with one loaded model. Made by `spawn`; `ready` must succeed before anything else is asked."""

    def __init__(self, process: subprocess.Popen[bytes], launch: Launch, commands: int, events: int) -> None:
        self.launch = launch
        self.socket = launch.socket
        self.pid = process.pid
        #: A file that this runner holds as it holds its weights, for a probe to harm (`probe.Targets`).
        self.spare = Path(launch.socket).with_name("spare")
        #: Set as soon as the child is gone and reaped; `returncode` and `cause` say how.
        self.exited = asyncio.Event()
        self.confinement = Confinement()
        self.load_ns = 0
        self._process = process
        self._commands: int | None = commands
        self._said: asyncio.Queue[child.RunnerEvent | None] = asyncio.Queue(_MOST_SAID)
        self._asking = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._overstepped = ""
        self._counter = asyncio.create_task(self._count(), name=f"threads of runner {process.pid}")
        self._watcher = asyncio.create_task(self._watch(events), name=f"runner {process.pid}")

    @classmethod
    async def spawn(cls, launch: Launch, weights: int | None, folder: Path, *, require_jail: bool = False) -> Runner:
        """Start a child in a folder of its own under `folder`; `launch.socket` and `launch.weights` are filled in here.

        `weights` is a descriptor of ours, open for reading, or None, and `launch.adapter` one or -1; the child inherits
        them, we may close ours after.
        Raises LoadFailed when no process can be started.
        """
        place = folder / secrets.token_hex(4)
        if not is_ours(folder):  # somebody who tidies up has removed it, and somebody else may have taken its name
            remake(folder)
        # llama.cpp takes a name for a Unix socket only when it ends in .sock, and looks up anything else as a host.
        launch = replace(launch, socket=str(place / "r.sock"), weights=-1 if weights is None else weights)
        spare = -1
        try:
            place.mkdir(mode=0o700)
            spare = lay_spare(place / "spare")
            order = child.RunnerOrder(launch, os.getpid(), require_jail, hardware.detect().available, spare)
            held = tuple(descriptor for descriptor in (launch.weights, launch.adapter, spare) if descriptor >= 0)
            process, commands, events = start_child("ndani.runtime.child", order, held)
        except OSError as error:
            shutil.rmtree(place, ignore_errors=True)
            raise _not_started(error, folder) from None
        finally:
            if spare >= 0:
                os.close(spare)
        return cls(process, launch, commands, events)

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

    async def probe(self, addresses: Addresses, timeout: float = PROBE) -> list[Outcome]:
        """Have the child try every way out (`routes.py`). Raises EngineFailed when it is gone; one that says anything else is ended."""
        async with self._asking:
            number = next(self._numbers)
            self._send(child.Probe(addresses, number))
            try:
                async with asyncio.timeout(timeout):
                    said = await self._said.get()
                    while isinstance(said, child.Probed) and said.number != number:  # the answer to a probe that was cancelled
                        said = await self._said.get()
            except TimeoutError:
                await self.kill()
                raise errors.EngineFailed(f"the runner said nothing for {timeout:g} seconds while it was probed, and was ended") from None
        if not isinstance(said, child.Probed):
            if said is not None:  # none of ours says anything else here: it is not ours any more
                await self.kill()
            self._end_of_words()  # for the next probe
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
        if self._overstepped:
            return self._overstepped
        if code == -signal.SIGKILL:
            return "it was killed, which is what a system short of memory does"
        return f"it {describe_exit(code)}"

    async def _begin(self) -> None:
        jailed = await self._hear(Jailed)
        # The folder of /proc is read on this thread: a few microseconds, never a disk.
        self.confinement = jail.verify(self.pid, jailed.confinement)
        self._send(Open())
        ready = await self._hear(child.Ready)
        self.load_ns = ready.load_ns
        if ready.bare:
            self.socket = bare_socket(self.socket)

    async def _hear(self, kind: type[_E]) -> _E:
        said = await self._said.get()
        if isinstance(said, kind):
            return said
        if isinstance(said, Refused):
            raise errors.error_from_child(said.code, said.sentence, errors.LoadFailed)
        await self.kill()
        raise errors.LoadFailed(f"the engine stopped while it loaded the model: {self.cause}")

    def _send(self, line: msgspec.Struct) -> None:
        if self._commands is not None:
            send_command(self._process, self._commands, line)

    def _cut(self) -> None:
        if self._commands is not None:
            os.close(self._commands)
            self._commands = None

    async def _count(self) -> None:
        self._overstepped = await threads.enforce_limits(self._process, child.most_threads(self.launch), Path(self.launch.socket).parent)

    async def _watch(self, events: int) -> None:
        """Read what the child says; when its pipe ends the child is dead, or is made so; then reap and clear away."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(events, "rb", 0))
        decoder = msgspec.json.Decoder(child.RunnerEvent)
        try:
            while line := await reader.readline():
                self._said.put_nowait(decoder.decode(line))
        except (ValueError, msgspec.DecodeError, RecursionError, asyncio.QueueFull):  # what no runner of ours says: it is not ours any more
            self._process.kill()
        finally:
            transport.close()
            self._cut()
            await self._reap()
            self._counter.cancel()

    async def _reap(self) -> None:
        pause, waited = 0.001, 0.0
        while self._process.poll() is None:
            await asyncio.sleep(pause)
            waited += pause
            pause = min(pause * 2, 0.05)
            if waited > _GRACE:
                self._process.kill()
        # A runner that was taken over may have made names of sockets without end: that many are not removed on the loop.
        await asyncio.to_thread(shutil.rmtree, Path(self.socket).parent, ignore_errors=True)
        self._end_of_words()
        self.exited.set()

    def _end_of_words(self) -> None:
        """Whoever listens from here on hears that it is gone."""
        if self._said.full():
            self._said.get_nowait()
        self._said.put_nowait(None)


def _not_started(error: OSError, folder: Path) -> errors.LoadFailed:
    """Why there is no runner: the folder for its socket has no room for it, or the system no process."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return errors.LoadFailed(f"the folder for sockets {folder} cannot be written to ({error.strerror}); make room there and try again")
    return errors.LoadFailed(f"no process could be started for the model ({error.strerror}); close something and try again")
