"""What a route reads and answers, said in its row of the dialect's table: `openapi` makes its description of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.routing import Route

from ndani.api.edge.media_types import JSON, NDJSON


@dataclass(frozen=True, slots=True)
class Operation:
    """What one route reads and answers.

    `body` is the type of a JSON body, which may be missing if `body_optional`; with another `body_media` it is bytes. `query` has
    the types of the query's parameters. `answer` is the type of the JSON answer, None for one without a body; with another
    `answer_media` it is text. `item` is the type of each JSON value of a stream, which is sent instead where the body asks for it;
    `item_media` says how they are joined. A tuple of types is any of them. `statuses` are those of success, `failures` has the types
    of answers that are neither a success nor in the dialect's form of an error, by status.
    """

    summary: str
    body: Any = None
    answer: Any = None
    item: Any = None
    item_media: str = NDJSON
    query: Mapping[str, Any] = field(default_factory=dict)
    body_media: str = JSON
    body_optional: bool = False
    answer_media: str = JSON
    statuses: tuple[int, ...] = (200,)
    failures: Mapping[int, Any] = field(default_factory=dict)


class DescribedRoute(Route):
    """A route that says what it reads and answers. It has one method, besides the HEAD of a GET."""

    def __init__(self, method: str, path: str, endpoint: Callable[..., object], operation: Operation) -> None:
        super().__init__(path, endpoint, methods=[method])
        self.method, self.operation = method, operation
