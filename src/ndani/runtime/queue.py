"""The requests that wait for a slot, in the order of arrival, and the limit on their number."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ndani.engines import LaunchOptions
from ndani.runtime.residence import Lease
from ndani.runtime.spec import RunnerSpec


@dataclass(slots=True, eq=False)
class PendingRequest:
    """A request that waits for a slot. `outcome` gets the lease, or the error with which the request is refused."""

    spec: RunnerSpec
    enqueued_at: float
    outcome: asyncio.Future[Lease]
    replaced: LaunchOptions | None = None  # the options of the runner that was stopped so that one can start for this request

    def close(self) -> Lease | None:
        """Leave the queue. Returns the lease if one was granted: a client can leave in the same turn in which it gets one.

        Reading the exception marks it as retrieved: asyncio would log one that a cancelled request never awaited.
        """
        self.outcome.cancel()  # without effect when the outcome is set
        if self.outcome.cancelled() or self.outcome.exception() is not None:
            return None
        return self.outcome.result()


class Queue:
    """Pending requests. Those that have an outcome, or were cancelled, are not in the queue any more."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._requests: list[PendingRequest] = []

    def enqueue(self, spec: RunnerSpec, enqueued_at: float) -> PendingRequest:
        """Add a request at the end. The caller must `close` it."""
        request = PendingRequest(spec, enqueued_at, asyncio.get_running_loop().create_future())
        self._requests.append(request)
        return request

    def __iter__(self) -> Iterator[PendingRequest]:
        self._requests = [request for request in self._requests if not request.outcome.done()]
        return iter(self._requests)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def has_request_for(self, key: str) -> bool:
        """Whether a request for this model is waiting."""
        return any(request.spec.key == key for request in self)

    def is_full(self, key: str, available_slots: Callable[[str], int]) -> bool:
        """Whether a request for this model would have to wait, and the queue has no place for it.

        Only requests that really wait count: of the requests for one model, those beyond its `available_slots`.
        """
        waiting = Counter(request.spec.key for request in self)
        if waiting[key] < available_slots(key):
            return False
        return sum(max(count - available_slots(key), 0) for key, count in waiting.items()) >= self._max_waiting
