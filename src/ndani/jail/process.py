"""Both ends of a jailed child process: how the parent starts it, and the two pipes between them.

Each child has its own messages (`runtime/runner_main.py`, `convert/worker_main.py`), except for the three here, which all of them use
before the first untrusted byte is read. The child exits when the pipe of commands is closed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping

import msgspec

from ndani.jail import Confinement

#: The variables that a child inherits: how libraries are found and how many threads they start. No secrets.
_PASSED = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TZ")
_PASSED_PREFIXES = ("OMP_", "GOMP_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "GGML_", "KMP_")
_ALWAYS = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
#: How long a computing thread spins for the others before it sleeps. On a core that other work needs too, libgomp's own
#: 300,000 turns waste the time of other threads: two answers at once on two cores made 7 tokens a second each, and 40 with
#: 5,000 turns. On an idle machine 5,000 turns cost nothing. A value set by the user takes precedence.
_DEFAULTS = {"GOMP_SPINCOUNT": "5000"}
#: Characters of a sentence in one line. Even with every character escaped, the JSON fits a pipe's buffer.
_MAX_SENTENCE = 1000


class Jailed(msgspec.Struct, frozen=True, tag="jailed"):
    """From the child: it is in the jail."""

    confinement: Confinement


class Open(msgspec.Struct, frozen=True, tag="open"):
    """From the parent: the jail is verified, the child may open untrusted files."""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """From the child: it cannot continue. A code of `errors.errors_by_code()` and a sentence for the user."""

    code: str
    sentence: str


class Pipes:
    """The child's ends of the two pipes. They carry lines of JSON, each shorter than a pipe's buffer."""

    def __init__(self, commands: int, events: int) -> None:
        self._commands, self._events = commands, events
        self._buffer = b""

    def read_line(self) -> bytes:
        """The next line from the parent. When the parent has closed the pipe, this process exits."""
        while b"\n" not in self._buffer:
            chunk = os.read(self._commands, 65536)
            if not chunk:
                os._exit(0)
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def send(self, event: msgspec.Struct) -> None:
        """Send an event; when the parent is gone, this process exits. A sentence that is too long is cut."""
        if isinstance(event, Refused):  # it may quote untrusted files, with lone surrogates that JSON cannot encode
            event = Refused(event.code, event.sentence[:_MAX_SENTENCE].encode("utf-8", "replace").decode())
        try:
            os.write(self._events, msgspec.json.encode(event) + b"\n")
        except OSError:
            os._exit(0)


def start_child(module: str, order: msgspec.Struct, inherited: tuple[int, ...] = ()) -> tuple[subprocess.Popen[bytes], int, int]:
    """Start a Python module as a child, with `order` as its first line; returns the process and the descriptors of commands and events.

    The caller closes the two descriptors; the child exits when the commands' one is closed. Raises OSError when no process
    can be started.
    """
    first_line = msgspec.json.encode(order) + b"\n"  # first, because an error here then leaves no descriptor open
    child_commands, commands = os.pipe()
    try:
        events, child_events = os.pipe()
    except OSError:  # there are no descriptors left
        os.close(child_commands)
        os.close(commands)
        raise
    try:
        # This blocks for milliseconds. In a pool's thread the child would be killed when that thread ends.
        process = subprocess.Popen(
            [sys.executable, "-I", "-m", module, str(child_commands), str(child_events)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(child_commands, child_events, *inherited),
            env=child_environment(os.environ),
            cwd="/" if os.name == "posix" else None,
            start_new_session=True,  # a terminal's Ctrl-C is for the front
        )
    except OSError:
        os.close(commands)
        os.close(events)
        raise
    finally:
        os.close(child_commands)
        os.close(child_events)
    with contextlib.suppress(BrokenPipeError):  # the child is gone; the caller sees that when it reads the events
        os.write(commands, first_line)
    os.set_blocking(commands, False)  # a compromised child that never reads must not block the server
    return process, commands, events


def send_command(process: subprocess.Popen[bytes], commands: int, command: msgspec.Struct) -> bool:
    """Send a child a command. False when its pipe is full: such a child is compromised, and is killed."""
    line = msgspec.json.encode(command) + b"\n"
    try:
        sent = os.write(commands, line) == len(line)
    except BrokenPipeError:  # the child is gone; the caller sees that when it reads the events
        return True
    except BlockingIOError:
        sent = False
    if not sent:
        process.kill()
    return sent


def describe_exit(code: int) -> str:
    """How a child ended, in a few words, from its exit code. A negative code is a signal, and not every signal has a name."""
    if code >= 0:
        return f"ended by itself (exit code {code})"
    try:
        return f"crashed ({signal.Signals(-code).name})"
    except ValueError:
        return f"crashed (signal {-code})"


def child_environment(outer: Mapping[str, str]) -> dict[str, str]:
    """The variables that a child needs of the parent's environment, and switches that turn off telemetry of libraries."""
    passed = {name: value for name, value in outer.items() if name in _PASSED or name.startswith(_PASSED_PREFIXES)}
    return _DEFAULTS | passed | _ALWAYS
