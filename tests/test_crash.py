"""Processes that die in the middle: a runner, the server by SIGTERM, the server by SIGKILL, one of two servers on a store."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from conftest import Start
from server import PATIENCE, Server, slowness, until

pytestmark = pytest.mark.weights

STORY = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "Tell me a very long story about a river."}],
    "options": {"num_predict": 3000, "seed": 1},
}
SUM = {"model": "smollm2", "messages": [{"role": "user", "content": "What is 2+2?"}], "options": {"num_predict": 12, "temperature": 0}}


def alive(pids: list[int]) -> list[int]:
    found = []
    for pid in pids:
        if psutil.pid_exists(pid):
            try:
                if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                    found.append(pid)
            except psutil.NoSuchProcess:
                pass
    return found


def test_a_killed_runner_costs_one_answer(real_store: Path, start: Start) -> None:
    server = start(real_store)
    with server.streaming("/api/chat", STORY) as lines:
        for _ in range(5):
            assert next(lines)["done"] is False
        (runner,) = server.runners()
        runner.kill()
        killed = time.monotonic()
        *_, last = lines
        assert time.monotonic() - killed < 2 * slowness()
        assert set(last) == {"error"}
        assert last["error"].startswith("an error was encountered while running the model: ")
    assert server.ask("/api/chat", SUM)["message"]["content"]
    (fresh,) = server.runners()
    assert fresh.pid != runner.pid
    assert server.health()["status"] == "ok"
    whole: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: whole.append(server.post("/api/chat", {**STORY, "stream": False})))
    asking.start()
    until(lambda: server.busy() == 1, "the model computes", at_rest=10)
    fresh.kill()
    asking.join(PATIENCE)
    assert whole
    assert whole[0].status_code == 500
    assert whole[0].json()["error"].startswith("an error was encountered")
    assert server.ask("/api/chat", SUM)["done"]


def test_every_stream_of_a_killed_runner_ends_with_an_error(real_store: Path, start: Start) -> None:
    server = start(real_store)
    server.ask("/api/generate", {"model": "smollm2"})
    ends: list[dict[str, Any]] = []

    def follow() -> None:
        with httpx.Client(base_url=server.url, timeout=120, trust_env=False) as client:
            ends.append(json.loads(client.post("/api/chat", json=STORY).text.splitlines()[-1]))

    followers = [threading.Thread(target=follow) for _ in range(6)]  # four compute, two wait for their turn
    for follower in followers:
        follower.start()
    until(lambda: server.busy() == 4 and server.health()["waiting"] == 2, "four compute and two wait", at_rest=15)
    server.runners()[0].kill()
    until(lambda: len(ends) == 4, "the four are told", at_rest=2)
    assert all(set(end) == {"error"} for end in ends)
    until(lambda: server.busy() == 2, "those who waited get a fresh runner", at_rest=15)
    server.terminate()
    for follower in followers:
        follower.join(PATIENCE)
    assert len(ends) == 6


def raw_stream(server: Server) -> socket.socket:
    line = server.connect()
    content = json.dumps(STORY).encode()
    line.sendall(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content))
    return line


def rest_of(line: socket.socket) -> bytes:
    said = b""
    while piece := line.recv(65536):
        said += piece
    return said


def test_sigterm_ends_streams_cleanly_and_leaves_no_child(real_store: Path, start: Start) -> None:
    server = start(real_store)
    lines = [raw_stream(server) for _ in range(3)]
    begun = [line.recv(65536) for line in lines]
    children = [p.pid for p in psutil.Process(server.pid).children(recursive=True)]
    assert children
    server.process.send_signal(signal.SIGTERM)
    said = [first + rest_of(line) for first, line in zip(begun, lines, strict=True)]
    assert server.process.wait(PATIENCE) == 0
    for one in said:
        assert one.startswith(b"HTTP/1.1 200")
        assert one.endswith(b"\r\n0\r\n\r\n"), "a proper end of a chunked body"
        last = json.loads([piece for piece in one.split(b"\r\n") if piece.startswith(b"{")][-1])
        assert last == {"error": "the server is stopping"}
    assert alive(children) == []
    assert list(server.sockets.iterdir()) == [], "no socket is left"
    assert "Traceback" not in server.log
    assert "fault of its own" not in server.log


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT])
def test_a_server_ends_with_its_terminal(echo_store: Path, start: Start, number: signal.Signals) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("whoever runs these tests ignores this signal, and so do the children")
    server = start(echo_store)
    server.ask("/api/generate", {"model": "echo"})
    children = [p.pid for p in psutil.Process(server.pid).children(recursive=True)]
    assert children
    server.process.send_signal(number)
    assert server.process.wait(PATIENCE) == 0
    assert alive(children) == []
    assert server.log.rstrip().endswith("stopped")
    assert "fault of its own" not in server.log


def test_sigterm_while_a_model_loads(real_store: Path, start: Start) -> None:
    server = start(real_store)
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(server.post("/api/chat", SUM)))
    asking.start()
    children = [p.pid for p in until(server.runners, "a runner starts", at_rest=5)]
    assert server.terminate() == 0
    asking.join(PATIENCE)
    assert answers[0].status_code >= 500
    assert answers[0].json() == {"error": "the server is stopping"}
    assert alive(children) == []


def test_a_killed_server_leaves_no_runner_and_the_next_start_is_clean(real_store: Path, start: Start) -> None:
    server = start(real_store)
    raw_stream(server)
    until(lambda: server.busy() == 1, "an answer is made", at_rest=15)
    children = [p.pid for p in server.runners()]
    server.kill()
    until(lambda: not alive(children), "no runner outlives its server", at_rest=1.0)
    left = list(server.sockets.iterdir())
    assert left, "a killed server cannot tidy"
    again = start(real_store, TMPDIR=str(server.sockets))
    assert again.ask("/api/chat", SUM)["message"]["content"]
    assert not any(folder.exists() for folder in left), "the next one tidies for it"
    assert "Traceback" not in again.log
    assert " warn " not in again.log


def test_two_servers_on_one_store_are_both_right(real_store: Path, start: Start) -> None:
    one, two = start(real_store), start(real_store)
    answers: list[str] = []

    def ask(server: Server) -> None:
        answers.append(server.ask("/api/chat", SUM)["message"]["content"])

    asking = [threading.Thread(target=ask, args=(server,)) for server in (one, two)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(PATIENCE)
    assert len(answers) == 2
    assert answers[0] == answers[1] != ""
    assert {p.pid for p in one.runners()} & {p.pid for p in two.runners()} == set()
    one.post("/api/copy", {"source": "smollm2", "destination": "twin"})
    assert "twin:latest" in {m["name"] for m in two.http.get("/api/tags").json()["models"]}
    assert two.ask("/api/chat", {**SUM, "model": "twin"})["message"]["content"] == answers[0]
    assert two.http.request("DELETE", "/api/delete", json={"model": "twin"}).status_code == 200
    assert one.post("/api/chat", {**SUM, "model": "twin"}).status_code == 404
    one.terminate()
    assert two.ask("/api/chat", SUM)["message"]["content"] == answers[0]
