"""What a dialect is to the application: its routes, how its errors look, and which of its bodies may be large."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.routing import Route

from ndani.api.edge.faults import ErrorFormat
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
    """One client API. `errors` has a row for each prefix of its paths; of all rows that match a path, the longest prefix counts.

    `large_bodies` are the paths whose bodies hold conversations or texts; other bodies hold only names and flags.
    """

    routes: tuple[Route, ...]
    errors: tuple[tuple[str, ErrorFormat], ...] = ()
    large_bodies: frozenset[str] = frozenset()


def get(path: str, endpoint: Callable[..., object]) -> Route:
    """A route for GET, and so for HEAD."""
    return Route(path, endpoint, methods=["GET"])


def head(path: str, endpoint: Callable[..., object]) -> Route:
    """A route for HEAD alone."""
    return Route(path, endpoint, methods=["HEAD"])


def post(path: str, endpoint: Callable[..., object]) -> Route:
    """A route for POST."""
    return Route(path, endpoint, methods=["POST"])


def delete(path: str, endpoint: Callable[..., object]) -> Route:
    """A route for DELETE."""
    return Route(path, endpoint, methods=["DELETE"])
