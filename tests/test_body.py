"""Bodies, headers and connections that are too many or too large cost the front no memory and nobody else any time."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Start
from server import HOST, Server, slowness

pytestmark = pytest.mark.slow

MB = 2**20
PIECE = b" " * MB
HEAD = "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture
def server(start: Start, echo_store: Path) -> Server:
    found = start(echo_store)
    for _ in range(3):  # so that what the first requests allocate is not counted
        found.ask("/api/chat", {"model": "echo", "messages": [{"role": "user", "content": "x"}], "options": {"num_predict": 1}})
        found.post("/api/chat", {"model": "nobody", "messages": []})
    return found


def pour(server: Server, head: str, pieces: Iterator[bytes]) -> tuple[bytes, int]:
    """Send a request as far as the server takes it; its answer, and the most resident bytes the front had meanwhile."""
    most, said = 0, b""
    with server.connect() as line:
        line.settimeout(120)
        try:
            line.sendall(head.encode() + b"\r\n")
            for piece in pieces:
                line.sendall(piece)
                most = max(most, server.rss())
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused in the middle, which is fine
        try:
            said = line.recv(65536)
        except (TimeoutError, ConnectionResetError):
            said = b""
    return said, max(most, server.rss())


def chunks(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield b"%x\r\n%s\r\n" % (len(PIECE), PIECE)
    yield b"0\r\n\r\n"


def test_a_body_whose_length_is_too_large_gets_413_and_costs_no_memory(server: Server) -> None:
    before = server.rss()
    said, most = pour(server, HEAD + f"Content-Length: {300 * MB}\r\n", iter([PIECE] * 300))
    assert said.startswith(b"HTTP/1.1 413 ")
    assert b'{"error":"the request body is larger than the limit' in said
    assert most - before < 20 * MB
    assert server.http.get("/").status_code == 200


def test_a_body_that_grows_too_large_gets_413_and_leaves_no_memory_behind(server: Server) -> None:
    before = server.rss()
    said, most = pour(server, HEAD + "Transfer-Encoding: chunked\r\n", chunks(300))
    assert said.startswith(b"HTTP/1.1 413 ")
    assert b'{"error":"the request body is larger than the limit' in said
    assert most - before < 20 * MB
    assert server.http.get("/").status_code == 200


def test_the_limit_is_a_setting_to_the_byte(start: Start, echo_store: Path) -> None:
    server = start(echo_store, NDANI_MAX_BODY="1000")
    body = b'{"model":"echo","keep_alive":0}'
    for size, status in ((1000, 200), (1001, 413)):
        assert server.http.post("/api/generate", content=body.ljust(size)).status_code == status
        assert server.http.post("/api/generate", content=iter([body.ljust(size)])).status_code == status, "chunked"


def test_a_body_of_names_and_switches_has_a_small_limit(server: Server) -> None:
    body = b'{"model":"nobody","source":"nobody","destination":"x","digests":[],"stream":false}'
    for method, path in (("DELETE", "/api/delete"), *(("POST", f"/api/{verb}") for verb in ("copy", "show", "push", "verify", "nope"))):
        answer = server.http.request(method, path, content=body.ljust(MB + 1))
        assert answer.status_code == (404 if path == "/api/nope" else 413), path
        assert path == "/api/nope" or answer.json()["error"].endswith("1048576 bytes; send less, for nothing here needs more")
        assert server.http.request(method, path, content=body.ljust(MB)).status_code == 404, path
        assert server.http.request(method, path, content=iter([body.ljust(MB + 1)])).status_code == answer.status_code, "chunked"
    for path in ("generate", "chat", "embed", "embeddings", "create"):
        assert server.http.post(f"/api/{path}", content=b'{"model":"nobody","from":"x/../y"}'.ljust(2 * MB)).status_code in (400, 404), path


def test_an_endless_header_is_refused_and_costs_no_memory(server: Server) -> None:
    before = server.rss()
    said, most = pour(server, HEAD + "X: " + "a" * 1000, iter([b"a" * MB] * 100))
    assert not said or said.startswith(b"HTTP/1.1 4")
    assert most - before < 20 * MB
    said, most = pour(server, HEAD, iter([b"X: y\r\n" * 100_000] * 50))
    assert not said or said.startswith(b"HTTP/1.1 4")
    assert most - before < 20 * MB
    assert server.http.get("/").status_code == 200


def test_endless_trailers_are_refused_and_cost_no_memory(server: Server) -> None:
    body = b'{"model":"echo","prompt":"x","options":{"num_predict":1}}'
    for trailers in (iter([b"X: " + b"a" * MB] + [b"a" * MB] * 60), iter([b"X: y\r\n" * 100_000] * 40)):
        before = server.rss()
        head = HEAD.replace("/api/chat", "/api/generate") + "Transfer-Encoding: chunked\r\n"
        _, most = pour(server, head, itertools.chain([b"%x\r\n%s\r\n0\r\n" % (len(body), body)], trailers))
        assert most - before < 20 * MB
        began = time.monotonic()
        assert server.http.get("/").status_code == 200
        assert time.monotonic() - began < slowness()


async def test_two_thousand_idle_connections_delay_nobody(server: Server) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    lines: list[asyncio.StreamWriter] = []
    try:
        for _ in range(20):
            opened = await asyncio.gather(*(asyncio.open_connection(HOST, server.port) for _ in range(100)))
            lines += [writer for _, writer in opened]
        lines[0].write(HEAD.encode())  # some say a little and fall silent
        lines[1].write((HEAD + "Content-Length: 50\r\n\r\n{").encode())
        assert len(lines) == 2000
        for _ in range(5):
            began = time.monotonic()
            body = {"model": "echo", "messages": [{"role": "user", "content": "x"}], "options": {"num_predict": 1}}
            assert await asyncio.to_thread(server.ask, "/api/chat", body)
            assert time.monotonic() - began < slowness()
    finally:
        for line in lines:
            line.close()
        await asyncio.gather(*(line.wait_closed() for line in lines), return_exceptions=True)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
