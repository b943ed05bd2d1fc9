"""Starting a server where none runs, for the commands that need one: detached, with a log of its own, leaving when idle.

Only for a loopback address, and on none but that: a server that others can reach is started by hand. Of several command
lines at once exactly one starts a server (they take turns at a lock); the others use it. What a server is, is not known
here: it is started as `ndani serve` and asked over HTTP.
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

_IDLE_S = 600.0
_PATIENCE_S = 120.0  # a slow and busy machine takes most of a minute; a child that dies is seen at once
_RIVAL_S = 0.5  # a rival has bound the port that our child found taken, and listens a moment later
_LOG_LIMIT = 4_000_000
_LOCKLESS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # what the system says where a disk has no locks


def connect_or_start(settings: Settings, *, quiet: bool = False) -> ServerClient:
    """A client whose server answers; starts one in the background where the address is loopback and nobody is there.

    What was started is said on stderr unless it is to be `quiet`.
    Raises NoServer for another machine's silence, Failed with the server's own last sentence when it would not start.
    """
    client = ServerClient(settings)
    if client.alive():
        return client
    if not client.local:
        raise NoServer(client.absent)
    folder = home() / "logs"
    make_home()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _turn(folder / f"start-{settings.address[1]}.lock"):
            # Whoever had the lock before has started it.
            if not client.alive():
                begun = _start(client, settings, folder / "server.log")
                if begun and not quiet:
                    emit(begun, err=True)
    except OSError as error:
        raise Failed(f"no server runs, and one could not be started: {error.strerror} ({error.filename})") from None
    return client


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows: the port itself decides who stays, as on a disk without locks
        yield
        return
    with path.open("a") as lock:
        path.chmod(0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _LOCKLESS:
                raise
        yield  # closing the file gives the lock back, also when this process is killed


def _start(client: ServerClient, settings: Settings, log: Path) -> str:
    """Start a server and wait for it; what to say of it, or nothing where somebody else's was faster."""
    # A wildcard address would let in everybody who reaches this machine, and nobody has asked for that by `ndani run`.
    environment = {**os.environ, "NDANI_HOST": client.url}
    idle = settings.idle_exit
    if settings.value_sources.get("idle_exit", "default") == "default":
        idle = _IDLE_S
        environment["NDANI_IDLE_EXIT"] = "10m"
    if log.exists() and log.stat().st_size > _LOG_LIMIT:
        log.replace(log.with_suffix(".log.1"))
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as out:
        begin = out.seek(0, os.SEEK_END)
        child = subprocess.Popen(
            # -P: the folder that the user happens to stand in is no place to import from
            [sys.executable, "-P", "-m", "ndani", "serve"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=environment,
            start_new_session=True,
        )
    if not _await(client, child, log, begin):
        return ""
    alone = (
        f", for this machine alone (`ndani serve` listens on {settings.address[0]})" if settings.client_address != settings.address else ""
    )
    leaves = f"; it stops after {_spoken(idle)}" if idle > 0 else "; `ndani serve` would have run it here"
    return f"started ndani in the background at {client.url}{alone}{leaves}"


def _await(client: ServerClient, child: subprocess.Popen[bytes], log: Path, begin: int) -> bool:
    """Wait until a server answers; True when it is our child. Raises Failed when it died and nobody else answers."""
    deadline = time.monotonic() + _PATIENCE_S
    died = False
    while time.monotonic() < deadline:
        ended = child.poll() is not None
        if client.alive():
            return not ended
        if ended and not died:
            died, deadline = True, time.monotonic() + _RIVAL_S
        time.sleep(0.02)
    if died:
        raise Failed(_last_sentence(log, begin) or f"the server ended as soon as it was started; its log is {log}")
    raise Failed(f"the server was started but does not answer after {_PATIENCE_S:.0f} seconds; its log is {log}")


def _last_sentence(log: Path, begin: int) -> str:
    with log.open("rb") as text:
        text.seek(begin)
        lines = text.read().decode("utf-8", "replace").splitlines()
    errors = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
    return errors[-1] if errors else ""


def _spoken(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.0f} idle minutes" if minutes >= 2 and minutes == int(minutes) else f"{duration(int(seconds * 1e9))} of idleness"
