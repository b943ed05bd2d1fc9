"""The notes that the pool's owner is left: what happened, or what somebody wants. What follows from them is `pool.py`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from ndani.engines import Launch
from ndani.errors import NdaniError
from ndani.runtime.residence import Child, Lease, Place, Want


@dataclass(slots=True, eq=False)
class Asked:
    """A request that waits for a slot. `before`: how the runner was launched that has to start otherwise for this one."""

    want: Want
    granted: asyncio.Future[Lease]
    since: int
    before: Launch | None = None


@dataclass(frozen=True, slots=True)
class Returned:
    """A lease came back; its keep-alive (seconds, negative: for ever, None: as it was) is the model's now. `broken`: by its runner."""

    place: Place
    keep_alive: float | None
    broken: bool = False


@dataclass(frozen=True, slots=True)
class Loaded:
    """A runner answers."""

    place: Place
    child: Child


@dataclass(frozen=True, slots=True)
class Broke:
    """A load failed."""

    place: Place
    error: NdaniError


@dataclass(frozen=True, slots=True)
class Gone:
    """A runner's process is no more, whether asked to go or not."""

    place: Place


@dataclass(frozen=True, slots=True)
class Expired:
    """A keep-alive ran out."""

    place: Place


@dataclass(frozen=True, slots=True)
class Unloaded:
    """Somebody asked for a model to leave as soon as it is idle."""

    key: str


Note = Asked | Returned | Loaded | Broke | Gone | Expired | Unloaded | None
