"""The HTTP client of the command line, on the standard library alone.

It connects only to the address that the user configured (`NDANI_HOST`, `OLLAMA_HOST`). It never uses a proxy, so that a
prompt passes through no other machine. It is synchronous, because a command sends one request at a time; importing `aiohttp`
would add a fifth of a second to each `ndani list`.
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

_CONNECT_TIMEOUT_S = 10.0
_CHUNK_BYTES = 1 << 20
#: Lone surrogates: Python reads bytes of a command line that are not UTF-8 as these.
_SURROGATES = re.compile("[\ud800-\udfff]")
_ERROR_BY_STATUS: dict[int, type[NdaniError]] = {
    400: BadRequest,
    403: Forbidden,
    404: NotFound,
    413: TooLarge,
    499: Cancelled,
    503: Busy,
}


class ServerClient:
    """A client of one server. Every method raises NoServer when no server answers, and the error that the server reports."""

    def __init__(self, settings: Settings) -> None:
        self.url = settings.url
        self._secure = self.url.startswith("https://")
        self._host, self._port = settings.client_address
        self._has_answered = False
        # The path of the address (a server behind a gateway) is a prefix of every request, as in Ollama.
        _, _, path = settings.host.strip().rpartition("://")[2].partition("/")
        self._path = f"/{path.strip('/')}" if path.strip("/") else ""

    @property
    def is_local(self) -> bool:
        """Whether the address is a loopback address of this machine, over plain HTTP and without a path."""
        return not (self._secure or self._path) and resolves_to_loopback(self._host)

    def is_alive(self, timeout: float | None = None) -> bool:
        """Whether a server answers; False when the connection is refused.

        Raises NoServer when the host does not exist, or when something accepts the connection and does not answer within
        `timeout` seconds (by default ten).
        """
        try:
            connection = self._open(_CONNECT_TIMEOUT_S if timeout is None else timeout)
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
        self._has_answered = True
        return True

    def request_json(self, method: str, path: str, body: Any = None, *, required_field: str = "") -> dict[str, Any]:
        """Send a request and return its JSON object. Raises Failed when the object has no `required_field`."""
        response = self._parse_object(self._read_all(method, path, body))
        if required_field and required_field not in response:
            raise Failed(self._not_ndani_message)
        return response

    def request_names(self, path: str) -> list[str]:
        """GET a route that answers with a list of names."""
        names = self._parse_list(self._read_all("GET", path, None))
        if not all(isinstance(name, str) for name in names):
            raise Failed(self._not_ndani_message)
        return names

    def request_records(self, path: str) -> list[dict[str, Any]]:
        """GET a route that answers with a list of objects."""
        records = self._parse_list(self._read_all("GET", path, None))
        if not all(isinstance(record, dict) for record in records):
            raise Failed(self._not_ndani_message)
        return records

    def list_models(self, path: str) -> dict[str, Any]:
        """Return the answer of a route that lists models: its `models` is a list of objects, each with a `name`."""
        response = self.request_json("GET", path, required_field="models")
        response["models"] = response["models"] or []
        if not all(isinstance(model, dict) and isinstance(model.get("name"), str) for model in response["models"]):
            raise Failed(self._not_ndani_message)
        return response

    def request_empty(self, method: str, path: str, body: Any = None) -> None:
        """Send a request whose successful response has an empty body."""
        if self._read_all(method, path, body).strip():
            raise Failed(self._not_ndani_message)

    def stream(self, path: str, body: Any) -> Generator[dict[str, Any]]:
        """POST and yield the response line by line; a line that is an error is raised. Closing the generator cancels the work."""
        with contextlib.closing(self._connect()) as connection:
            response = self._send(connection, "POST", path, body)
            while line := self._receive(response.readline):
                if not line.strip():
                    continue
                event = self._parse_object(line)
                if "error" in event:
                    raise Failed(_error_message(event) or "the server gave an error without words")
                yield event

    def upload(self, path: str, file: BinaryIO, size: int) -> Generator[int]:
        """POST the bytes of a file; yields how many are sent so far. Raises the error that the server reports."""
        with contextlib.closing(self._connect()) as connection:
            try:
                connection.putrequest("POST", self._path + path)
                connection.putheader("User-Agent", f"ndani/{__version__}")
                connection.putheader("Content-Type", "application/octet-stream")
                connection.putheader("Content-Length", str(size))
                connection.endheaders()
                sent = 0
                # Send no more than Content-Length: a file that grows meanwhile is no longer the file that was hashed.
                with contextlib.suppress(ConnectionError):  # a server that refuses the file sends its reason before it disconnects
                    while chunk := file.read(min(_CHUNK_BYTES, size - sent)):
                        connection.send(chunk)
                        sent += len(chunk)
                        yield sent
                    if sent < size:
                        raise Failed("the file became shorter while it was sent; run the command again")
                self._require_success(connection.getresponse())
            except (OSError, http.client.HTTPException) as error:
                raise NoServer(f"the connection to {self.url} broke off before an answer ({_reason(error)})") from None

    def _read_all(self, method: str, path: str, body: Any) -> bytes:
        with contextlib.closing(self._connect()) as connection:
            return self._receive(self._send(connection, method, path, body).read)

    def _parse_object(self, text: bytes) -> dict[str, Any]:
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(value := json.loads(text), dict):
                return value
        if text.startswith(b"{") and not text.endswith(b"\n"):
            raise Failed("the server broke off in the middle of a line; its log says why")
        raise Failed(self._not_ndani_message)

    def _parse_list(self, text: bytes) -> list[Any]:
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(value := json.loads(text), list):
                return value
        raise Failed(self._not_ndani_message)

    @property
    def _not_ndani_message(self) -> str:
        return f"what listens at {self.url} answered something else than a server of ndani's would; is it one?"

    def _receive(self, read: Callable[[], bytes]) -> bytes:
        try:
            return read()
        except (OSError, http.client.HTTPException) as error:
            raise Failed(f"the connection to {self.url} broke off ({_reason(error)})") from None

    def _open(self, timeout: float) -> http.client.HTTPConnection:
        connection_class = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = connection_class(self._host, self._port, timeout=timeout)
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect(self) -> http.client.HTTPConnection:
        if not self._has_answered:
            self.is_alive()  # as Ollama does before each command: detects a listener that never answers
        try:
            connection = self._open(_CONNECT_TIMEOUT_S)
        except ConnectionRefusedError:
            raise NoServer(self.absent_message) from None
        except OSError as error:
            raise NoServer(f"could not connect to the ndani server at {self.url} ({_reason(error)})") from None
        # No timeout for a server that has answered once: a model may take minutes to load, and Ctrl-C ends every wait.
        connection.sock.settimeout(None)
        return connection

    @property
    def absent_message(self) -> str:
        """The error message for a server that is not running."""
        if self.is_local:
            return "could not connect to ndani server, run 'ndani serve' to start it"
        return f"could not connect to the ndani server at {self.url}; is it running there?"

    def _send(self, connection: http.client.HTTPConnection, method: str, path: str, body: Any) -> http.client.HTTPResponse:
        headers = {"User-Agent": f"ndani/{__version__}", "Accept": "application/x-ndjson, application/json"}
        data = None
        if body is not None:
            # The server would reject surrogates as broken JSON.
            data = _SURROGATES.sub("\ufffd", json.dumps(body, ensure_ascii=False)).encode()
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, self._path + path, data, headers)
            response = connection.getresponse()
            self._require_success(response)
        except (OSError, http.client.HTTPException) as error:
            raise NoServer(f"the connection to {self.url} broke off before an answer ({_reason(error)})") from None
        return response

    def _require_success(self, response: http.client.HTTPResponse) -> None:
        if 200 <= response.status < 300:
            return
        text, body = response.read(), None
        with contextlib.suppress(ValueError, RecursionError):
            body = json.loads(text)
        if message := _error_message(body):
            raise _ERROR_BY_STATUS.get(response.status, Failed)(message)
        # Any other body is not an error of ndani's, for example the error page of a web server.
        error_class = Failed if text.strip() else _ERROR_BY_STATUS.get(response.status, Failed)
        status = f"{response.status} {response.reason}"
        raise error_class(f"what listens at {self.url} answered with {status} and no sentence; is it an ndani server?")


def _error_message(body: Any) -> str:
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
