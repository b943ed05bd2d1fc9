"""The command line's own way to the server: HTTP with the standard library, and nothing else.

It calls only the address that the user configured (`NDANI_HOST`, `OLLAMA_HOST`), directly: no proxy is ever asked, so
that a prompt takes no detour. It is not asynchronous: one command, one request. `aiohttp` would cost each `ndani list`
a fifth of a second before its first byte.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from collections.abc import Callable, Generator
from typing import Any, BinaryIO

from ndani import __version__
from ndani.errors import BadRequest, Busy, Cancelled, Failed, Forbidden, NdaniError, NoServer, NotFound, TooLarge
from ndani.hosts import resolves_to_loopback
from ndani.settings import Settings

_CONNECT_S = 10.0
_PIECE = 1 << 20
_NO_TEXT = re.compile("[\ud800-\udfff]")
_BY_STATUS: dict[int, type[NdaniError]] = {
    400: BadRequest,
    403: Forbidden,
    404: NotFound,
    413: TooLarge,
    499: Cancelled,
    503: Busy,
}


class ServerClient:
    """Calls one server. Every method raises NoServer when nobody answers, and the server's own sentence as an error."""

    def __init__(self, settings: Settings) -> None:
        self.url = settings.url
        self._secure = self.url.startswith("https://")
        self._host, self._port = settings.client_address
        self._met = False  # whether a server has answered once
        # A path behind the address (a server behind a gateway) is kept, as Ollama keeps it.
        _, _, path = settings.host.strip().rpartition("://")[2].partition("/")
        self._path = f"/{path.strip('/')}" if path.strip("/") else ""

    @property
    def local(self) -> bool:
        """Whether the address is this machine's own loopback, over plain HTTP and without a path."""
        return not (self._secure or self._path) and resolves_to_loopback(self._host)

    def alive(self, patience: float | None = None) -> bool:
        """Whether a server answers there; False when the connection is refused.

        Raises NoServer when the address does not exist, or takes the connection and says nothing for `patience` seconds (ten,
        where none are said).
        """
        try:
            connection = self._open(_CONNECT_S if patience is None else patience)
        except ConnectionError:
            return False
        except OSError as error:
            raise NoServer(f"could not connect to the ndani server at {self.url} ({_reason(error)})") from None
        try:
            with contextlib.closing(connection):
                connection.request("HEAD", f"{self._path}/")
                connection.getresponse().read()
        except ConnectionError:
            return False
        except (OSError, http.client.HTTPException) as error:
            raise NoServer(f"what listens at {self.url} does not answer as a server would ({_reason(error)})") from None
        self._met = True
        return True

    def ask(self, method: str, path: str, body: Any = None, *, holds: str = "") -> dict[str, Any]:
        """One request and its whole answer, an object of JSON that has a field `holds`, if that is said."""
        answer = self._object(self._whole(method, path, body))
        if holds and holds not in answer:
            raise Failed(self._foreign)
        return answer

    def models(self, path: str) -> dict[str, Any]:
        """An answer whose `models` is a list of models, each with a `name`."""
        answer = self.ask("GET", path, holds="models")
        answer["models"] = answer["models"] or []
        if not all(isinstance(model, dict) and isinstance(model.get("name"), str) for model in answer["models"]):
            raise Failed(self._foreign)
        return answer

    def tell(self, method: str, path: str, body: Any = None) -> None:
        """One request that is answered by nothing but its success."""
        if self._whole(method, path, body).strip():
            raise Failed(self._foreign)

    def stream(self, path: str, body: Any) -> Generator[dict[str, Any]]:
        """A POST and its answer line by line; a line that holds an error is raised. Closing it hangs up, which stops the work."""
        with contextlib.closing(self._connect()) as connection:
            answer = self._send(connection, "POST", path, body)
            while line := self._received(answer.readline):
                if not line.strip():
                    continue
                event = self._object(line)
                if "error" in event:
                    raise Failed(_sentence(event) or "the server gave an error without words")
                yield event

    def upload(self, path: str, file: BinaryIO, size: int) -> Generator[int]:
        """POST a file's bytes as they are; yields how many are on their way. Raises what the server says of them."""
        with contextlib.closing(self._connect()) as connection:
            try:
                connection.putrequest("POST", self._path + path)
                connection.putheader("User-Agent", f"ndani/{__version__}")
                connection.putheader("Content-Type", "application/octet-stream")
                connection.putheader("Content-Length", str(size))
                connection.endheaders()
                sent = 0
                # No more than was said: a file that grows in the meantime is another file.
                with contextlib.suppress(ConnectionError):  # a server that has refused says why before it hangs up
                    while piece := file.read(min(_PIECE, size - sent)):
                        connection.send(piece)
                        sent += len(piece)
                        yield sent
                    if sent < size:
                        raise Failed("the file became shorter while it was sent; run the command again")
                self._require_success(connection.getresponse())
            except (OSError, http.client.HTTPException) as error:
                raise NoServer(f"the connection to {self.url} broke off before an answer ({_reason(error)})") from None

    def _whole(self, method: str, path: str, body: Any) -> bytes:
        with contextlib.closing(self._connect()) as connection:
            return self._received(self._send(connection, method, path, body).read)

    def _object(self, text: bytes) -> dict[str, Any]:
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(found := json.loads(text), dict):
                return found
        if text.startswith(b"{") and not text.endswith(b"\n"):
            raise Failed("the server broke off in the middle of a line; its log says why")
        raise Failed(self._foreign)

    @property
    def _foreign(self) -> str:
        return f"what listens at {self.url} answered something else than a server of ndani's would; is it one?"

    def _received(self, read: Callable[[], bytes]) -> bytes:
        try:
            return read()
        except (OSError, http.client.HTTPException) as error:
            raise Failed(f"the connection to {self.url} broke off ({_reason(error)})") from None

    def _open(self, timeout: float) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=timeout)
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect(self) -> http.client.HTTPConnection:
        if not self._met:
            self.alive()  # as Ollama does, before each command: what listens there and says nothing is found out
        try:
            connection = self._open(_CONNECT_S)
        except ConnectionRefusedError:
            raise NoServer(self.absent) from None
        except OSError as error:
            raise NoServer(f"could not connect to the ndani server at {self.url} ({_reason(error)})") from None
        # What has answered once has no limit: a model may take minutes to load, and Ctrl-C ends every wait.
        connection.sock.settimeout(None)
        return connection

    @property
    def absent(self) -> str:
        """The sentence for "nobody is there"."""
        if self.local:
            return "could not connect to ndani server, run 'ndani serve' to start it"
        return f"could not connect to the ndani server at {self.url}; is it running there?"

    def _send(self, connection: http.client.HTTPConnection, method: str, path: str, body: Any) -> http.client.HTTPResponse:
        headers = {"User-Agent": f"ndani/{__version__}", "Accept": "application/x-ndjson, application/json"}
        data = None
        if body is not None:
            # Bytes of a command line that are no text would be refused as broken JSON.
            data = _NO_TEXT.sub("\ufffd", json.dumps(body, ensure_ascii=False)).encode()
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, self._path + path, data, headers)
            answer = connection.getresponse()
            self._require_success(answer)
        except (OSError, http.client.HTTPException) as error:
            raise NoServer(f"the connection to {self.url} broke off before an answer ({_reason(error)})") from None
        return answer

    def _require_success(self, answer: http.client.HTTPResponse) -> None:
        if 200 <= answer.status < 300:
            return
        text, body = answer.read(), None
        with contextlib.suppress(ValueError, RecursionError):
            body = json.loads(text)
        if sentence := _sentence(body):
            raise _BY_STATUS.get(answer.status, Failed)(sentence)
        # What else is said is no sentence of ours, such as the page of a web server.
        kind = _BY_STATUS.get(answer.status, Failed) if not text.strip() else Failed
        raise kind(f"what listens at {self.url} answered with {answer.status} {answer.reason} and no sentence; is it an ndani server?")


def _sentence(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    return str(error) if error else ""


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return "no such host"
    if isinstance(error, http.client.HTTPException) and not isinstance(error, ConnectionError):
        return "the answer is cut short" if isinstance(error, http.client.IncompleteRead) else "that is no HTTP"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
