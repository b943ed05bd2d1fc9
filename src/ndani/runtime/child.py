"""The main of a runner process: `python -I -m ndani.runtime.child COMMANDS EVENTS` (two inherited descriptors).

RunnerOrder: libraries are imported, the jail shuts, the front looks at it from outside and says `open`, and only then are
the weights opened. After that this thread waits for commands; their end is the lifeline: when the front dies, however
it dies, the pipe closes and this process ends at once. Standard streams lead to /dev/null: native code prints on
them, and an engine's words quote prompts. Imports are few on purpose: all of them happen before the jail shuts.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Annotated

import msgspec

from ndani import engines, errors, jail
from ndani.jail.process import Jailed, Open, Pipes, Refused
from ndani.runtime import routes


class RunnerOrder(msgspec.Struct, frozen=True):
    """The first line a runner reads: what to run, the front's process id, whether a jail is required, and what it may take.

    `memory` are the bytes that this machine has left; `spare` is a descriptor of a file that is opened as weights are, for probes to harm.
    """

    launch: engines.Launch
    front: int
    require_jail: bool = False
    memory: int = 0
    spare: int = -1


class Probe(msgspec.Struct, frozen=True, tag="probe"):
    """From the front: try every route to these targets. The answer bears the same number."""

    addresses: routes.Addresses
    number: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """From the runner: the model answers on its socket, or on its bare one, after so many nanoseconds of loading."""

    load_ns: Annotated[int, msgspec.Meta(ge=0, le=2**62)]
    bare: bool = False


class Probed(msgspec.Struct, frozen=True, tag="probed"):
    """From the runner: what became of every route, in the probe of this number."""

    outcomes: list[routes.Outcome]
    number: int


#: Threads of a runner beside those that compute and answer (a driver of a GPU has its own), and descriptors beside those
#: of its answers: more than any engine was seen to have, several times over.
_THREADS, _DESCRIPTORS = 128, 512
#: Bytes that a runner may take beyond the memory that this machine had left when it started: reserved, and never used.
_RESERVED = 1 << 30

RunnerCommand = Open | Probe
RunnerEvent = Jailed | Ready | Probed | Refused


def main(commands: int, events: int) -> None:
    """Live one runner's life. Ends by `os._exit` only: engines' own endings can hang."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        # Ctrl-C and a service manager's goodbye to the whole group are the front's; it lets streams end, then cuts us off.
        if (number := getattr(signal, name, None)) is not None:
            signal.signal(number, signal.SIG_IGN)
    pipes = Pipes(commands, events)
    order = msgspec.json.decode(pipes.read_line(), type=RunnerOrder)
    try:
        host = _start(order, pipes)
    except errors.NdaniError as error:
        pipes.send(Refused(error.code, str(error)))
        os._exit(1)
    except BaseException as error:
        # The type's name and nothing more: an engine's words can quote what it was given.
        pipes.send(Refused("load_failed", f"the engine {order.launch.engine} failed to start ({type(error).__name__}); please report it"))
        os._exit(1)
    decoder = msgspec.json.Decoder(RunnerCommand)
    while host is not None:  # held here for life: an engine that is dropped stops serving
        command = decoder.decode(pipes.read_line())
        if isinstance(command, Probe):
            addresses = msgspec.structs.replace(command.addresses, spare=order.spare)
            pipes.send(Probed(routes.attempt(addresses), command.number))


def most_threads(launch: engines.Launch) -> int:
    """More threads than a runner of ours ever has; one with more has been taken over."""
    return _THREADS + 4 * (launch.slots + launch.num_thread)


def _policy(order: RunnerOrder, gpu: bool) -> jail.Policy:
    launch = order.launch
    folder = os.path.dirname(launch.socket)  # noqa: PTH120 - pathlib is one import more inside the jail
    files = tuple(held for held in (launch.weights, launch.adapter, order.spare) if held >= 0)
    memory, mapped = order.memory + _RESERVED, sum(os.fstat(held).st_size for held in files)
    limits = jail.Limits(most_threads(launch), _DESCRIPTORS + 8 * launch.slots, 0, memory, mapped)
    return jail.Policy(folder, files, order.require_jail, gpu, limits)


def _start(order: RunnerOrder, pipes: Pipes) -> engines.Host:
    host = engines.host(order.launch.engine)
    host.prepare(order.launch)
    if os.getppid() != order.front:
        os._exit(0)  # the front died before the kernel was asked to tell us
    pipes.send(Jailed(jail.enter(_policy(order, host.gpu))))
    msgspec.json.decode(pipes.read_line(), type=Open)
    began = time.monotonic_ns()
    host.open(order.launch)
    jail.forbid_bind()
    jail.make_undumpable()
    pipes.send(Ready(time.monotonic_ns() - began, host.bare))
    return host


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
