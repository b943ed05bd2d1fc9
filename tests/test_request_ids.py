"""Every response has an id, the log line has the same, and a running request can be cancelled by it."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from conftest import Start
from server import HOST, Server, until

LONG = {"model": "echo", "prompt": "a b @delay=0.05", "raw": True, "options": {"num_predict": 2000}}
HANG = {"model": "echo", "prompt": "a @hang", "raw": True}


def running(server: Server) -> list[str]:
    return [request["id"] for request in server.http.get("/api/requests").json()["requests"]]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {}, 200),
        ("GET", "/api/version", {}, 200),
        ("GET", "/api/tags/", {}, 301),
        ("POST", "/api/chat", {}, 400),
        ("GET", "/api/chat", {}, 405),
        ("GET", "/none", {}, 404),
        ("HEAD", "/api/blobs/sha256:" + "0" * 64, {}, 404),
        ("GET", "/", {"host": "evil.example"}, 403),
        ("GET", "/", {"origin": "http://evil.example"}, 403),
        ("OPTIONS", "/", {}, 204),
    ],
)
def test_every_response_has_an_id(echo: Server, method: str, path: str, headers: dict[str, str], status: int) -> None:
    answers = [echo.http.request(method, path, headers=headers) for _ in range(2)]
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert [answer.status_code for answer in answers] == [status, status]
    assert len(ids) == 2
    assert all(re.fullmatch("req_[0-9a-f]{32}", one) for one in ids)
    assert echo.http.request(method, path, headers={**headers, "x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"


def test_bytes_that_are_no_request_get_an_id(echo: Server) -> None:
    with contextlib.closing(echo.connect()) as line:
        line.sendall(b"nonsense\r\n\r\n")
        head = b"".join(iter(lambda: line.recv(65536), b""))
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\nx-request-id: req_")
    assert head.endswith(b"\r\n\r\nThat is no HTTP request.")


@pytest.mark.parametrize("chosen", ["a b", "", "x" * 101, "../up", "a/b", "é".encode(), "a;b", "-a", "a\tb"], ids=repr)
def test_an_id_that_could_be_misread_is_replaced(echo: Server, chosen: str | bytes) -> None:
    answer = echo.http.get("/api/tags", headers={b"x-request-id": chosen if isinstance(chosen, bytes) else chosen.encode()})
    assert re.fullmatch("req_[0-9a-f]{32}", answer.headers["x-request-id"])


def test_the_log_line_has_it(start: Start, echo_store: Path) -> None:
    server = start(echo_store)
    own = server.http.get("/api/tags", headers={"x-request-id": "page-7.a_b"}).headers["x-request-id"]
    new = server.http.get("/api/tags").headers["x-request-id"]
    lines = [line for line in server.log.splitlines() if " request " in line]
    assert own == "page-7.a_b"
    assert [line.rpartition(" id=")[2] for line in lines] == [own, new]


def test_a_stream_that_is_cancelled_ends_in_an_error(echo: Server) -> None:
    before = echo.health()["counts"]["cancelled"]
    with echo.http.stream("POST", "/api/generate", json=LONG, headers={"x-request-id": "stream-1"}) as answer:
        lines = answer.iter_lines()
        assert json.loads(next(lines))["response"]
        listed = echo.http.get("/api/requests").json()["requests"]
        (request,) = [one for one in listed if one["id"] == "stream-1"]
        assert (request["method"], request["path"], list(request)) == ("POST", "/api/generate", ["id", "method", "path", "age"])
        assert 0 <= request["age"] < 60
        done = echo.http.delete("/api/requests/stream-1")
        assert (done.status_code, done.json()) == (200, {"id": "stream-1", "status": "cancelled"})
        *_, last = lines
    assert json.loads(last) == {"error": "the request was cancelled by its id"}
    until(lambda: echo.busy() == 0, "its slot is free", at_rest=5)
    assert echo.health()["counts"]["cancelled"] == before + 1
    assert "stream-1" not in running(echo)
    assert echo.http.delete("/api/requests/stream-1").status_code == 404


@pytest.mark.parametrize("stream", [True, False])
def test_before_the_first_byte_it_is_status_499(echo: Server, stream: bool) -> None:
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(echo.post, "/api/generate", {**HANG, "stream": stream}, headers={"x-request-id": "early"})
        until(lambda: "early" in running(echo), "it runs")
        until(lambda: echo.busy() == 1, "it is with the engine")
        assert echo.http.delete("/api/requests/early").status_code == 200
        answer = waiting.result()
    assert (answer.status_code, answer.json()) == (499, {"error": "the request was cancelled by its id"})
    assert answer.headers["x-request-id"] == "early"
    until(lambda: echo.busy() == 0, "its slot is free", at_rest=5)


def test_a_connection_serves_on_after_a_cancelled_stream(echo: Server) -> None:
    with contextlib.closing(http.client.HTTPConnection(HOST, echo.port, timeout=60)) as line:
        line.request("POST", "/api/generate", json.dumps(LONG), {"x-request-id": "kept"})
        answer = line.getresponse()
        answer.readline()
        connection = line.sock
        assert echo.http.delete("/api/requests/kept").status_code == 200
        assert answer.read().endswith(b'{"error":"the request was cancelled by its id"}\n')
        line.request("GET", "/api/version")
        assert line.getresponse().status == 200
        assert line.sock is connection


def test_two_requests_with_one_id_are_two(echo: Server) -> None:
    with ThreadPoolExecutor() as pool:
        first = pool.submit(echo.post, "/api/generate", HANG, headers={"x-request-id": "same"})
        until(lambda: "same" in running(echo), "the first runs")
        second = pool.submit(echo.post, "/api/generate", HANG, headers={"x-request-id": "same"})
        until(lambda: len(running(echo)) == 2, "both run")
        assert running(echo)[0] == "same"
        other = running(echo)[1]
        assert re.fullmatch(r"same\.[0-9a-f]{16}", other)
        echo.http.delete("/api/requests/same")
        assert first.result().status_code == 499
        assert running(echo) == [other]
        echo.http.delete(f"/api/requests/{other}")
        assert second.result().headers["x-request-id"] == other


@pytest.mark.parametrize(
    ("path", "named"), [("/api/requests/nobody", " nobody"), ("/api/requests/%22%3Cb", ""), ("/api/requests/me", " me")]
)
def test_who_does_not_run_cannot_be_cancelled(echo: Server, path: str, named: str) -> None:
    answer = echo.http.delete(path, headers={"x-request-id": "me"})
    assert answer.status_code == 404
    assert answer.json() == {"error": f"no running request has the id{named}; GET /api/requests lists those that run"}


def test_a_web_page_of_somebody_else_cancels_nothing(echo: Server) -> None:
    with echo.http.stream("POST", "/api/generate", json=LONG, headers={"x-request-id": "page"}) as answer:
        lines = answer.iter_lines()
        next(lines)
        refused = httpx.delete(f"{echo.url}/api/requests/page", headers={"origin": "http://evil.example"}, trust_env=False)
        assert refused.status_code == 403
        assert "page" in running(echo)
        assert next(lines)


def test_an_upload_can_be_cancelled(echo: Server) -> None:
    with contextlib.closing(echo.connect()) as line:
        path = "/api/blobs/sha256:" + "1" * 64
        line.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nx-request-id: up\r\nContent-Length: 1000000\r\n\r\nabc".encode())
        until(lambda: "up" in running(echo), "it arrives")
        assert echo.http.get("/api/requests").json()["requests"][0]["path"] == "/api/blobs/{digest}"
        assert echo.http.delete("/api/requests/up").status_code == 200
        assert line.recv(65536).startswith(b"HTTP/1.1 499 ")
