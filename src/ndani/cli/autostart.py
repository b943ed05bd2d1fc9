"""Starting a background server for the commands that need one: detached, with its own log file, and it exits when idle.

A server is started only for a loopback address and listens only there; the user starts a server that others can reach.
When several command lines start at once, a lock lets exactly one of them start the server, and the others use it. The
server is started as the program `ndani serve` and is called over HTTP.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ndani.cli.client import ServerClient
from ndani.cli.formatting import duration
from ndani.cli.output import emit
from ndani.errors import Failed, NoServer
from ndani.settings import Settings, home, make_home

_IDLE_EXIT_S = 600.0
_START_TIMEOUT_S = 120.0  # a slow and busy machine needs most of a minute; a child that exits is noticed at once
_PORT_TAKEN_GRACE_S = 0.5  # another process may have bound the port just before our child, and answers a moment later
_MAX_LOG_BYTES = 4_000_000
_LOCKS_UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # errors of a file system without locks


def connect_or_start(settings: Settings, *, quiet: bool = False, as_service: bool = False) -> ServerClient:
    """Return a client whose server answers; starts a server in the background when the address is loopback and none runs.

    Prints on stderr what was started unless `quiet`. `as_service` starts it as Foundry Local's service: it does not stop when it is
    idle, and has that service's errors. Raises NoServer when a server on another machine does not answer, and Failed with the last
    error of a server that could not start.
    """
    client = ServerClient(settings)
    if client.is_alive():
        return client
    if not client.is_local:
        raise NoServer(client.absent_message)
    folder = home() / "logs"
    make_home()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _start_lock(folder / f"start-{settings.address[1]}.lock"):
            # Another process may have started a server while this one waited for the lock.
            if not client.is_alive():
                message = _start(client, settings, folder / "server.log", as_service)
                if message and not quiet:
                    emit(message, err=True)
    except OSError as error:
        raise Failed(f"no server runs, and one could not be started: {error.strerror} ({error.filename})") from None
    return client


@contextlib.contextmanager
def _start_lock(path: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows: only one server can bind the port; the same holds on a disk without locks
        yield
        return
    with path.open("a") as lock:
        path.chmod(0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _LOCKS_UNSUPPORTED:
                raise
        yield  # closing the file releases the lock, also when this process is killed


def _start(client: ServerClient, settings: Settings, log: Path, as_service: bool) -> str:
    """Start a server and wait for it. Returns the message for the user, empty when the server of another process answers."""
    # A wildcard address would admit other machines, which a user of `ndani run` did not request.
    environment = {**os.environ, "NDANI_HOST": client.url}
    if settings.value_sources.get("allow_shutdown", "default") == "default":
        environment["NDANI_ALLOW_SHUTDOWN"] = "1"  # nobody has it in a terminal of theirs, to stop it there
    idle_seconds = settings.idle_exit
    if as_service and settings.value_sources.get("foundry_errors", "default") == "default":
        environment["NDANI_FOUNDRY_ERRORS"] = "1"
    if not as_service and settings.value_sources.get("idle_exit", "default") == "default":
        idle_seconds = _IDLE_EXIT_S
        environment["NDANI_IDLE_EXIT"] = "10m"
    if log.exists() and log.stat().st_size > _MAX_LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as out:
        log_offset = out.seek(0, os.SEEK_END)
        child = subprocess.Popen(
            # -P: do not import modules from the current folder
            [sys.executable, "-P", "-m", "ndani", "serve"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=environment,
            start_new_session=True,
        )
    if not _wait_until_alive(client, child, log, log_offset):
        return ""
    loopback_note = (
        f", for this machine alone (`ndani serve` listens on {settings.address[0]})" if settings.client_address != settings.address else ""
    )
    idle_note = f"; it stops after {_format_idle(idle_seconds)}" if idle_seconds > 0 else "; POST /shutdown stops it"
    return f"started ndani in the background at {client.url}{loopback_note}{idle_note}"


def _wait_until_alive(client: ServerClient, child: subprocess.Popen[bytes], log: Path, log_offset: int) -> bool:
    """Wait until a server answers; True when it is our child. Raises Failed when the child exits and no other server answers."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    exit_seen = False
    while time.monotonic() < deadline:
        child_exited = child.poll() is not None
        if client.is_alive():
            return not child_exited
        if child_exited and not exit_seen:
            exit_seen, deadline = True, time.monotonic() + _PORT_TAKEN_GRACE_S
        time.sleep(0.02)
    if exit_seen:
        raise Failed(_last_error(log, log_offset) or f"the server ended as soon as it was started; its log is {log}")
    raise Failed(f"the server was started but does not answer after {_START_TIMEOUT_S:.0f} seconds; its log is {log}")


def _last_error(log: Path, log_offset: int) -> str:
    with log.open("rb") as text:
        text.seek(log_offset)
        lines = text.read().decode("utf-8", "replace").splitlines()
    errors = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
    return errors[-1] if errors else ""


def _format_idle(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.0f} idle minutes" if minutes >= 2 and minutes == int(minutes) else f"{duration(int(seconds * 1e9))} of idleness"
