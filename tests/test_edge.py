"""What every request passes: CORS, the guard against rebound names, slashes, the journal (over a real server)."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from conftest import Start
from ndani import settings
from ndani.api.edge.host_guard import HostGuard
from ndani.api.edge.listening import choose_addresses, listening, loopback_addresses
from server import HOST, PATIENCE, Server, slowness, until


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost", True), ("https://localhost:3000", True), ("http://127.0.0.1:1", True), ("http://0.0.0.0:8080", True),
        ("app://obsidian.md", True), ("file://x", True), ("tauri://localhost", True),
        ("vscode-webview://abc", True), ("HTTP://LOCALHOST", True),
        ("http://evil.example", False), ("http://localhost.evil.example", False), ("null", False), ("http://localhost@evil.example", False),
        ("https://127.0.0.1.evil.example:80", False), ("chrome-extension://x", False),
    ],
)  # fmt: skip
def test_origins(echo: Server, origin: str, allowed: bool) -> None:
    answer = echo.http.get("/api/tags", headers={"origin": origin})
    if allowed:
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == origin
        assert answer.headers["vary"] == "Origin"
    else:
        assert (answer.status_code, answer.content) == (403, b"")
        assert "access-control-allow-origin" not in answer.headers


def test_no_origin_is_no_browser_and_gets_no_header(echo: Server) -> None:
    assert "access-control-allow-origin" not in echo.http.get("/api/tags").headers


def test_a_refused_origin_does_nothing(echo: Server) -> None:
    before = echo.http.get("/api/tags").json()
    answer = echo.http.request("DELETE", "/api/delete", json={"model": "echo"}, headers={"origin": "http://evil.example"})
    assert answer.status_code == 403
    assert echo.http.get("/api/tags").json() == before


def test_preflight(echo: Server) -> None:
    asked = {"origin": "http://localhost:5173", "access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    answer = echo.http.options("/api/chat", headers=asked)
    assert answer.status_code == 204
    assert answer.content == b""
    assert answer.headers["access-control-allow-origin"] == "http://localhost:5173"
    assert "POST" in answer.headers["access-control-allow-methods"]
    headers = answer.headers["access-control-allow-headers"].lower().split(",")
    assert {"authorization", "content-type", "x-stainless-os", "x-stainless-helper-method"} <= set(headers)
    assert echo.http.options("/api/chat", headers={**asked, "origin": "http://evil.example"}).status_code == 403


def test_preflight_allows_what_the_clients_of_each_dialect_send_from_a_page(echo: Server) -> None:
    asked = {"origin": "http://localhost:5173", "access-control-request-method": "POST"}
    allowed = set(echo.http.options("/v1/messages", headers=asked).headers["access-control-allow-headers"].lower().split(","))
    openai = {"authorization", "content-type", "openai-organization", "openai-project", "openai-beta", "x-stainless-retry-count"}
    anthropic = {"x-api-key", "anthropic-version", "anthropic-beta", "anthropic-dangerous-direct-browser-access", "x-stainless-timeout"}
    assert openai | anthropic | {"x-request-id", "idempotency-key"} <= allowed


def test_a_page_may_read_the_id_of_its_request(echo: Server) -> None:
    for path in ("/api/tags", "/v1/models", "/v1/no-such-path"):
        answer = echo.http.get(path, headers={"origin": "http://localhost:5173"})
        assert "x-request-id" in answer.headers["access-control-expose-headers"].lower().split(",")
        assert answer.headers["x-request-id"]


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT"])
def test_a_page_that_hides_its_origin_changes_nothing(echo: Server, method: str) -> None:
    before = echo.http.get("/api/tags").json()
    for path in ("/api/delete", "/api/requests/x", "/shutdown", "/v1/responses"):
        answer = echo.http.request(method, path, json={"model": "echo"}, headers={"sec-fetch-site": "cross-site"})
        assert (answer.status_code, answer.content) == (403, b"")
    for site in ("same-origin", "none"):
        assert echo.http.request("DELETE", "/api/requests/x", headers={"sec-fetch-site": site}).status_code == 404
    assert echo.http.get("/api/tags", headers={"sec-fetch-site": "cross-site"}).json() == before


def test_more_origins_and_all_origins(start: Start, echo_store: Path) -> None:
    some = start(echo_store, OLLAMA_ORIGINS="https://*.corp.example,chrome-extension://*")
    for origin, status in (("https://a.corp.example", 200), ("chrome-extension://abc", 200), ("https://corp.example.evil", 403)):
        assert some.http.get("/", headers={"origin": origin}).status_code == status
    exact = start(echo_store, OLLAMA_ORIGINS="http://[::1]:3000,http://a?c.example")
    for origin, status in (("http://[::1]:3000", 200), ("http://1:3000", 403), ("http://abc.example", 403), ("http://a?c.example", 200)):
        assert exact.http.get("/", headers={"origin": origin}).status_code == status, origin
    every = start(echo_store, OLLAMA_ORIGINS="*")
    answer = every.http.get("/", headers={"origin": "http://evil.example"})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("LOCALHOST:99", 200), ("127.0.0.1", 200), ("[::1]:11434", 200), ("10.1.2.3", 200),
        ("192.168.0.9:80", 200), ("0.0.0.0", 200),
        ("x.localhost", 200), ("printer.local", 200), ("db.internal:1", 200), (socket.gethostname(), 200), ("localhost.", 200),
        ("evil.example", 403), ("localhost.evil.example", 403), ("127.0.0.1.nip.example", 403),
        ("8.8.8.8", 403), ("[2001:4860::1]", 403), ("x:y:z", 403), ("::1", 200), ("[::1]:", 200), ("2001:4860::1", 403),
        ("localhost:80@evil.example", 403), ("localhost:abc", 403), ("[::1", 403), ("[::1]evil.example", 403), ("[::1]x.local", 403),
    ],
)  # fmt: skip
def test_a_rebound_name_is_refused_on_loopback(echo: Server, host: str, status: int) -> None:
    answer = echo.http.get("/api/tags", headers={"host": host})
    assert answer.status_code == status
    assert status == 200 or answer.content == b""


async def reached(loopback_addresses: frozenset[str], server: Any) -> int:
    """The status of a request that comes in at an address by a name that is not ours."""

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    got: list[Any] = []

    async def send(message: Any) -> None:
        got.append(message)

    scope = {"type": "http", "headers": [(b"host", b"models.corp.example")], "server": server}
    await HostGuard(inside, loopback_addresses)(scope, None, send)  # type: ignore[arg-type]
    return int(got[0]["status"])


def loopback6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as tried:
        tried.bind(("::1", 0))
        return True
    return False


@pytest.mark.parametrize(
    ("written", "status"),
    [
        ("127.0.0.1", 403), ("localhost", 403), ("[::1]", 403), ("127.1", 403), ("0x7f.1", 403), ("2130706433", 403), ("127.9.9.9", 403),
        ("[::ffff:127.0.0.1]", 403), ("0.0.0.0", 200), ("[::]", 200), ("0", 200),
    ],
)  # fmt: skip
async def test_the_host_guard_works_where_a_socket_is_bound_to_loopback_however_it_is_written(written: str, status: int) -> None:
    if ":" in written and not loopback6():
        pytest.skip("this machine has no IPv6")
    with listening(settings.load({"NDANI_HOST": f"{written}:0"})) as sockets:
        for one in sockets:
            address = one.getsockname()
            assert await reached(loopback_addresses(sockets), address[:2]) == status
            with socket.create_connection(("127.0.0.1" if status == 200 else address[0], address[1])) as line:
                at = one.accept()[0]
                assert await reached(loopback_addresses(sockets), at.getsockname()[:2]) == status
                at.close()
                line.close()


async def test_a_machines_other_addresses_have_other_names() -> None:
    assert await reached(frozenset({"127.0.1.1"}), ("10.0.0.5", 11434)) == 200
    assert await reached(frozenset(), None) == 200


def test_a_name_is_listened_on_in_both_families_where_it_is_loopback_and_first_in_the_fourth() -> None:
    four, six = (socket.AF_INET, ("127.0.0.1", 80)), (socket.AF_INET6, ("::1", 80, 0, 0))
    assert choose_addresses([six, four, six]) == [four, six]
    assert choose_addresses([six]) == [six]
    lan, lan6, machine = (socket.AF_INET, ("10.0.0.5", 80)), (socket.AF_INET6, ("fd00::5", 80, 0, 0)), (socket.AF_INET, ("127.0.1.1", 80))
    assert choose_addresses([lan6, lan]) == [lan], "as Go does"
    assert choose_addresses([machine, lan, lan6, six]) == [machine, six], (
        "never at an address that others reach, where the first is this machine's"
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", ["serve", "mirror"])
def test_localhost_is_reached_by_both_of_its_addresses(command: str, tmp_path: Path) -> None:
    """With a hosts file of its own, in a namespace of its own."""
    if not loopback6():
        pytest.skip("this machine has no IPv6")
    hosts = tmp_path / "hosts"
    hosts.write_text("::1 localhost\n127.0.0.1 localhost\n")
    inside = ["unshare", "--mount", "--map-root-user", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts)]
    if not shutil.which("unshare") or subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system gives no mount namespaces")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("NDANI_", "OLLAMA_"))}
    environment |= {"HOME": str(tmp_path), "NDANI_MODELS": str(tmp_path / "models"), "OLLAMA_HOST": "localhost:0"}
    flags = ["--host", "localhost:0"] if command == "mirror" else []
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen([*inside, sys.executable, "-m", "ndani", command, *flags], env=environment, stdout=out, stderr=out)
    try:
        found = until(lambda: re.search(r" on 127\.0\.0\.1:(\d+) and \[::1\]:\1\b", log.read_text()), "it listens on both")
        for host in ("127.0.0.1", "[::1]"):
            path = f"http://{host}:{found[1]}/" + ("v2/" if command == "mirror" else "")
            assert httpx.get(path, trust_env=False).status_code == 200
            assert httpx.get(path, headers={"host": "evil.example"}, trust_env=False).status_code == 403
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_a_slash_too_many_is_a_redirect(echo: Server) -> None:
    answer = echo.http.get("/api/tags/")
    assert (answer.status_code, answer.headers["location"]) == (301, "/api/tags")
    answer = echo.http.post("/api/chat/", json={})
    assert (answer.status_code, answer.headers["location"]) == (307, "/api/chat")
    assert echo.http.get("//evil.example/").headers.get("location") is None


@pytest.mark.parametrize(
    ("method", "path", "status", "location"),
    [
        ("POST", "//api/chat", 307, "/api/chat"),
        ("GET", "/api//tags", 307, "/api/tags"),
        ("HEAD", "/api//tags?a=1&b=%2F", 307, "/api/tags?a=1&b=%2F"),
        ("DELETE", "///api///delete", 307, "/api/delete"),
        ("GET", "/api/./x/../tags", 307, "/api/tags"),
        ("GET", "//api/tags/", 307, "/api/tags"),
        ("GET", "/api/tags/?x=y", 301, "/api/tags?x=y"),
        ("HEAD", "/api/blobs//sha256:%22%3Cb", 307, "/api/blobs/sha256:%22%3Cb"),
        ("GET", "//", 307, "/"),
        ("GET", "//nobody/here", 404, None),
        ("GET", "/API/tags", 404, None),  # gin would mend that too, and is not asked to
    ],
)
def test_a_path_with_slashes_too_many_is_a_redirect_to_the_right_one(
    echo: Server, method: str, path: str, status: int, location: str | None
) -> None:
    with contextlib.closing(http.client.HTTPConnection(HOST, echo.port, timeout=60)) as line:  # httpx would mend the path itself
        line.request(method, path)
        answer = line.getresponse()
        assert (answer.status, answer.headers["location"]) == (status, location)
        assert b'"<' not in answer.read()


def test_a_client_that_follows_is_answered(echo: Server) -> None:
    body = {"model": "echo", "prompt": "a b", "raw": True, "stream": False, "options": {"num_predict": 2}}
    answer = httpx.post(f"{echo.url}//api/generate", json=body, follow_redirects=True, trust_env=False)
    assert answer.json()["response"].split() == ["a", "b"]
    assert len(answer.history) == 1


def routes() -> list[tuple[str, str]]:
    """Every route that the documentation names."""
    page = (Path(__file__).parents[1] / "docs" / "serve.md").read_text(encoding="utf-8")
    matches = re.findall(r"^\| `([A-Z]+) (/[^`]*)`", page, re.MULTILINE)
    return [(method, path.replace("{digest}", "sha256:" + "0" * 64)) for method, path in matches]


def left(server: Server) -> tuple[Any, ...]:
    """What requests leave behind: files of the store, models in memory, processes."""
    return sorted(server.models.rglob("*")), server.resident(), server.runners()


def test_what_a_browser_sends_for_any_page_has_no_effect(start: Start, echo_store: Path) -> None:
    """A GET or a HEAD without a word of where it comes from; whatever else needs no preflight says where, and is refused."""
    server = start(echo_store)
    before = left(server)
    safe = [(method, path) for method, path in routes() if method in ("GET", "HEAD")]
    assert len(safe) >= 7
    assert len(routes()) > 20
    for _, path in safe:
        for method in ("GET", "HEAD"):
            server.http.request(method, path, headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"})
    assert server.http.get("/api/doctor").status_code == 405
    said = json.dumps({"model": "echo", "source": "echo", "destination": "x", "from": "echo", "name": "x", "keep_alive": -1})
    for method, path in routes():
        for origin in ("http://evil.example", "null", f"http://evil.example:{server.port}"):
            if method not in ("GET", "HEAD"):
                headers = {"origin": origin, "content-type": "text/plain", "sec-fetch-site": "cross-site"}
                answer = server.http.request(method, path, content=said, headers=headers)
                assert (answer.status_code, answer.content) == (403, b""), (method, path, origin)
    assert left(server) == before


def test_the_journal_has_a_line_per_request_and_counts(start: Start, echo_store: Path) -> None:
    server = start(echo_store)
    before = server.health()["counts"]
    server.http.get("/api/tags")
    server.http.post("/api/chat", json={"model": "nobody"})
    server.http.get("/no/such/words")
    after = server.health()["counts"]
    assert after["requests"] == before["requests"] + 3
    assert after["failures"] == before["failures"]
    lines = [line for line in server.log.splitlines() if " request " in line]
    assert [line.partition("method=")[2].partition(" seconds")[0] for line in lines] == [
        "GET route=/api/tags status=200",
        "POST route=/api/chat status=404",
        "GET route=- status=404",
    ], "and none for those who only watch"


def test_who_leaves_in_the_middle_is_counted_as_cancelled_streaming_or_not(start: Start, echo_store: Path) -> None:
    server = start(echo_store)
    body = {"model": "echo", "messages": [{"role": "user", "content": "a b @delay=0.05"}], "options": {"num_predict": 200}}
    with server.streaming("/api/chat", body) as lines:
        next(lines)
    until(lambda: server.health()["counts"]["cancelled"] == 1 and server.busy() == 0, "the stream was left", at_rest=10)
    content = b'{"model":"echo","messages":[{"role":"user","content":"a b @delay=0.05"}],"stream":false,"options":{"num_predict":200}}'
    line = server.connect()
    line.sendall(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content))
    until(lambda: server.busy() == 1, "it is being answered", at_rest=10)
    line.close()
    until(lambda: server.health()["counts"]["cancelled"] == 2 and server.busy() == 0, "the whole was left", at_rest=10)
    line = server.connect()
    line.sendall(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{")
    time.sleep(0.1)
    line.close()
    until(lambda: server.health()["counts"]["cancelled"] == 3, "the question itself was left", at_rest=10)
    assert "status=499" in server.log
    assert "fault of its own" not in server.log
    assert server.health()["counts"]["failures"] == 0


def test_requests_follow_each_other_on_one_connection(echo: Server) -> None:
    with contextlib.closing(http.client.HTTPConnection(HOST, echo.port, timeout=60)) as line:
        line.connect()
        first = line.sock
        for _ in range(3):
            line.request("GET", "/api/version")
            assert line.getresponse().read().startswith(b"{")
            assert line.sock is first


def test_a_request_before_the_answer_to_the_last_one_is_left_to_another_connection(start: Start, echo_store: Path) -> None:
    """And a client that sends one and leaves is noticed all the same."""
    server = start(echo_store)
    body = b'{"model":"echo","prompt":"a b c @delay=0.1","stream":%b,"options":{"num_predict":%d}}'
    for stream in (b"true", b"false"):
        short, long = (_posted("/api/generate", body % (stream, many)) for many in (5, 500))
        with contextlib.closing(server.connect()) as line:
            line.sendall(short + _posted("/api/generate", body % (stream, 1)))
            received = b"".join(iter(lambda line=line: line.recv(65536), b""))  # type: ignore[misc]
        assert received.startswith(b"HTTP/1.1 200 ")
        assert received.count(b"HTTP/1.1 ") == 1
        assert b'"done":true' in received
        line = server.connect()
        line.sendall(long)
        until(lambda: server.busy() == 1, "it is being answered", at_rest=10)
        line.sendall(short)
        line.close()
        until(lambda: server.busy() == 0, "that it has left is noticed", at_rest=5)


def test_an_answer_to_an_old_client_ends_with_its_connection(echo: Server) -> None:
    content = b'{"model":"echo","prompt":"a b c","options":{"num_predict":3}}'
    for path, body in (
        ("/api/generate", content),
        ("/api/generate", content.replace(b"{", b'{"stream":false,', 1)),
        ("/api/show", content),
    ):
        with contextlib.closing(echo.connect()) as line:
            line.sendall(_posted(path, body).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
            received = b"".join(iter(lambda line=line: line.recv(65536), b""))  # type: ignore[misc]
        head, _, rest = received.partition(b"\r\n\r\n")
        assert b" 200 " in head
        assert b"chunked" not in head
        assert b"connection: close" in head
        assert all(isinstance(json.loads(one), dict) for one in rest.splitlines()), rest


def _posted(path: str, content: bytes) -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), len(content), content)


def test_the_port_that_is_taken_is_one_sentence(start: Start, echo_store: Path) -> None:
    server = start(echo_store)
    taken = {**server.environment, "NDANI_HOST": f"127.0.0.1:{server.port}"}
    done = subprocess.run([sys.executable, "-m", "ndani", "serve"], env=taken, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_idle_server_leaves(start: Start, echo_store: Path) -> None:
    idle = 1.0 if slowness() < 2 else 10.0  # a slow machine takes its time between two of our questions too
    server = start(echo_store, NDANI_IDLE_EXIT=f"{idle:g}s")
    for _ in range(4):
        time.sleep(0.4 * idle)
        server.http.get("/api/tags")
    assert server.process.poll() is None, "it is asked, so it stays"
    assert server.process.wait(idle + PATIENCE) == 0
