"""What a dialect is to the application: its routes, what each reads and answers, how its errors look, which of its bodies may be large."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ndani.api.edge.faults import ErrorFormat
from ndani.api.edge.operation import DescribedRoute, Operation
from ndani.api.edge.running_requests import RunningRequests
from ndani.service import Service


@dataclass(frozen=True, slots=True)
class Context:
    """What the server hands to every dialect: the service, the requests that are running, and how to end the server."""

    service: Service
    running: RunningRequests
    stop: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Dialect:
    """One client API. `name` is its folder's, `title` is what people call it.

    `errors` has a row for each prefix of its paths; of all rows that match a path, the longest prefix counts.
    `large_bodies` are the paths whose bodies hold conversations or texts; other bodies hold only names and flags.
    """

    name: str
    title: str
    routes: tuple[DescribedRoute, ...]
    errors: tuple[tuple[str, ErrorFormat], ...] = ()
    large_bodies: frozenset[str] = frozenset()


def get(path: str, endpoint: Callable[..., object], operation: Operation) -> DescribedRoute:
    """A route for GET, and so for HEAD."""
    return DescribedRoute("GET", path, endpoint, operation)


def head(path: str, endpoint: Callable[..., object], operation: Operation) -> DescribedRoute:
    """A route for HEAD alone."""
    return DescribedRoute("HEAD", path, endpoint, operation)


def post(path: str, endpoint: Callable[..., object], operation: Operation) -> DescribedRoute:
    """A route for POST."""
    return DescribedRoute("POST", path, endpoint, operation)


def delete(path: str, endpoint: Callable[..., object], operation: Operation) -> DescribedRoute:
    """A route for DELETE."""
    return DescribedRoute("DELETE", path, endpoint, operation)
