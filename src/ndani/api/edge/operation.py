"""What a route reads and answers, said once: `openapi` makes its description of it. Each dialect says it in its `operations`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

JSON = "application/json"
NDJSON = "application/x-ndjson"
EVENTS = "text/event-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One route. `method` and `path` are as in the route table.

    `body` is the type of a JSON body, which may be missing if `body_optional`; with another `body_media` it is bytes. `query` has
    the types of the query's parameters. `answer` is the type of the JSON answer, None for one without a body; with another
    `answer_media` it is text. `item` is the type of each JSON value of a stream, which is sent instead where the body asks for it;
    `item_media` says how they are joined. A tuple of types is any of them. `statuses` are those of success, `failures` has the types
    of answers that are neither a success nor in the dialect's form of an error, by status.
    """

    method: str
    path: str
    summary: str
    body: Any = None
    body_media: str = JSON
    body_optional: bool = False
    query: Mapping[str, Any] = field(default_factory=dict)
    answer: Any = None
    answer_media: str = JSON
    item: Any = None
    item_media: str = NDJSON
    statuses: tuple[int, ...] = (200,)
    failures: Mapping[int, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Description:
    """A dialect: its routes, and the type of its errors' bodies. `name` is short, and begins the names of its types."""

    name: str
    title: str
    error: Any
    operations: tuple[Operation, ...]
