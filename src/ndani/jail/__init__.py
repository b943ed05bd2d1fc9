"""The jail: what keeps a child that reads foreign bytes from reaching anything. This is the door; each system has its own file.

`enter` is called in the child, `verify` by whoever started it; `process` has both ends of how they speak. On Linux the
jail is mandatory and fails closed, but for Landlock, which a kernel may lack; on macOS it is a seatbelt profile (written,
never run); elsewhere there is none. Where a part is missing that keeps a child from anything at all, the word
*unconfined* says so everywhere.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ndani.errors import Unconfined


@dataclass(frozen=True, slots=True)
class Limits:
    """What one child may take: threads, open descriptors, bytes of memory beyond what it has (0: no limit), bytes of a file.

    `mapped` are the bytes of the files that it maps to be read, which are no memory of its own.
    """

    threads: int
    descriptors: int
    file_size: int
    memory: int = 0
    mapped: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """What one child needs of the machine: the folder of its socket, descriptors of files that it opens again to read, a GPU.

    Without a folder it gets no socket of any kind, and only the files that it has open already.
    """

    socket_folder: str
    files: tuple[int, ...] = ()
    require: bool = False  # NDANI_REQUIRE_JAIL: to be unconfined is an error
    gpu: bool = False
    limits: Limits | None = None


@dataclass(frozen=True, slots=True)
class Confinement:
    """What holds a child. `missing` is a sentence for each part of the jail that this system did not give."""

    seccomp: bool = False
    landlock: bool = False
    namespace: bool = False
    seatbelt: bool = False
    missing: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """`confined` when the process can open no connection and no file that was not given to it, else `unconfined`.

        A seatbelt is no claim: that profile was never seen to hold.
        """
        return "confined" if self.seccomp and self.landlock else "unconfined"


def enter(policy: Policy) -> Confinement:
    """Shut the jail around this process, for good. Call it on the only thread, before the weights are opened.

    Raises Unconfined when this system has a jail and it would not shut, or leaves the child unconfined where that is an error.
    """
    held = _enter(policy)
    if policy.require and held.status != "confined":
        reader = "NDANI_REQUIRE_JAIL is set, and here the process that reads the weights would be unconfined"
        raise Unconfined(f"{reader}; unset it to allow that. {held.missing[0]}")
    return held


def _enter(policy: Policy) -> Confinement:
    system: str = sys.platform  # a plain string, so that the type checker reads every branch
    if system == "linux":
        from ndani.jail import linux

        return linux.enter(policy)
    if system == "darwin":
        from ndani.jail import macos

        return macos.enter(policy)
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


def forbid_bind() -> None:
    """From here on no socket of this process gets a name. Call it once it listens; it holds every thread. Raises Unconfined.

    Until then, and no longer, who has taken it over could make names in its socket's folder.
    """
    if sys.platform == "linux":
        from ndani.jail import linux

        linux.forbid_bind()


def make_undumpable() -> None:
    """Close this process to debuggers and core dumps: no other process of its user can look into its memory, nor write there.

    Every process of ours that is asked, or told a secret, does this first of all: what reads foreign bytes is started
    later. A runner does it once its weights are loaded: there are systems where a process that cannot be dumped may not
    open its own /proc/self/fd as an ordinary user.
    """
    if sys.platform == "linux":
        from ndani.jail import linux

        linux.make_undumpable()
