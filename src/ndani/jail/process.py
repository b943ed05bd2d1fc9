"""A child of ours that is to be jailed, seen from both ends: how it is started, and the two pipes over which it is spoken to.

What is said over them is each child's own (`runtime/child.py`, `convert/worker.py`), but for the three words that all
of them say before the first foreign byte is read. The pipe of commands is also the child's lifeline.
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

#: What a child gets of our environment: how libraries are found and how many threads they start. No secrets.
_PASSED = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TZ")
_PASSED_PREFIXES = ("OMP_", "GOMP_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "GGML_", "KMP_")
_ALWAYS = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
#: How long a computing thread spins for its fellows before it sleeps. Where a core has something else to do as well,
#: libgomp's own 300,000 turns let threads spin away each other's time: two answers at once on two cores made 7 tokens
#: a second each, and 40 with 5,000 turns, which cost nothing where nothing else runs. The user's own value counts.
_DEFAULTS = {"GOMP_SPINCOUNT": "5000"}
#: Letters of a sentence that go into one line: as JSON and at its worst they fit a pipe's buffer.
_MAX_SENTENCE = 1000


class Jailed(msgspec.Struct, frozen=True, tag="jailed"):
    """From the child: the jail is shut."""

    confinement: Confinement


class Open(msgspec.Struct, frozen=True, tag="open"):
    """From whoever started it: the jail was seen to hold, open what is foreign."""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """From the child: it cannot go on. A code of `errors.tree()` and a sentence of ours."""

    code: str
    sentence: str


class Pipes:
    """The two pipes to whoever started this process. Lines of JSON, each shorter than a pipe's buffer."""

    def __init__(self, commands: int, events: int) -> None:
        self._commands, self._events = commands, events
        self._held = b""

    def read_line(self) -> bytes:
        """The next line from there; never returns when nobody is there any more."""
        while b"\n" not in self._held:
            piece = os.read(self._commands, 65536)
            if not piece:
                os._exit(0)  # the lifeline is cut
            self._held += piece
        line, _, self._held = self._held.partition(b"\n")
        return line

    def send(self, event: msgspec.Struct) -> None:
        """Say it; when nobody is there to hear it, this process ends. A sentence that quotes too much is cut."""
        if isinstance(event, Refused):  # its words may come from foreign files, with halves of letters that no JSON holds
            event = Refused(event.code, event.sentence[:_MAX_SENTENCE].encode("utf-8", "replace").decode())
        try:
            os.write(self._events, msgspec.json.encode(event) + b"\n")
        except OSError:
            os._exit(0)


def start_child(module: str, order: msgspec.Struct, inherited: tuple[int, ...] = ()) -> tuple[subprocess.Popen[bytes], int, int]:
    """Start a child of ours in a module, with two pipes, its first line and these descriptors: the process, its commands, its events.

    The two descriptors are ours to close; the commands' end is the child's lifeline. Raises OSError when there is no process to be had.
    """
    first = msgspec.json.encode(order) + b"\n"  # before there is anything that an error would leave behind
    theirs_in, ours_out = os.pipe()
    try:
        ours_in, theirs_out = os.pipe()
    except OSError:  # there are no descriptors left: two less would not help
        os.close(theirs_in)
        os.close(ours_out)
        raise
    try:
        # Blocks for the milliseconds of a vfork; on a thread of a pool the child would die with that thread.
        process = subprocess.Popen(
            [sys.executable, "-I", "-m", module, str(theirs_in), str(theirs_out)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs_in, theirs_out, *inherited),
            env=child_environment(os.environ),
            cwd="/" if os.name == "posix" else None,
            start_new_session=True,  # a terminal's Ctrl-C is for the front
        )
    except OSError:
        os.close(ours_out)
        os.close(ours_in)
        raise
    finally:
        os.close(theirs_in)
        os.close(theirs_out)
    with contextlib.suppress(BrokenPipeError):  # it is gone, which whoever waits for its first word hears
        os.write(ours_out, first)
    os.set_blocking(ours_out, False)  # from now on it may read foreign bytes, and obey them
    return process, ours_out, ours_in


def send_command(process: subprocess.Popen[bytes], commands: int, line: msgspec.Struct) -> bool:
    """Write a child a line. One that does not read what it is told is not ours any more, and is killed: then False."""
    text = msgspec.json.encode(line) + b"\n"
    try:
        taken = os.write(commands, text) == len(text)
    except BrokenPipeError:  # it is gone, which whoever waits for an answer hears
        return True
    except BlockingIOError:
        taken = False
    if not taken:
        process.kill()
    return taken


def describe_exit(code: int) -> str:
    """How a child ended, by its exit code, in a few words: below zero it was a signal, and not every signal has a name."""
    if code >= 0:
        return f"ended by itself (exit code {code})"
    try:
        return f"crashed ({signal.Signals(-code).name})"
    except ValueError:
        return f"crashed (signal {-code})"


def child_environment(outer: Mapping[str, str]) -> dict[str, str]:
    """The few variables a child needs of ours, and the switches that keep libraries from reporting home."""
    passed = {name: value for name, value in outer.items() if name in _PASSED or name.startswith(_PASSED_PREFIXES)}
    return _DEFAULTS | passed | _ALWAYS
