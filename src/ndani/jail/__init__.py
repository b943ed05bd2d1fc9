"""The jail: it keeps a child that reads untrusted bytes from reaching anything. These are its entry points; each system has its own file.

The child calls `enter`, its parent calls `verify`; `process` has both ends of their pipes. On Linux the jail is mandatory
and fails closed, except for Landlock, which a kernel may lack. On macOS it is a seatbelt profile (written, never run); other
systems have none. When an essential part is missing, the status *unconfined* says so everywhere.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ndani.errors import Unconfined


@dataclass(frozen=True, slots=True)
class Limits:
    """The resource limits of one child: threads, open descriptors, bytes of a file, bytes of memory beyond its current (0: no limit).

    `mapped` is the size of the files that it maps for reading, which do not count as its memory.
    """

    threads: int
    descriptors: int
    file_size: int
    memory: int = 0
    mapped: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """What one child needs: the folder of its socket, descriptors of files that it opens again for reading, a GPU.

    Without a folder it gets no socket of any kind, and only the files that it already has open.
    """

    socket_folder: str
    files: tuple[int, ...] = ()
    require: bool = False  # NDANI_REQUIRE_JAIL: to be unconfined is an error
    gpu: bool = False
    limits: Limits | None = None


@dataclass(frozen=True, slots=True)
class Confinement:
    """The parts of the jail that are in force. `missing` has a sentence for each part that this system does not provide."""

    seccomp: bool = False
    landlock: bool = False
    namespace: bool = False
    seatbelt: bool = False
    missing: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """`confined` when the process can open no connection and no file that it was not given, else `unconfined`.

        A seatbelt does not count, because that profile has never been tested.
        """
        return "confined" if self.seccomp and self.landlock else "unconfined"


def enter(policy: Policy) -> Confinement:
    """Put this process into the jail, for good. Call it on the only thread, before the weights are opened.

    Raises Unconfined when this system's jail cannot be applied, or when it leaves the child unconfined and the policy
    requires confinement.
    """
    confinement = _enter(policy)
    if policy.require and confinement.status != "confined":
        reader = "NDANI_REQUIRE_JAIL is set, and here the process that reads the weights would be unconfined"
        raise Unconfined(f"{reader}; unset it to allow that. {confinement.missing[0]}")
    return confinement


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
    """Check a child's `claim` from outside, as far as the system allows; returns the verified confinement.

    Raises Unconfined when the claim is false. The child makes it before it reads untrusted input.
    """
    system: str = sys.platform
    if system == "linux":
        from ndani.jail import linux

        return linux.verify(pid, claim)
    return claim


def forbid_bind() -> None:
    """Forbid `bind` in all threads of this process. Call it once the process listens. Raises Unconfined.

    Before this call, a compromised process could create sockets in its socket's folder.
    """
    if sys.platform == "linux":
        from ndani.jail import linux

        linux.forbid_bind()


def make_undumpable() -> None:
    """Forbid debuggers and core dumps: no other process of the same user can read or write this process's memory.

    Every process that handles requests or secrets calls this first, before children that read untrusted bytes start. A
    runner calls it after its weights are loaded, because on some systems an undumpable process of an ordinary user cannot
    open its own /proc/self/fd.
    """
    if sys.platform == "linux":
        from ndani.jail import linux

        linux.make_undumpable()
