"""The front's side of the egress probe: real targets to reach, and what really arrived at them.

`with Targets(runner.spare) as targets:` makes listeners on loopback, Unix listeners, a file and a folder; `runner.probe(
targets.addresses)` has a runner try every route (`routes.py`), `routes.attempt` tries the same from here. Nothing is
sent beyond this machine, and no file is harmed but the runner's spare one.
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
from ndani.runtime.folder import is_text
from ndani.runtime.routes import Addresses

#: The port named where a machine has no such loopback (IPv6 may be off): nothing listens there.
_NOBODY = 1
#: What a spare file holds.
_WHOLE = b"weights"


def lay_spare(path: Path) -> int:
    """Make a file that a runner gets as it gets its weights; a descriptor, open for reading. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, _WHOLE)
    finally:
        os.close(descriptor)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


class Targets:
    """Something real at the end of every route. Sizes are small: a probe sends its route's name and nothing else.

    `spare` is the file that a runner was given to be harmed in place of its weights; without a runner one is made here.
    """

    def __init__(self, spare: Path | None = None) -> None:
        self._spare, self._held = spare, -1
        self._listeners: list[socket.socket] = []
        self._mailboxes: list[socket.socket] = []
        self._folder = Path()
        self.addresses: Addresses

    def __enter__(self) -> Targets:
        """Make them. Raises Failed when this machine has no room for them."""
        try:
            # Mode 0700 as mkdtemp makes it; a runner of the same user has no other bar to it than its jail.
            self._folder = Path(tempfile.mkdtemp(prefix="ndani-probe-"))
            if not is_text(self._folder):
                raise OSError(errno.EILSEQ, os.strerror(errno.EILSEQ))
            self._make()
        except OSError as error:
            self._clear()
            sentence = f"a probe needs a folder and files in {tempfile.gettempdir()}, and they cannot be made ({error.strerror})"
            raise Failed(f"{sentence}; make room there, or set TMPDIR to another") from None
        return self

    def _make(self) -> None:
        abstract = f"ndani-probe-{secrets.token_hex(8)}"
        path = str(self._folder / "listener")
        if self._spare is None:
            self._spare = self._folder / "spare"
            self._held = lay_spare(self._spare)
        self.addresses = Addresses(
            tcp4=self._listen(socket.AF_INET, ("127.0.0.1", 0)),
            tcp6=self._listen(socket.AF_INET6, ("::1", 0)),
            other=self._listen(socket.AF_INET, ("127.0.0.1", 0)),
            udp4=self._receive(socket.AF_INET, ("127.0.0.1", 0)),
            udp6=self._receive(socket.AF_INET6, ("::1", 0)),
            path=path,
            abstract=abstract,
            readable=str(self._file_of_the_user()),
            folder=str(self._folder),
            server=os.getpid(),
            spare=self._held,
        )
        if hasattr(socket, "AF_UNIX"):
            self._listen(socket.AF_UNIX, path)
            with contextlib.suppress(OSError):  # abstract names are Linux only
                self._listen(socket.AF_UNIX, "\0" + abstract)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._clear()

    def _clear(self) -> None:
        for end in (*self._listeners, *self._mailboxes):
            end.close()
        if self._held >= 0:
            os.close(self._held)
        if self._folder != Path():
            shutil.rmtree(self._folder, ignore_errors=True)

    def arrived(self) -> set[str]:
        """Names of the routes whose words, or files, really came here since the targets were made or last asked."""
        names = set()
        for mailbox in self._mailboxes:
            with contextlib.suppress(BlockingIOError):
                while True:
                    names.add(mailbox.recv(64).decode(errors="replace"))
        for listener in self._listeners:
            with contextlib.suppress(BlockingIOError):
                while True:
                    names |= self._hear(listener)
        if (self._folder / "written").exists():
            (self._folder / "written").unlink()
            names.add("write to a temporary folder")
        return names | self._harm()

    def _harm(self) -> set[str]:
        """What was done to the spare file, which is then whole again."""
        if self._spare is None or not self._spare.exists():  # a runner's, and it has left
            return set()
        names: set[str] = set()
        found = self._spare.read_bytes()
        if found == _WHOLE:
            return names
        if len(found) < len(_WHOLE):
            names.add("empty its weights")
        if found.startswith(b"?"):
            names.add("write to its weights")
        self._spare.write_bytes(_WHOLE)
        return names

    @staticmethod
    def _hear(listener: socket.socket) -> set[str]:
        caller, _ = listener.accept()
        with caller:
            caller.settimeout(0.2)
            try:
                return {caller.recv(64).decode(errors="replace")}
            except TimeoutError:
                return {"somebody who said nothing"}

    def _listen(self, family: int, address: tuple[str, int] | str) -> int:
        return self._bind(family, socket.SOCK_STREAM, address, self._listeners)

    def _receive(self, family: int, address: tuple[str, int]) -> int:
        return self._bind(family, socket.SOCK_DGRAM, address, self._mailboxes)

    @staticmethod
    def _bind(family: int, kind: int, address: tuple[str, int] | str, kept: list[socket.socket]) -> int:
        end: socket.socket | None = None
        try:
            end = socket.socket(family, kind)
            end.bind(address)
            if kind == socket.SOCK_STREAM:
                end.listen(16)
        except OSError:
            if end is not None:
                end.close()
            return _NOBODY
        end.setblocking(False)
        kept.append(end)
        name = end.getsockname()
        return int(name[1]) if isinstance(name, tuple) else 0

    def _file_of_the_user(self) -> Path:
        """A file that is really in the user's home; where the home has none that can be read, one of the user's elsewhere."""
        with contextlib.suppress(OSError, RuntimeError):
            for entry in sorted(Path.home().iterdir()):
                if entry.is_file() and is_text(entry):
                    with contextlib.suppress(OSError), entry.open("rb"):
                        return entry
        spare = self._folder / "readable"
        spare.write_bytes(b"a file of the user")
        return spare
