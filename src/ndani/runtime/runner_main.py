"""The main of a runner process: `python -I -m ndani.runtime.runner_main COMMANDS EVENTS` (two inherited descriptors).

The sequence: import the libraries, close the jail, wait until the front has verified the jail from outside and sends `open`;
only then open the weights. After that this thread waits for commands. The command pipe is the lifeline: when the front dies,
for whatever reason, the pipe closes and this process exits at once. The standard streams go to /dev/null: native code prints
there, and its messages can quote prompts. There are few imports on purpose: all of them happen before the jail is closed.
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
from ndani.runtime import egress


class RunnerOrder(msgspec.Struct, frozen=True):
    """The first line that a runner reads: what to run, the front's process id, whether a jail is required, and limits.

    `available_memory` is what this machine has available, in bytes. `decoy` is a descriptor of a file that is open like the
    weights; probes attack it instead of them.
    """

    launch: engines.Launch
    front_pid: int
    require_jail: bool = False
    available_memory: int = 0
    decoy: int = -1


class Probe(msgspec.Struct, frozen=True, tag="probe"):
    """From the front: try every route to these targets. The answer has the same number."""

    addresses: egress.Addresses
    number: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """From the runner: the model is ready after `load_ns` of loading, on `socket_without_template` if `without_template` is set."""

    load_ns: Annotated[int, msgspec.Meta(ge=0, le=2**62)]
    without_template: bool = False


class Probed(msgspec.Struct, frozen=True, tag="probed"):
    """From the runner: the outcome of every route in the probe with this number."""

    outcomes: list[egress.Outcome]
    number: int


#: Threads of a runner besides those that compute and serve (a GPU driver has its own), and descriptors besides those of its
#: connections: several times more than any engine was measured to use.
_EXTRA_THREADS, _EXTRA_DESCRIPTORS = 128, 512
#: Bytes that a runner may allocate beyond the memory that was available when it started: reserved address space, never used.
_EXTRA_MEMORY = 1 << 30

RunnerCommand = Open | Probe
RunnerEvent = Jailed | Ready | Probed | Refused


def main(commands: int, events: int) -> None:
    """Run one runner from start to exit. Exits only by `os._exit`: an engine's own shutdown can hang."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        # Ctrl-C and a service manager signal the whole process group. The front handles it: it lets streams end, then closes our pipe.
        if (number := getattr(signal, name, None)) is not None:
            signal.signal(number, signal.SIG_IGN)
    pipes = Pipes(commands, events)
    order = msgspec.json.decode(pipes.read_line(), type=RunnerOrder)
    try:
        _host = _start(order, pipes)  # this reference keeps it serving: an engine that is garbage-collected stops
    except errors.NdaniError as error:
        pipes.send(Refused(error.code, str(error)))
        os._exit(1)
    except BaseException as error:
        # Only the name of the type: an engine's message can quote its input.
        pipes.send(
            Refused("load_failed", f"the engine {order.launch.options.engine} failed to start ({type(error).__name__}); please report it")
        )
        os._exit(1)
    decoder = msgspec.json.Decoder(RunnerCommand)
    while True:
        command = decoder.decode(pipes.read_line())
        if isinstance(command, Probe):
            addresses = msgspec.structs.replace(command.addresses, decoy=order.decoy)
            pipes.send(Probed(egress.attempt(addresses), command.number))


def max_threads(options: engines.LaunchOptions) -> int:
    """The limit of a runner's threads. A correct runner has fewer; one with more is compromised."""
    return _EXTRA_THREADS + 4 * (options.slots + options.num_thread)


def _policy(order: RunnerOrder, gpu: bool) -> jail.Policy:
    launch = order.launch
    folder = os.path.dirname(launch.socket)  # noqa: PTH120 - pathlib would be one more import inside the jail
    files = (*launch.descriptors, *((order.decoy,) if order.decoy >= 0 else ()))
    memory, mapped = order.available_memory + _EXTRA_MEMORY, sum(os.fstat(descriptor).st_size for descriptor in files)
    limits = jail.Limits(max_threads(launch.options), _EXTRA_DESCRIPTORS + 8 * launch.options.slots, 0, memory, mapped)
    return jail.Policy(folder, files, order.require_jail, gpu, limits)


def _start(order: RunnerOrder, pipes: Pipes) -> engines.Host:
    host = engines.host(order.launch.options.engine)
    host.prepare(order.launch)
    if os.getppid() != order.front_pid:
        os._exit(0)  # the front died before the parent-death signal was set
    pipes.send(Jailed(jail.enter(_policy(order, host.gpu))))
    msgspec.json.decode(pipes.read_line(), type=Open)
    started = time.monotonic_ns()
    host.open(order.launch)
    jail.forbid_bind()
    jail.make_undumpable()
    pipes.send(Ready(time.monotonic_ns() - started, host.without_template))
    return host


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
