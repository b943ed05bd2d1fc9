"""A real `ndani serve` as a child process, for tests over HTTP: its own home, its own folder for sockets, a free port.

Tests can send it requests, inspect it (runners, slots, memory) and kill it. Tests of the command line use `cli_server.py`.

How long a test waits is decided here too: see `until` and `stretched`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

from described import compare
from ndani.store.layout import digest_of

HOST = "127.0.0.1"


#: Seconds of a processor that a desk takes for the work in `slowness`.
SECONDS_OF_WORK = 0.04
#: Seconds after which a thing that should happen, whenever it may be, is taken not to happen.
PATIENCE = 120.0
#: How many times a bound on a desk at rest is granted even there: one late process is not a broken promise.
LEEWAY = 3


def slowness() -> float:
    """How many times longer things take just now than on a desk at rest; at least 1.

    It is how slow the processors are, times how many want each of them: by the wait of this very work, or by the
    kernel's count of the last minute.
    """
    began, used = time.perf_counter(), time.thread_time()
    sum(number for number in range(1_000_000))
    took, used = time.perf_counter() - began, time.thread_time() - used
    return max(1.0, used / SECONDS_OF_WORK) * max(1.0, took / used, os.getloadavg()[0] / (os.cpu_count() or 1))


def stretched(at_rest: float) -> float:
    """Seconds to wait on this machine, as slow as it is now, for what takes at most `at_rest` seconds on a desk at rest."""
    return LEEWAY * at_rest * slowness()


def until(condition: Callable[[], Any], what: str, *, at_rest: float = PATIENCE, pause: float = 0.01) -> Any:
    """Wait until a condition holds and return its value; fail, saying `what`, when it does not hold in time.

    A test of a promise in seconds gives the promise as `at_rest`: it holds on a desk at rest, and is `stretched` to this
    machine. What only has to happen at some time needs no bound. `pause` is the time between two looks.
    """
    began = time.monotonic()
    while not (value := condition()):
        waited = time.monotonic() - began
        # The machine is measured only when it matters: measuring it takes a processor.
        assert waited < at_rest or waited < stretched(at_rest), f"not within {waited:.1f} s ({at_rest} s at rest): {what}"
        time.sleep(pause)
    return value


class UnixHTTP(http.client.HTTPConnection):
    """HTTP over a runner's socket."""

    def __init__(self, path: str) -> None:
        super().__init__("runner", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Server:
    """One server process. Use `serving`, which ends it."""

    #: The arguments of the Python interpreter.
    program: tuple[str, ...] = ("-m", "ndani", "serve")

    def __init__(self, folder: Path, models: Path, environment: dict[str, str]) -> None:
        self.models = models
        self.home = folder / "home"
        self.home.mkdir(parents=True, exist_ok=True)
        self.log_path = folder / f"serve-{time.monotonic_ns()}.log"
        self._lines: list[socket.socket] = []
        self.sockets = Path(tempfile.mkdtemp(prefix="nd-"))  # short: the path of a Unix socket is at most 107 bytes long
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("NDANI_", "OLLAMA_", "XDG_"))}
        own = {"HOME": str(self.home), "NDANI_MODELS": str(models), "NDANI_HOST": f"{HOST}:0", "TMPDIR": str(self.sockets)}
        self.environment = {**kept, **own, **environment}
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.program], env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self.port = until(self._listening, "the server listens")
        except BaseException:
            self.kill()
            raise
        self.url = f"http://{HOST}:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=300, trust_env=False, event_hooks={"response": [compare]})
        assert self.http.get("/api/version").status_code == 200

    def _listening(self) -> int:
        assert self.process.poll() is None, self.log
        found = self.log.partition(f"listening on {HOST}:")[2].partition(" ")
        return int(found[0]) if found[1] else 0

    @property
    def log(self) -> str:
        """What the server has written to stdout and stderr."""
        return self.log_path.read_text(errors="replace")

    @property
    def pid(self) -> int:
        return self.process.pid

    def post(self, path: str, body: object = None, **more: Any) -> httpx.Response:
        """Send one request with a JSON body; the whole response."""
        return self.http.post(path, json=body, **more)

    def lines(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Send a request whose response is streamed; its lines."""
        answer = self.post(path, body)
        assert answer.status_code == 200, answer.text
        return [json.loads(line) for line in answer.text.splitlines()]

    def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request with `stream` false; its one object."""
        answer = self.post(path, {**body, "stream": False})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def refusal(self, path: str, body: Any) -> tuple[int, str]:
        """Send a request that is refused; the status and the sentence, which is all that the response holds."""
        answer = self.post(path, body)
        assert answer.headers["content-type"].startswith("application/json"), answer.text
        assert list(answer.json()) == ["error"], answer.text
        return answer.status_code, answer.json()["error"]

    def rendered(self, path: str, **body: Any) -> str:
        """The prompt that the engine would get for a request."""
        answer = self.post(path, body | {"_debug_render_only": True})
        assert answer.status_code == 200, answer.text
        line = answer.json()
        assert line["done"] is False
        assert line["model"] == body["model"]
        return str(line["_debug_info"]["rendered_template"])

    def upload(self, content: bytes) -> str:
        """Send a blob, which may be there already; its digest."""
        digest = digest_of(content)
        assert self.http.post(f"/api/blobs/{digest}", content=content).status_code in (200, 201)
        return digest

    @contextlib.contextmanager
    def streaming(self, path: str, body: dict[str, Any]) -> Iterator[Iterator[dict[str, Any]]]:
        """Send a request and read its stream line by line; leaving the block closes the connection."""
        with self.http.stream("POST", path, json=body) as answer:
            assert answer.status_code == 200
            yield (json.loads(line) for line in answer.iter_lines())

    def connect(self) -> socket.socket:
        """A TCP connection to the server, closed with the server at the latest."""
        line = socket.create_connection((HOST, self.port), timeout=120)
        self._lines.append(line)
        return line

    def resident(self) -> dict[str, dict[str, Any]]:
        """The models in memory, by name, as /api/ps lists them."""
        return {model["name"]: model for model in self.http.get("/api/ps").json()["models"]}

    def health(self) -> dict[str, Any]:
        return dict(self.http.get("/api/health").json())

    def runners(self) -> list[psutil.Process]:
        """The runner processes of this server that are alive."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [p for p in psutil.Process(self.pid).children(recursive=True) if _is_runner(p)]
        return []

    def slots(self) -> list[dict[str, Any]]:
        """The slots of every runner, read from the runners' own sockets."""
        found: list[dict[str, Any]] = []
        for path in self.sockets.glob("ndani-*/*/*.sock"):
            with contextlib.closing(UnixHTTP(str(path))) as line, contextlib.suppress(OSError):
                line.request("GET", "/slots")
                slots = json.loads(line.getresponse().read())
                found += slots if isinstance(slots, list) else []  # an object while the model loads
        return found

    def busy(self) -> int:
        """How many slots compute at this moment."""
        return sum(slot["is_processing"] for slot in self.slots())

    def rss(self) -> int:
        """Resident memory of the server process without its runners, in bytes."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def terminate(self, *, at_rest: float = 15) -> int:
        """Send SIGTERM and wait; the exit code. `at_rest` is `stretched`."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(stretched(at_rest))

    def kill(self) -> None:
        """Send SIGKILL and wait."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def close(self) -> None:
        """End the server if it is alive, and remove its sockets."""
        runners = self.runners()
        for line in self._lines:
            line.close()
        self.http.close()
        if self.process.poll() is None:
            try:
                self.terminate()
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"the server did not end in time after SIGTERM:\n{self.log}") from None
            finally:
                for runner in runners:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        runner.kill()
        shutil.rmtree(self.sockets, ignore_errors=True)


def _is_runner(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "ndani.runtime.runner_main" in process.cmdline()
    return False


@contextlib.contextmanager
def serving(folder: Path, models: Path, **environment: str) -> Iterator[Server]:
    """A server for the store in `models`, ended with the block."""
    server = Server(folder, models, environment)
    try:
        yield server
    finally:
        server.close()
