"""The command line's own way to the server: HTTP with the standard library, and nothing else.

It calls only the address that the user configured (`NDANI_HOST`, `OLLAMA_HOST`), directly: no proxy is ever asked, so
that a prompt takes no detour. It is not asynchronous: one command, one request. `aiohttp` would cost each `ndani list`
a fifth of a second before its first byte.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import socket
from collections.abc import Generator
from typing import Any, BinaryIO

from ndani import __version__
from ndani.errors import BadRequest, Busy, Cancelled, Failed, Forbidden, NdaniError, NoServer, NotFound, TooLarge
from ndani.settings import Settings

_CONNECT_S = 10.0
_PIECE = 1 << 20
_BY_STATUS: dict[int, type[NdaniError]] = {
    400: BadRequest,
    403: Forbidden,
    404: NotFound,
    413: TooLarge,
    499: Cancelled,
    503: Busy,
}


class Client:
    """Calls one server. Every method raises NoServer when nobody answers, and the server's own sentence as an error."""

    def __init__(self, settings: Settings) -> None:
        self.url = settings.url
        self._secure = self.url.startswith("https://")
        host, port = settings.address
        self._host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
        self._port = port
        # A path behind the address (a server behind a gateway) is kept, as Ollama keeps it.
        _, _, path = settings.host.strip().rpartition("://")[2].partition("/")
        self._path = f"/{path.strip('/')}" if path.strip("/") else ""

    @property
    def local(self) -> bool:
        """Whether the address is this machine's own loopback, over plain HTTP and without a path."""
        if self._secure or self._path:
            return False
        if self._host == "localhost":
            return True
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(self._host).is_loopback
        return False

    def alive(self, patience: float = 10.0) -> bool:
        """Whether a server answers there; False when the connection is refused.

        Raises NoServer when the address does not exist, or takes the connection and says nothing for `patience` seconds.
        """
        try:
            with contextlib.closing(self._open(patience)) as connection:
                connection.request("HEAD", f"{self._path}/")
                connection.getresponse().read()
        except (ConnectionError, http.client.RemoteDisconnected):
            return False
        except (OSError, http.client.HTTPException) as error:
            raise NoServer(f"what listens at {self.url} does not answer as a server would ({_reason(error)})") from None
        return True

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """One request and its whole answer: decoded JSON, or None where the body is empty."""
        with contextlib.closing(self._connect()) as connection:
            text = self._send(connection, method, path, body).read()
        try:
            return json.loads(text) if text.strip() else None
        except ValueError:
            raise Failed(f"what listens at {self.url} answered something other than JSON; is it an ndani server?") from None

    def stream(self, path: str, body: Any) -> Generator[dict[str, Any]]:
        """A POST and its answer line by line; a line that holds an error is raised. Closing it hangs up, which stops the work."""
        with contextlib.closing(self._connect()) as connection:
            answer = self._send(connection, "POST", path, body)
            while line := self._line(answer):
                if not line.strip():
                    continue
                try:
                    event = json.loads(line)
                except ValueError:
                    raise Failed("the server broke off in the middle of a line; its log says why") from None
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
                answer = connection.getresponse()
                if answer.status >= 400:
                    raise self._error(answer)
            except (OSError, http.client.HTTPException) as error:
                raise NoServer(f"the connection to {self.url} broke off before an answer ({_reason(error)})") from None

    def _line(self, answer: http.client.HTTPResponse) -> bytes:
        try:
            return answer.readline()
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
        try:
            connection = self._open(_CONNECT_S)
        except ConnectionRefusedError:
            raise NoServer(self.absent) from None
        except OSError as error:
            raise NoServer(f"could not connect to the ndani server at {self.url} ({_reason(error)})") from None
        # Only connecting has a limit: a model may take minutes to load, and Ctrl-C ends every wait.
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
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, self._path + path, data, headers)
            answer = connection.getresponse()
            if answer.status >= 400:
                raise self._error(answer)
        except (OSError, http.client.HTTPException) as error:
            raise NoServer(f"the connection to {self.url} broke off before an answer ({_reason(error)})") from None
        return answer

    def _error(self, answer: http.client.HTTPResponse) -> NdaniError:
        text = answer.read().decode("utf-8", "replace").strip()
        try:
            sentence = _sentence(json.loads(text))
        except ValueError:
            sentence = text.splitlines()[0] if text else ""
        if not sentence:
            sentence = f"the server at {self.url} refused with {answer.status} {answer.reason} and no further word"
        return _BY_STATUS.get(answer.status, Failed)(sentence)


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
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
