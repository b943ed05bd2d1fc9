"""`ndani serve` as a child process, for the tests of the command line: an empty home, a free port, a store."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from golden_cli import run
from ndani.cli.client import ServerClient
from ndani.settings import load
from server import PATIENCE, until

NDANI = [sys.executable, "-m", "ndani"]


def free_port() -> int:
    """A port on loopback on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def surroundings(home: Path, port: int, **more: str) -> dict[str, str]:
    """The environment of a user with an empty home, without this shell's settings of ndani."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NDANI_", "OLLAMA_"))}
    return {**kept, "HOME": str(home), "NDANI_MODELS": str(home / "models"), "NDANI_HOST": f"127.0.0.1:{port}", **more}


@contextlib.contextmanager
def serving(home: Path, port: int, *, store: Path | None = None, **more: str) -> Iterator[dict[str, str]]:
    """A server on a port with its own home; yields the environment in which `ndani` finds it."""
    environment = surroundings(home, port, **more)
    if store:
        shutil.copytree(store, home / "models", copy_function=_link, dirs_exist_ok=True)
    with (home / "serve.log").open("wb") as log, subprocess.Popen([*NDANI, "serve"], env=environment, stdout=log, stderr=log) as server:
        try:
            client = ServerClient(load(environment))

            def answers() -> bool:
                assert server.poll() is None, (home / "serve.log").read_text()
                return client.is_alive(PATIENCE)

            until(answers, "the server answers")
            yield environment
        finally:
            server.terminate()
            server.wait(PATIENCE)


def _link(source: str, target: str) -> None:
    # Blobs never change, so a hard link is as good as a copy.
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def weights_store() -> Path:
    """A store with smollm2:135m, fetched once and kept between runs in NDANI_TEST_MODELS."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    store = Path(os.environ.get("NDANI_TEST_MODELS") or cache / "ndani-tests" / "models")
    if not list(store.glob("manifests/*/*/smollm2/135m")):
        home = store.parent / "home"
        home.mkdir(parents=True, exist_ok=True)
        with serving(home, free_port(), NDANI_MODELS=str(store), **_pip_settings()) as environment:
            done = run(("pull", "smollm2:135m"), environment, timeout=600)
        assert done.exit == 0, done.stderr
    return store


def _pip_settings() -> dict[str, str]:
    # pip's settings in the user's home name the index, and the test's server has another home.
    places = [Path.home() / place for place in (".config/pip/pip.conf", ".pip/pip.conf")]
    found = [place for place in places if place.exists()]
    return {"PIP_CONFIG_FILE": str(found[0])} if found and "PIP_CONFIG_FILE" not in os.environ else {}


def listeners(port: int) -> list[int]:
    """Processes that listen on a port."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)):
            return []  # refused: nothing listens
    found, closed = [], []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            try:
                if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in process.net_connections("tcp")):
                    found.append(process.pid)
            except psutil.AccessDenied:
                if process.uids().real == os.getuid() and process.cmdline()[-3:] == ["-m", "ndani", "serve"]:
                    closed.append(process)
    return found or [process.pid for process in closed if _listens(process, port)]


def _listens(process: psutil.Process, port: int) -> bool:
    """Whether this server, whose sockets an ordinary user may not list, listens on a port: suspended, it does not answer."""

    def answers() -> bool:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=2)) as line, contextlib.suppress(OSError):
            line.request("GET", "/")
            return line.getresponse().status > 0
        return False

    if not answers():
        return False
    process.suspend()
    try:
        return not answers()
    finally:
        process.resume()


def end_server_on(port: int) -> None:
    """End the ndani server that a command has started in the background on a port; no other process."""
    for pid in listeners(port):
        server = psutil.Process(pid)
        assert "ndani" in " ".join(server.cmdline())
        server.terminate()
        server.wait(PATIENCE)
