"""The jail: what keeps a child that reads foreign bytes from reaching anything. This is the door; each system has its own file.

`shut` is called in the child, `verify` by whoever started it; `process` has both ends of how they speak. On Linux the
jail is mandatory and fails closed; on macOS it is a seatbelt profile (written, never run); elsewhere there is none, and
the word *unconfined* says so everywhere.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ndani.errors import Unconfined


@dataclass(frozen=True, slots=True)
class Policy:
    """What one child needs of the machine: the folder of its socket, the descriptors of its files (-1: none), a GPU.

    Without a folder it gets no socket of any kind, and only the files that it has open already.
    """

    socket_folder: str
    weights: int = -1
    require: bool = False  # NDANI_REQUIRE_JAIL: no jail is an error
    adapter: int = -1
    gpu: bool = False


@dataclass(frozen=True, slots=True)
class Confinement:
    """What holds a child. `missing` is a sentence for each part of the jail that this system did not give."""

    seccomp: bool = False
    landlock: bool = False
    namespace: bool = False
    seatbelt: bool = False
    missing: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """`confined` when the process can open no connection, else `unconfined`."""
        return "confined" if self.seccomp or self.seatbelt else "unconfined"


def shut(policy: Policy) -> Confinement:
    """Shut the jail around this process, for good. Call it on the only thread, before the weights are opened.

    Raises Unconfined when this system has a jail and it would not shut, or has none and one is required.
    """
    system: str = sys.platform  # a plain string, so that the type checker reads every branch
    if system == "linux":
        from ndani.jail import linux

        return linux.shut(policy)
    if system == "darwin":
        from ndani.jail import macos

        return macos.shut(policy)
    if policy.require:
        raise Unconfined("NDANI_REQUIRE_JAIL is set, and this system has no jail that ndani knows; unset it to run unconfined")
    return Confinement(missing=("This system has no jail that ndani knows.",))


def verify(pid: int, claim: Confinement) -> Confinement:
    """Check from outside what a child says of itself, as far as the system shows it; returns what holds.

    Raises Unconfined when it does not hold. `claim` comes from the child while it runs no foreign input yet.
    """
    system: str = sys.platform
    if system == "linux":
        from ndani.jail import linux

        return linux.verify(pid, claim)
    return claim


def seal() -> None:
    """Close the process to debuggers and core dumps, once its weights are loaded.

    Not earlier: a process that cannot be dumped may not open its own /proc/self/fd as an ordinary user.
    """
    if sys.platform == "linux":
        from ndani.jail import linux

        linux.seal()
