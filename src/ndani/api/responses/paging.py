"""Pages of items, as OpenAI's lists are read: `limit`, `order`, and `after` an id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from ndani.api.responses.items import Item
from ndani.api.responses.objects import ItemList
from ndani.errors import BadRequest

_DEFAULT_LIMIT, _MAX_LIMIT = 20, 100

#: The parameters of a query that `page_of` reads, and their types.
QUERY: Mapping[str, Any] = {
    "limit": Annotated[int, msgspec.Meta(ge=1, le=_MAX_LIMIT)],
    "order": Literal["asc", "desc"],
    "after": str,
}


def page_of(items: Sequence[Item], query: Mapping[str, str]) -> ItemList:
    """The page that a query asks for; without an `order` the last item comes first. Raises BadRequest."""
    limit = query.get("limit", str(_DEFAULT_LIMIT))
    if not limit.isascii() or not limit.isdecimal() or not 1 <= int(limit[:9]) <= _MAX_LIMIT:
        raise BadRequest(f"limit must be a whole number from 1 to {_MAX_LIMIT}")
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise BadRequest("order must be asc or desc")
    ordered = list(items) if order == "asc" else list(reversed(items))
    if after := query.get("after"):
        position = next((index for index, item in enumerate(ordered) if item.id == after), None)
        if position is None:
            raise BadRequest("after names no item of this list")
        ordered = ordered[position + 1 :]
    page = ordered[: int(limit)]
    return ItemList(
        data=page, first_id=page[0].id if page else None, last_id=page[-1].id if page else None, has_more=len(ordered) > len(page)
    )
