"""One connection, byte by byte: a wish for another protocol, other protocols themselves, and junk; and what the log says of them."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mirrors import Mirror
from ndani.names import parse
from ndani.store import Store
from registries import put_model
from server import HOST, PATIENCE, Server, serving, until
from stores import put_echo

pytestmark = pytest.mark.slow  # real sockets that wait

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3} (info|warn|debug) ")
ASKED = b'{"model":"echo","prompt":"a b c","raw":true,"stream":false,"options":{"num_predict":3}}'
#: As Java's HttpClient and `curl --http2` ask for HTTP/2, and as a browser asks for a WebSocket.
WISHES = {
    "java": b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAABgAGAAA\r\nUpgrade: h2c\r\n",
    "lower case, twice": b"connection: keep-alive\r\nupgrade: TLS/1.0, IRC/6.9\r\nconnection: upgrade\r\n",
    "a web socket": b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\n",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of this file's own: what its log says is compared."""
    store = tmp_path_factory.mktemp("connection") / "models"
    put_echo(store, "echo")
    with serving(store.parent, store) as started:
        yield started
        assert started.process.poll() is None
    assert all(LINE.match(line) for line in started.log.splitlines()), started.log
    assert "ninvited" not in started.log
    assert "uvicorn" not in started.log
    assert "nsupported" not in started.log


def with_length(path: str, content: bytes, more: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"POST %b HTTP/%b\r\nHost: localhost\r\n%bContent-Length: %d\r\n\r\n%b" % (path.encode(), version, more, len(content), content)


def chunked(path: str, content: bytes, more: bytes = b"") -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\n%bTransfer-Encoding: chunked\r\n\r\n" % (path.encode(), more)
    return head + b"".join(b"1\r\n%c\r\n" % byte for byte in content) + b"0\r\n\r\n"


def whole(line: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    line.settimeout(60)
    return b"".join(iter(lambda: line.recv(65536), b""))


def read_answer(reader: Any) -> tuple[int, dict[str, str], bytes]:
    """The next answer on a connection."""
    status, headers = int(reader.readline().split()[1]), {}
    while text := reader.readline().strip().decode():
        name, _, value = text.partition(": ")
        headers[name.lower()] = value
    return status, headers, reader.read(int(headers["content-length"]))


@pytest.mark.parametrize("wish", WISHES.values(), ids=list(WISHES))
@pytest.mark.parametrize("framed", [with_length, chunked])
def test_a_wish_for_another_protocol_is_passed_over_and_the_body_is_read(server: Server, wish: bytes, framed: Any) -> None:
    """And the connection serves on, for a second such request and one without a wish."""
    with server.connect() as line, line.makefile("rb") as reader:
        for more in (wish, wish, b""):
            line.sendall(framed("/api/generate", ASKED, more))
            status, headers, body = read_answer(reader)
            assert (status, json.loads(body)["response"].split()) == (200, ["a", "b", "c"])
            assert "upgrade" not in headers
            assert headers.get("connection", "keep-alive") == "keep-alive"


def test_the_wish_may_come_in_pieces_and_before_a_long_body(server: Server) -> None:
    data = b"x" * 3_000_000
    digest = hashlib.sha256(data).hexdigest()
    request = with_length(f"/api/blobs/sha256:{digest}", data, WISHES["java"])
    with server.connect() as line, line.makefile("rb") as reader:
        for byte in request[:700]:
            line.sendall(bytes([byte]))
        line.sendall(request[700:])
        assert read_answer(reader)[0] == 201
    assert server.http.head(f"/api/blobs/sha256:{digest}").status_code == 200


def test_what_else_such_a_head_says_counts(server: Server) -> None:
    close = WISHES["java"].replace(b"Upgrade, ", b"close, Upgrade, ")
    for request in (
        with_length("/api/generate", ASKED, close),
        with_length("/api/generate", ASKED, WISHES["java"], version=b"1.0"),
        with_length("/api/generate", ASKED, WISHES["java"]) + with_length("/api/generate", ASKED, WISHES["java"]),  # one at a time
    ):
        with server.connect() as line:
            line.sendall(request)
            received = whole(line)
        assert received.startswith(b"HTTP/1.1 200 ")
        assert received.count(b"HTTP/1.1 ") == 1
        assert received.count(b'"done":true') == 1
    with server.connect() as line, line.makefile("rb") as reader:
        head = with_length("/api/generate", b"", WISHES["java"] + b"Expect: 100-continue\r\n")
        line.sendall(head.replace(b"th: 0", b"th: %d" % len(ASKED)))
        assert reader.readline().startswith(b"HTTP/1.1 100")
        assert reader.readline() == b"\r\n"
        line.sendall(ASKED)
        assert read_answer(reader)[0] == 200


def test_the_mirror_passes_it_over_too(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    put_model(store, parse("tiny:1"), b"GGUF weights")
    mirror = Mirror(store.layout.root, tmp_path)
    try:
        for more in (b"", WISHES["java"]):
            with socket.create_connection((HOST, int(mirror.host.partition(":")[2]))) as line, line.makefile("rb") as reader:
                line.sendall(b"GET /v2/library/tiny/manifests/1 HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % more)
                assert read_answer(reader)[0] == 200
        with pytest.raises(ssl.SSLError):
            speak_tls(int(mirror.host.partition(":")[2]))
        until(lambda: "TLS" in mirror.log, "it is noted")
    finally:
        assert mirror.close() == 0
    lines = mirror.log.splitlines()
    assert [line.split()[1] for line in lines if LINE.match(line)].count("warn") == 1
    assert all(LINE.match(line) or "pull from here" in line for line in lines), mirror.log


def speak_tls(port: int) -> None:
    """Greet as a client of https:// does."""
    context = ssl.create_default_context()
    with socket.create_connection((HOST, port), timeout=60) as line, context.wrap_socket(line, server_hostname="localhost"):
        pass


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        (None, "The client speaks TLS to a port without it; its address must begin with http://."),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", "The client speaks HTTP/2, and this server HTTP/1.1."),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "That is no HTTP request."),
        (b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n", "This server is no proxy."),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "That is no HTTP request."),
    ],
)
def test_what_is_no_request_is_told_so_and_is_one_line_of_the_log(server: Server, sent: bytes | None, sentence: str) -> None:
    before = len(server.log.splitlines())
    if sent is None:
        with pytest.raises(ssl.SSLError):
            speak_tls(server.port)
    else:
        with server.connect() as line:
            line.sendall(sent)
            received = whole(line)
        assert received.startswith(b"HTTP/1.1 400 ")
        assert received.endswith(sentence.encode())
        assert received.count(b"HTTP/1.1 ") == 1
    until(lambda: server.log.count("\n") > before, "it is noted")
    new = [line for line in server.log.splitlines()[before:] if " request " not in line]
    assert [LINE.sub("", line) for line in new] == [f"bytes of a client were refused: {sentence}"]


@pytest.mark.parametrize("wish", [b"", *WISHES.values()], ids=["", *WISHES])
@pytest.mark.parametrize(
    ("hosts", "version", "status"),
    [
        (b"", b"1.1", 400), (b"", b"1.0", 200), (b"Host: localhost\r\n", b"1.0", 200), (b"Host:\r\n", b"1.1", 200),
        (b"Host: localhost\r\nhost: evil.example\r\n", b"1.1", 400), (b"Host: localhost\r\nHost: localhost\r\n", b"1.0", 400),
    ],
)  # fmt: skip
def test_a_request_says_its_host_once(server: Server, hosts: bytes, version: bytes, status: int, wish: bytes) -> None:
    before = len(server.log.splitlines())
    with server.connect() as line:
        line.sendall(b"GET /api/version HTTP/%b\r\n%b%b\r\n" % (version, hosts, wish))
        code, headers, body = read_answer(line.makefile("rb"))
        assert code == status
        if status == 400:
            assert b"Host" in body
            assert headers["connection"] == "close"
            assert line.recv(1) == b""
            assert until(lambda: server.log.splitlines()[before:], "it is told")[0].endswith("Host header, and no more.")
    with server.connect() as line:
        line.sendall(b"GET /api/version HTTP/1.1\r\n\r\n\0junk")
        assert whole(line).count(b"HTTP/1.1 400") == 1, "said once, whatever follows"


@pytest.mark.parametrize("wish", [b"", WISHES["java"]], ids=["", "java"])
@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        (b"http://localhost/api/version", b"evil.example", 200), (b"http://evil.example/api/version", b"localhost", 403),
        (b"HTTP://localhost:80@evil.example/api/version", b"localhost", 403),
        (b"http://u:p@127.0.0.1:9/api/version", b"localhost", 200), (b"/http://evil.example/", b"localhost", 404),
    ],
)  # fmt: skip
def test_a_target_that_is_a_whole_address_says_the_host(server: Server, target: bytes, host: bytes, status: int, wish: bytes) -> None:
    with server.connect() as line:
        line.sendall(b"GET %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (target, host, wish))
        assert read_answer(line.makefile("rb"))[0] == status


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("junk", [b"\x16\x03\x01junk", b"no request\r\n\r\n", b"\0", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
def test_junk_behind_a_request_does_not_break_into_its_answer(server: Server, junk: bytes, stream: bool) -> None:
    body = json.dumps(
        {"model": "echo", "prompt": "a b @delay=0.05 c", "raw": True, "stream": stream, "options": {"num_predict": 8}}
    ).encode()
    with server.connect() as line:
        line.sendall(with_length("/api/generate", body))
        if stream:
            said = line.recv(65536)
            assert said.startswith(b"HTTP/1.1 200 ")
        else:
            said = b""
            until(lambda: server.busy() == 1, "it is being answered", at_rest=10)
        line.sendall(junk)
        time.sleep(0.05)
        line.sendall(b"more of it")
        said += whole(line)
    assert said.count(b"HTTP/1.1 ") == 1
    assert b'"done":true' in said
    assert b"no HTTP" not in said
    assert said.endswith(b"0\r\n\r\n" if stream else b"}"), said[-200:]


def test_curl_asks_for_http2_and_is_answered(server: Server) -> None:
    if not (curl := shutil.which("curl")):
        pytest.skip("there is no curl here")
    if "HTTP2" not in subprocess.run([curl, "--version"], capture_output=True, text=True, check=True).stdout:
        pytest.skip("this curl does not speak HTTP/2")
    asked = [curl, "-sS", "--noproxy", "*", "--http2", "-d", ASKED.decode(), "-w", " %{http_version}", f"{server.url}/api/generate"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=PATIENCE, check=True)
    text, _, version = done.stdout.rpartition(" ")
    assert json.loads(text)["response"].split() == ["a", "b", "c"]
    assert version == "1.1"
