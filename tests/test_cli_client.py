"""The command line's way to the server, against programs that are none of ours, that say nothing, and that die."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from ndani.cli import client as clients
from ndani.cli import main
from ndani.cli.client import ServerClient
from ndani.errors import Failed, NdaniError, NoServer
from ndani.settings import load

pytestmark = pytest.mark.slow  # servers of its own

#: Answers of programs that are no server of ours: status, body.
FOREIGN = {
    "a page": (200, b"<html><body>Hello</body></html>\n"),
    "no page": (404, b"<html>\n<h1>Not here</h1></html>"),
    "another place": (302, b""),
    "a list": (200, b"[1,2]\n"),
    "a word": (200, b'"x"\n'),
    "another object": (200, b'{"a":1}\n'),
    "nothing said": (200, b"null\n"),
    "other models": (200, b'{"models":[{"a":1}]}\n'),
    "no text": (200, b"\xff\xfe\n"),
    "another error": (500, b'{"detail":"x"}'),
}


@contextlib.contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A web server that answers everything alike; its address."""

    class Alike(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.send_response(status)
            self.send_header("location", "/elsewhere")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Alike) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def talking(answer: Callable[[socket.socket, bytes], None]) -> Iterator[str]:
    """A program that treats each connection as `answer` does, with the first bytes that came; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    met, _ = listener.accept()
                    with met:
                        answer(met, met.recv(65536))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def to(address: str) -> ServerClient:
    return ServerClient(load({"NDANI_HOST": address}))


GREETED = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("argv", [("list",), ("ps",), ("show", "x"), ("stop", "x"), ("rm", "x"), ("cp", "a", "b")])
def test_what_is_no_server_of_ours_is_said(
    kind: str, argv: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(*FOREIGN[kind]) as address:
        monkeypatch.setenv("NDANI_HOST", address)
        assert main(list(argv)) == 1
    got = capsys.readouterr()
    assert got.out == ""
    assert got.err.startswith(f"Error: what listens at http://{address} answered ")
    assert got.err.count("\n") == 1
    assert "<" not in got.err


@pytest.mark.parametrize("kind", sorted(set(FOREIGN) - {"another object", "other models"}))
def test_a_stream_of_what_is_no_server_of_ours(kind: str) -> None:
    with answering(*FOREIGN[kind]) as address, pytest.raises(NdaniError, match=r"^what listens at .* answered"):
        list(to(address).stream("/api/pull", {}))


def test_a_sentence_of_a_server_is_passed_on() -> None:
    with answering(404, b'{"error":"model \'x\' not found"}') as address, pytest.raises(NdaniError, match=r"^model 'x' not found$"):
        to(address).request_json("POST", "/api/show", {"model": "x"})


@pytest.mark.parametrize(("reset", "reason"), [(False, "the answer is cut short"), (True, "Connection reset by peer")])
def test_a_server_that_dies_in_a_short_answer(reset: bool, reason: str) -> None:
    def die(met: socket.socket, asked: bytes) -> None:
        if asked.startswith(b"HEAD"):
            met.sendall(GREETED)
            return
        met.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{"models":')
        if reset:
            time.sleep(0.2)  # what was sent is read before the reset comes
            met.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with talking(die) as address, pytest.raises(Failed) as met:
        to(address).request_json("GET", "/api/tags")
    assert str(met.value) == f"the connection to http://{address} broke off ({reason})"


def test_a_line_that_is_cut() -> None:
    def cut(met: socket.socket, asked: bytes) -> None:
        met.sendall(GREETED if asked.startswith(b"HEAD") else b'HTTP/1.1 200 OK\r\n\r\n{"status":"pulling"}\n{"stat')
        met.shutdown(socket.SHUT_WR)
        while met.recv(65536):  # what is left unread would make a reset of the goodbye
            pass

    with talking(cut) as address:
        events = to(address).stream("/api/pull", {})
        assert next(events) == {"status": "pulling"}
        with pytest.raises(Failed, match="broke off in the middle of a line"):
            next(events)


def test_what_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_CONNECT_TIMEOUT_S", 0.2)
    over = threading.Event()
    with talking(lambda met, asked: over.wait(60) and None) as address:
        try:
            with pytest.raises(NoServer, match=r"does not answer as a server would \(no answer in time\)"):
                to(address).request_json("GET", "/api/tags")
        finally:
            over.set()


@pytest.mark.slow
def test_what_has_answered_once_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_CONNECT_TIMEOUT_S", 0.2)
    asked_for: list[bytes] = []

    def slow(met: socket.socket, asked: bytes) -> None:
        asked_for.append(asked.split(b" ")[0])
        if asked.startswith(b"HEAD"):
            met.sendall(GREETED)
            return
        time.sleep(0.6)
        met.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    with talking(slow) as address:
        client = to(address)
        assert client.request_json("GET", "/a") == {} == client.request_json("GET", "/b")
    assert asked_for == [b"HEAD", b"GET", b"GET"], "it is greeted once"


def test_a_program_that_speaks_something_else() -> None:
    sentence = r"does not answer as a server would \(that is no HTTP\)"
    with talking(lambda met, asked: met.sendall(b"SSH-2.0-OpenSSH_9\r\n")) as address, pytest.raises(NoServer, match=sentence):
        to(address).request_json("GET", "/api/tags")


def test_bytes_that_are_no_text_are_sent_as_such() -> None:
    bodies: list[bytes] = []

    def keep(met: socket.socket, asked: bytes) -> None:
        if not asked.startswith(b"HEAD"):
            while not asked.endswith(b"}"):
                asked += met.recv(65536)
            bodies.append(asked.partition(b"\r\n\r\n")[2])
        met.sendall(GREETED)

    with talking(keep) as address:
        to(address).request_empty("POST", "/api/copy", {"source": "\u00fcb\udcff"})
    assert json.loads(bodies[0].decode("utf-8")) == {"source": "\u00fcb\ufffd"}


def test_the_version_of_what_is_no_server_of_ours(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(*FOREIGN["a page"]) as address:
        monkeypatch.setenv("NDANI_HOST", address)
        assert main(["--version=true"]) == 0
    assert capsys.readouterr().out.startswith("Warning: could not connect to a running ndani instance\n")
    monkeypatch.setenv("NDANI_HOST", "h:x")
    assert main(["--version"]) == 1
    assert capsys.readouterr().err == "Error: 'h:x' is not an address to listen on; write it as 127.0.0.1:11434\n"


@pytest.mark.parametrize(
    ("written", "here"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("127.1", True),
        ("2130706433", True),
        ("[::1]", True),
        ("10.1", False),
        ("192.0.2.1", False),
    ],
)
def test_an_address_is_this_machines_own_however_it_is_written(written: str, here: bool) -> None:
    assert ServerClient(load({"NDANI_HOST": f"{written}:9"})).is_local == here


@pytest.mark.parametrize(
    ("written", "warned"), [("127.0.0.1", False), ("127.1", False), ("0x7f.1", False), ("localhost", False), ("0", True)]
)
def test_a_mirror_warns_of_others_only_where_they_reach_it(written: str, warned: bool) -> None:
    """Its port is taken, so that it says what it has to say and ends."""
    with socket.create_server(("0.0.0.0" if warned else "127.0.0.1", 0)) as taken:
        host = f"{written}:{taken.getsockname()[1]}"
        ended = subprocess.run([sys.executable, "-m", "ndani", "mirror", "--host", host], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "already in use" in ended.stderr
    assert ("anyone who reaches" in ended.stderr) == warned
