"""One runner process, as the front sees it: start, verify, watch, probe, stop.

The child process reads commands from one pipe and writes events to another. The command pipe is also its lifeline: the child
exits when the pipe closes. It is started with `subprocess`, not through the event loop: its parent-death signal belongs to the
thread that forks, and it must inherit exactly the descriptors named here, with uvloop as with asyncio's own loop.
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
from pathlib import Path
from typing import TypeVar

import msgspec

from ndani import errors, jail
from ndani.engines import Launch, LaunchOptions, socket_without_template
from ndani.jail import Confinement, watch
from ndani.jail.process import Jailed, Open, Refused, describe_exit, send_command, start_child
from ndani.runtime import hardware, runner_main
from ndani.runtime.egress import Addresses, Outcome
from ndani.runtime.folder import is_private, recreate
from ndani.runtime.probe import create_decoy

#: Messages of a runner that may wait to be read. A correct runner sends one and then waits for a command.
_MAX_PENDING_MESSAGES = 16
#: Seconds between the end of a runner's event pipe or command pipe and SIGKILL.
_KILL_GRACE = 0.5
#: Seconds that a probe of all routes may take; each route has a timeout of two seconds itself.
PROBE_TIMEOUT = 60.0

_E = TypeVar("_E", Jailed, runner_main.Ready)


class Runner:
    """A child process with one loaded model. Create it with `spawn`; `ready` must succeed before other calls."""

    def __init__(self, process: subprocess.Popen[bytes], launch: Launch, commands: int, events: int) -> None:
        self.launch = launch
        self.socket = launch.socket
        self.pid = process.pid
        #: A file that this runner has open like its weights; a probe attacks it (`probe.Targets`).
        self.decoy = Path(launch.socket).with_name("decoy")
        #: Set as soon as the child has exited and is reaped; `returncode` and `cause` tell how.
        self.exited = asyncio.Event()
        self.confinement = Confinement()
        self.load_ns = 0
        self.without_template = False
        self.media_marker = launch.media_marker
        self._process = process
        self._commands: int | None = commands
        #: Its events that nobody has read yet; None at the end.
        self._messages: asyncio.Queue[runner_main.RunnerEvent | None] = asyncio.Queue(_MAX_PENDING_MESSAGES)
        self._probe_lock = asyncio.Lock()
        self._probe_numbers = itertools.count(1)
        self._limit_exceeded = ""
        self._thread_monitor = asyncio.create_task(self._monitor_threads(), name=f"threads of runner {process.pid}")
        self._watcher = asyncio.create_task(self._watch(events), name=f"runner {process.pid}")

    @classmethod
    async def spawn(
        cls, options: LaunchOptions, weights: int, folder: Path, *, adapter: int = -1, projector: int = -1, require_jail: bool = False
    ) -> Runner:
        """Start a child with a new subfolder of `folder` for its socket.

        `weights`, `adapter` and `projector` are descriptors open for reading, -1 for none. The child inherits them, so the caller
        may close them afterwards. Raises LoadFailed when no process can be started.
        """
        socket_folder = folder / secrets.token_hex(4)
        if not is_private(folder):  # a cleanup job has removed it, and another user may have created one with its name
            recreate(folder)
        # llama.cpp treats a name as a Unix socket only when it ends in .sock, and resolves any other name as a host.
        marker = f"<__media_{secrets.token_hex(16)}__>"
        launch = Launch(options, str(socket_folder / "r.sock"), weights, adapter, projector, marker)
        decoy = -1
        try:
            socket_folder.mkdir(mode=0o700)
            decoy = create_decoy(socket_folder / "decoy")
            order = runner_main.RunnerOrder(launch, os.getpid(), require_jail, hardware.detect().available, decoy)
            process, commands, events = start_child("ndani.runtime.runner_main", order, (*launch.descriptors, decoy))
        except OSError as error:
            shutil.rmtree(socket_folder, ignore_errors=True)
            raise _not_started(error, folder) from None
        finally:
            if decoy >= 0:
                os.close(decoy)
        return cls(process, launch, commands, events)

    async def ready(self) -> None:
        """Wait until the jail is verified and the model is ready. There is no limit here: `starting.py` has one.

        Raises LoadFailed, Unconfined or Misconfigured. The child is killed in these cases, and when the wait is cancelled.
        """
        try:
            await self._handshake()
        except BaseException:
            await self.kill()
            raise

    async def probe(self, addresses: Addresses, timeout: float = PROBE_TIMEOUT) -> list[Outcome]:
        """Let the child try every route out (`egress.py`). Raises EngineFailed when it has exited or sends another event."""
        async with self._probe_lock:
            number = next(self._probe_numbers)
            self._send(runner_main.Probe(addresses, number))
            try:
                async with asyncio.timeout(timeout):
                    event = await self._messages.get()
                    while isinstance(event, runner_main.Probed) and event.number != number:  # the answer to a cancelled probe
                        event = await self._messages.get()
            except TimeoutError:
                await self.kill()
                raise errors.EngineFailed(f"the runner said nothing for {timeout:g} seconds while it was probed, and was ended") from None
        if not isinstance(event, runner_main.Probed):
            if event is not None:  # only a compromised runner sends another event here
                await self.kill()
            self._signal_exit()  # again, for the next probe
            raise errors.EngineFailed(f"the runner went away while it was probed: {self.cause}")
        return event.outcomes

    async def stop(self) -> None:
        """Stop the child: close its command pipe, then SIGKILL after a grace period. Reaps it and removes its socket. Idempotent."""
        self._close_commands()
        try:
            async with asyncio.timeout(_KILL_GRACE):
                await self.exited.wait()
        except TimeoutError:
            await self.kill()
        except BaseException:
            self._process.kill()
            raise

    async def kill(self) -> None:
        """Kill the child at once."""
        self._process.kill()
        await self.exited.wait()

    @property
    def returncode(self) -> int | None:
        """None while it runs, then its exit code, or the negative number of a signal."""
        return self._process.returncode

    @property
    def cause(self) -> str:
        """How it exited, as text for a log line or an error message."""
        code = self.returncode
        if code is None:
            return "it is running"
        if self._limit_exceeded:
            return self._limit_exceeded
        if code == -signal.SIGKILL:
            return "it was killed, which is what a system short of memory does"
        return f"it {describe_exit(code)}"

    async def _handshake(self) -> None:
        jailed = await self._expect(Jailed)
        # This reads /proc on the event loop's thread: it takes microseconds and never waits for a disk.
        self.confinement = jail.verify(self.pid, jailed.confinement)
        self._send(Open())
        ready = await self._expect(runner_main.Ready)
        self.load_ns, self.without_template = ready.load_ns, ready.without_template
        if ready.without_template:  # the path is not in the message: the front connects to no path that a runner names
            self.socket = socket_without_template(self.socket)

    async def _expect(self, event_type: type[_E]) -> _E:
        event = await self._messages.get()
        if isinstance(event, event_type):
            return event
        if isinstance(event, Refused):
            raise errors.error_from_child(event.code, event.sentence, errors.LoadFailed)
        await self.kill()
        raise errors.LoadFailed(f"the engine stopped while it loaded the model: {self.cause}")

    def _send(self, command: msgspec.Struct) -> None:
        if self._commands is not None:
            send_command(self._process, self._commands, command)

    def _close_commands(self) -> None:
        if self._commands is not None:
            os.close(self._commands)
            self._commands = None

    async def _monitor_threads(self) -> None:
        self._limit_exceeded = await watch.enforce_limits(
            self._process, runner_main.max_threads(self.launch.options), Path(self.launch.socket).parent
        )

    async def _watch(self, events: int) -> None:
        """Read the child's events. When its pipe closes, make sure that it exits, reap it and remove its folder."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(events, "rb", 0))
        decoder = msgspec.json.Decoder(runner_main.RunnerEvent)
        try:
            while line := await reader.readline():
                self._messages.put_nowait(decoder.decode(line))
        except (ValueError, msgspec.DecodeError, RecursionError, asyncio.QueueFull):  # only a compromised runner sends this
            self._process.kill()
        finally:
            transport.close()
            self._close_commands()
            await self._reap()
            self._thread_monitor.cancel()

    async def _reap(self) -> None:
        delay, waited_seconds = 0.001, 0.0
        while self._process.poll() is None:
            await asyncio.sleep(delay)
            waited_seconds += delay
            delay = min(delay * 2, 0.05)
            if waited_seconds > _KILL_GRACE:
                self._process.kill()
        # A compromised runner may have created any number of sockets there: remove them in a thread, not on the event loop.
        await asyncio.to_thread(shutil.rmtree, Path(self.socket).parent, ignore_errors=True)
        self._signal_exit()
        self.exited.set()

    def _signal_exit(self) -> None:
        """Tell the next reader of messages that the child has exited."""
        if self._messages.full():
            self._messages.get_nowait()
        self._messages.put_nowait(None)


def _not_started(error: OSError, folder: Path) -> errors.LoadFailed:
    """The error for a runner that cannot start: its folder cannot be written to, or the system starts no process."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return errors.LoadFailed(f"the folder for sockets {folder} cannot be written to ({error.strerror}); make room there and try again")
    return errors.LoadFailed(f"no process could be started for the model ({error.strerror}); close something and try again")
