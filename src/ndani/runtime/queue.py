"""The requests that wait for a slot, first come first, and how many of them there may be."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ndani.engines import Launch
from ndani.errors import NdaniError
from ndani.runtime.residence import Lease
from ndani.runtime.spec import RunnerSpec


@dataclass(slots=True, eq=False)
class PendingRequest:
    """A request that waits for a slot, until it has its outcome: a lease, or the error that it is refused with."""

    spec: RunnerSpec
    since: float
    outcome: asyncio.Future[Lease | NdaniError]
    replaced: Launch | None = None  # how the runner was launched that had to go so that one can start for this


class Queue:
    """Who has an outcome, or has left, is not in it any more."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._requests: list[PendingRequest] = []

    def join(self, spec: RunnerSpec, since: float) -> PendingRequest:
        """Stand in line. Whoever leaves cancels the outcome."""
        request = PendingRequest(spec, since, asyncio.get_running_loop().create_future())
        self._requests.append(request)
        return request

    def __iter__(self) -> Iterator[PendingRequest]:
        self._requests = [request for request in self._requests if not request.outcome.done()]
        return iter(self._requests)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def wants(self, key: str) -> bool:
        """Whether somebody waits for this model."""
        return any(request.spec.key == key for request in self)

    def is_full(self, key: str, coming: Callable[[str], int]) -> bool:
        """Whether a request for this model would really wait, and as many as may do already.

        Only who really waits counts: of the requests for one model, those beyond the slots that are `coming` for it.
        """
        waiting = Counter(request.spec.key for request in self)
        if waiting[key] < coming(key):
            return False
        return sum(max(count - coming(key), 0) for key, count in waiting.items()) >= self._limit
