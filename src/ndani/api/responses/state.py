"""What is kept for later requests: answers with their input, and conversations. In memory only, bounded, and for a while.

Nothing is written to a file, and a restart forgets everything. What was last used longest ago goes first where there is too
much. An answer is not copied into those that continue it: deleting it breaks that chain.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from ndani.api.edge.json_response import encode
from ndani.api.responses.items import Item
from ndani.api.responses.objects import ConversationObject, ResponseObject
from ndani.errors import BadRequest, Forbidden, NotFound
from ndani.runtime.clock import Clock, Timer

#: How much is kept: answers and conversations together, and bytes of memory.
MAX_ENTRIES, MAX_BYTES = 10_000, 128 * 2**20

#: How many times larger a value is in memory than its JSON, and what each value takes besides, in bytes. Rough, and rather too much.
_MEMORY_FACTOR, _OVERHEAD = 3, 1024

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class KeptResponse:
    """An answer as it was sent, and the items of its request."""

    response: ResponseObject
    input: tuple[Item, ...]


@dataclass(slots=True)
class Conversation:
    """A conversation with its items."""

    head: ConversationObject
    items: list[Item] = field(default_factory=list)


@dataclass(slots=True)
class _Entry:
    value: KeptResponse | Conversation
    size: int
    expires: float


_Kept = TypeVar("_Kept", KeptResponse, Conversation)


class State:
    """Answers and conversations by their ids. `ttl` is for how many seconds after its last use each is kept; 0: none is."""

    def __init__(self, ttl: float, clock: Clock, max_bytes: int = MAX_BYTES, max_entries: int = MAX_ENTRIES) -> None:
        self.ttl = ttl
        self._clock = clock
        self._max_bytes, self._max_entries = max_bytes, max_entries
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # by the time of their end, the next one first
        self._bytes = 0
        self._timer: Timer | None = None

    @property
    def bytes(self) -> int:
        """Bytes of memory that everything takes, roughly."""
        return self._bytes

    def would_keep(self, items: Sequence[Item]) -> bool:
        """Whether an answer to these items could be kept."""
        return self.ttl > 0 and size_of(items) < self._max_bytes // 2

    def keep(self, kept: KeptResponse) -> None:
        """Keep an answer, unless it is too large."""
        if self.ttl > 0 and (size := size_of([kept.response, *kept.input])) <= self._max_bytes:
            self._put(kept.response.id, kept, size)

    def response(self, response_id: str) -> KeptResponse:
        """An answer. Raises NotFound."""
        return self._get(response_id, KeptResponse, "response")

    def history(self, response_id: str) -> tuple[Item, ...]:
        """The items of an answer's request, of the answer, and of all that it continued, oldest first.

        Raises NotFound, and BadRequest for an answer that belongs to a conversation. All of them were used now, and are kept for longer.
        """
        chain = [self.response(response_id)]
        while previous := chain[-1].response.previous_response_id:
            chain.append(self.response(previous))
        if any(kept.response.conversation for kept in chain):
            raise BadRequest("the response of previous_response_id is part of a conversation; continue it with conversation instead")
        chain.reverse()
        for kept in chain:
            self._touch(kept.response.id)
        return tuple(item for kept in chain for item in (*kept.input, *kept.response.output))

    def delete_response(self, response_id: str) -> None:
        """Forget an answer. Raises NotFound."""
        self.response(response_id)
        self._remove(response_id)

    def create_conversation(self, head: ConversationObject, items: Iterable[Item]) -> Conversation:
        """Begin a conversation. Raises Forbidden where nothing is kept, BadRequest if it is too large."""
        if self.ttl <= 0:
            raise Forbidden("this server keeps no conversations: NDANI_RESPONSES_TTL is 0; send the earlier items as input")
        conversation = Conversation(head, list(items))
        self._put(head.id, conversation, self._required_size(conversation, ()))
        return conversation

    def conversation(self, conversation_id: str) -> Conversation:
        """A conversation. Raises NotFound."""
        return self._get(conversation_id, Conversation, "conversation")

    def extend(self, conversation_id: str, items: Sequence[Item]) -> None:
        """Add items to the end of a conversation. Raises NotFound, and BadRequest if it would be too large."""
        conversation = self.conversation(conversation_id)
        size = self._required_size(conversation, items)
        conversation.items += items
        self._put(conversation_id, conversation, size)

    def change(self, conversation_id: str, head: ConversationObject, items: list[Item]) -> None:
        """Replace what a conversation says of itself, and its items by fewer. Raises NotFound."""
        conversation = self.conversation(conversation_id)
        conversation.head, conversation.items = head, items
        self._put(conversation_id, conversation, size_of([head, *items]))

    def delete_conversation(self, conversation_id: str) -> None:
        """Forget a conversation and its items. Raises NotFound."""
        self.conversation(conversation_id)
        self._remove(conversation_id)

    def items_by_id(self) -> dict[str, Item]:
        """Every item that is kept."""
        self._expire()
        found: dict[str, Item] = {}
        for entry in self._entries.values():
            value = entry.value
            items = (*value.input, *value.response.output) if isinstance(value, KeptResponse) else value.items
            found |= {item.id: item for item in items}
        return found

    def _get(self, entry_id: str, kind: type[_Kept], what: str) -> _Kept:
        self._expire()
        entry = self._entries.get(entry_id)
        if entry is not None and isinstance(entry.value, kind):
            return entry.value
        named = f" {entry_id}" if _ID.fullmatch(entry_id) else " of this id"
        why = "NDANI_RESPONSES_TTL is 0, so nothing is kept" if self.ttl <= 0 else "it has expired, was deleted, or was never kept"
        raise NotFound(f"{what}{named} is not here: {why}; send the earlier items as input")

    def _required_size(self, conversation: Conversation, items: Sequence[Item]) -> int:
        size = size_of([conversation.head, *conversation.items, *items])
        if size > self._max_bytes:
            raise BadRequest("the conversation is too large to be kept; begin another one")
        return size

    def _put(self, entry_id: str, value: KeptResponse | Conversation, size: int) -> None:
        self._remove(entry_id)
        self._entries[entry_id] = _Entry(value, size, self._clock.now() + self.ttl)
        self._bytes += size
        while self._bytes > self._max_bytes or len(self._entries) > self._max_entries:
            self._remove(next(iter(self._entries)))
        self._expire()

    def _touch(self, entry_id: str) -> None:
        self._entries[entry_id].expires = self._clock.now() + self.ttl
        self._entries.move_to_end(entry_id)

    def _remove(self, entry_id: str) -> None:
        if entry := self._entries.pop(entry_id, None):
            self._bytes -= entry.size

    def _expire(self) -> None:
        """Forget what is older than it may be, and come back when the next one is."""
        now = self._clock.now()
        while self._entries and (first := next(iter(self._entries))) and self._entries[first].expires <= now:
            self._remove(first)
        if self._entries and self._timer is None:
            self._timer = self._clock.call_later(next(iter(self._entries.values())).expires - now, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._expire()


def size_of(values: Sequence[object]) -> int:
    """Bytes of memory that these values take, roughly."""
    return sum(len(encode(value)) * _MEMORY_FACTOR + _OVERHEAD for value in values)
