"""The front's side of the egress probe: real targets to reach, and what really arrived at them.

`with Targets(runner.decoy) as targets:` makes listeners on loopback, Unix listeners, a file and a folder.
`runner.probe(targets.addresses)` lets a runner try every route (`egress.py`); `egress.attempt` tries them from this process.
Nothing is sent beyond this machine, and no file is changed except the runner's decoy.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import socket
import tempfile
from pathlib import Path
from types import TracebackType

from ndani.errors import Failed
from ndani.runtime.egress import Addresses
from ndani.runtime.folder import is_utf8

#: Used where a machine lacks a loopback address (IPv6 may be off): nothing listens on this port.
_CLOSED_PORT = 1
#: The content of a decoy file.
_DECOY_CONTENT = b"weights"


def create_decoy(path: Path) -> int:
    """Create a file that a runner inherits like its weights. Returns a descriptor open for reading. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, _DECOY_CONTENT)
    finally:
        os.close(descriptor)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


class Targets:
    """A real target at the end of every route. A probe sends only the name of its route.

    `decoy` is the file that a runner has open in place of weights to attack; without a runner, one is made here.
    """

    def __init__(self, decoy: Path | None = None) -> None:
        self._decoy, self._decoy_descriptor = decoy, -1
        self._listeners: list[socket.socket] = []
        self._datagram_sockets: list[socket.socket] = []
        self._folder = Path()
        self.addresses: Addresses

    def __enter__(self) -> Targets:
        """Create the targets. Raises Failed when this machine has no room for them."""
        try:
            # mkdtemp gives it mode 0700. A runner has the same user, so only its jail keeps it out.
            self._folder = Path(tempfile.mkdtemp(prefix="ndani-probe-"))
            if not is_utf8(self._folder):
                raise OSError(errno.EILSEQ, os.strerror(errno.EILSEQ))
            self._create()
        except OSError as error:
            self._remove()
            sentence = f"a probe needs a folder and files in {tempfile.gettempdir()}, and they cannot be made ({error.strerror})"
            raise Failed(f"{sentence}; make room there, or set TMPDIR to another") from None
        return self

    def _create(self) -> None:
        abstract = f"ndani-probe-{secrets.token_hex(8)}"
        path = str(self._folder / "listener")
        if self._decoy is None:
            self._decoy = self._folder / "decoy"
            self._decoy_descriptor = create_decoy(self._decoy)
        self.addresses = Addresses(
            tcp4=self._listen(socket.AF_INET, ("127.0.0.1", 0)),
            tcp6=self._listen(socket.AF_INET6, ("::1", 0)),
            other=self._listen(socket.AF_INET, ("127.0.0.1", 0)),
            udp4=self._bind_datagram(socket.AF_INET, ("127.0.0.1", 0)),
            udp6=self._bind_datagram(socket.AF_INET6, ("::1", 0)),
            path=path,
            abstract=abstract,
            readable=str(self._user_file()),
            folder=str(self._folder),
            server=os.getpid(),
            decoy=self._decoy_descriptor,
        )
        if hasattr(socket, "AF_UNIX"):
            self._listen(socket.AF_UNIX, path)
            with contextlib.suppress(OSError):  # abstract names are Linux only
                self._listen(socket.AF_UNIX, "\0" + abstract)

    def __exit__(self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._remove()

    def _remove(self) -> None:
        for sock in (*self._listeners, *self._datagram_sockets):
            sock.close()
        if self._decoy_descriptor >= 0:
            os.close(self._decoy_descriptor)
        if self._folder != Path():
            shutil.rmtree(self._folder, ignore_errors=True)

    def arrived(self) -> set[str]:
        """Names of the routes whose data or files really arrived since the last call."""
        reached = set()
        for receiver in self._datagram_sockets:
            with contextlib.suppress(BlockingIOError):
                while True:
                    reached.add(receiver.recv(64).decode(errors="replace"))
        for listener in self._listeners:
            with contextlib.suppress(BlockingIOError):
                while True:
                    reached |= self._accept(listener)
        if (self._folder / "written").exists():
            (self._folder / "written").unlink()
            reached.add("write to a temporary folder")
        return reached | self._decoy_attacks()

    def _decoy_attacks(self) -> set[str]:
        """Names of the routes that changed the decoy. Restores its content."""
        if self._decoy is None or not self._decoy.exists():  # the runner that owned it has exited
            return set()
        reached: set[str] = set()
        content = self._decoy.read_bytes()
        if content == _DECOY_CONTENT:
            return reached
        if len(content) < len(_DECOY_CONTENT):
            reached.add("empty its weights")
        if content.startswith(b"?"):
            reached.add("write to its weights")
        self._decoy.write_bytes(_DECOY_CONTENT)
        return reached

    @staticmethod
    def _accept(listener: socket.socket) -> set[str]:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(0.2)
            try:
                return {connection.recv(64).decode(errors="replace")}
            except TimeoutError:
                return {"somebody who said nothing"}

    def _listen(self, family: int, address: tuple[str, int] | str) -> int:
        return self._bind(family, socket.SOCK_STREAM, address, self._listeners)

    def _bind_datagram(self, family: int, address: tuple[str, int]) -> int:
        return self._bind(family, socket.SOCK_DGRAM, address, self._datagram_sockets)

    @staticmethod
    def _bind(family: int, socket_type: int, address: tuple[str, int] | str, sockets: list[socket.socket]) -> int:
        sock: socket.socket | None = None
        try:
            sock = socket.socket(family, socket_type)
            sock.bind(address)
            if socket_type == socket.SOCK_STREAM:
                sock.listen(16)
        except OSError:
            if sock is not None:
                sock.close()
            return _CLOSED_PORT
        sock.setblocking(False)
        sockets.append(sock)
        name = sock.getsockname()
        return int(name[1]) if isinstance(name, tuple) else 0

    def _user_file(self) -> Path:
        """A real file in the user's home; if there is none that can be read, a new file of the user elsewhere."""
        with contextlib.suppress(OSError, RuntimeError):
            for entry in sorted(Path.home().iterdir()):
                if entry.is_file() and is_utf8(entry):
                    with contextlib.suppress(OSError), entry.open("rb"):
                        return entry
        readable = self._folder / "readable"
        readable.write_bytes(b"a file of the user")
        return readable
