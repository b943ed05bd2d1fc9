"""What /v1/responses keeps: for how long, how much, and what deleting does."""

from __future__ import annotations

import pytest

from ndani.api.responses.items import InputText, MessageItem, OutputText
from ndani.api.responses.objects import ConversationObject, ConversationReference, ResponseObject
from ndani.api.responses.state import Conversation, KeptResponse, State, size_of
from ndani.errors import BadRequest, Forbidden, NotFound
from pools import FakeClock


def message(text: str, item_id: str = "msg_1") -> MessageItem:
    return MessageItem(id=item_id, role="user", content=[InputText(text=text)])


def response(name: str, previous: str | None = None, conversation: str | None = None) -> ResponseObject:
    answer = MessageItem(id=f"msg_{name}", role="assistant", content=[OutputText(text=f"answer {name}")])
    belongs = ConversationReference(conversation) if conversation else None
    return ResponseObject(id=name, created_at=1, model="m", output=[answer], previous_response_id=previous, conversation=belongs)


def keep(state: State, name: str, previous: str | None = None, text: str = "") -> None:
    state.keep(KeptResponse(response(name, previous), (message(text or f"question {name}", f"in_{name}"),)))


def begin(state: State, name: str = "conv_1", *items: MessageItem) -> Conversation:
    return state.create_conversation(ConversationObject(id=name, created_at=1), items)


def gone(state: State, *names: str) -> bool:
    for name in names:
        with pytest.raises(NotFound):
            state.response(name)
    return True


def test_a_chain_of_responses_is_their_items_in_order() -> None:
    state = State(60, FakeClock())
    keep(state, "a")
    keep(state, "b", "a")
    assert [item.id for item in state.history("b")] == ["in_a", "msg_a", "in_b", "msg_b"]
    assert set(state.items_by_id()) == {"in_a", "msg_a", "in_b", "msg_b"}


def test_what_is_not_continued_expires_and_its_memory_with_it() -> None:
    clock = FakeClock()
    state = State(60, clock)
    keep(state, "a")
    clock.advance(30)
    keep(state, "b", "a")
    clock.advance(20)
    state.history("b")  # now both are kept for another minute
    keep(state, "c")
    clock.advance(59)
    assert state.response("a")
    clock.advance(2)  # nobody asks for anything: the timer forgets them
    assert state.bytes == 0
    assert gone(state, "a", "b", "c")


def test_reading_does_not_prolong() -> None:
    clock = FakeClock()
    state = State(60, clock)
    keep(state, "a")
    clock.advance(59)
    state.response("a")
    clock.advance(2)
    assert gone(state, "a")


def test_a_deleted_response_is_gone_and_so_is_the_chain() -> None:
    state = State(60, FakeClock())
    keep(state, "a")
    keep(state, "b", "a")
    state.delete_response("a")
    assert gone(state, "a")
    assert state.response("b")
    with pytest.raises(NotFound, match=r"^response a is not here: it has expired, was deleted, or was never kept; send"):
        state.history("b")
    state.delete_response("b")
    assert state.bytes == 0


def test_the_oldest_goes_where_there_are_too_many_or_too_much() -> None:
    state = State(60, FakeClock(), max_entries=3)
    for name in "abc":
        keep(state, name)
    state.history("a")
    keep(state, "d")
    assert gone(state, "b")
    assert state.response("a")
    one = size_of([response("a"), message("x" * 1000, "in_a")])
    small = State(60, FakeClock(), max_bytes=int(one * 2.5))
    for name in "abc":
        keep(small, name, text="x" * 1000)
    assert gone(small, "a")
    assert small.response("b")
    assert small.response("c")
    assert small.bytes <= one * 2.5


def test_what_is_too_large_is_not_kept_and_pushes_nothing_out() -> None:
    state = State(60, FakeClock(), max_bytes=20_000)
    keep(state, "a")
    assert not state.would_keep([message("x" * 20_000)])
    keep(state, "b", text="x" * 20_000)
    assert gone(state, "b")
    assert state.response("a")
    with pytest.raises(BadRequest, match="the conversation is too large to be kept"):
        begin(state, "conv_1", message("x" * 20_000))
    begin(state)
    with pytest.raises(BadRequest, match="the conversation is too large to be kept"):
        state.extend("conv_1", [message("x" * 20_000)])
    assert state.conversation("conv_1").items == []


def test_a_conversation_grows_and_lives_from_its_last_turn() -> None:
    clock = FakeClock()
    state = State(60, clock)
    begin(state, "conv_1", message("a", "1"))
    clock.advance(59)
    before = state.bytes
    state.extend("conv_1", [message("b", "2")])
    assert state.bytes > before
    clock.advance(59)
    assert [item.id for item in state.conversation("conv_1").items] == ["1", "2"]
    assert "2" in state.items_by_id()
    state.change("conv_1", ConversationObject(id="conv_1", created_at=1, metadata={"a": "b"}), [])
    assert state.conversation("conv_1").head.metadata == {"a": "b"}
    assert state.bytes < before
    state.delete_conversation("conv_1")
    assert state.bytes == 0
    with pytest.raises(NotFound, match=r"^conversation conv_1 is not here"):
        state.extend("conv_1", [message("c")])


def test_an_id_of_another_kind_is_not_found() -> None:
    state = State(60, FakeClock())
    begin(state)
    keep(state, "resp_1")
    assert gone(state, "conv_1")
    with pytest.raises(NotFound):
        state.conversation("resp_1")
    with pytest.raises(NotFound, match=r"^response of this id is not here"):
        state.response("a b\n")


def test_a_response_of_a_conversation_is_continued_by_it() -> None:
    state = State(60, FakeClock())
    state.keep(KeptResponse(response("a", conversation="conv_1"), ()))
    with pytest.raises(BadRequest, match="is part of a conversation; continue it with conversation"):
        state.history("a")


def test_with_a_time_of_zero_nothing_is_kept() -> None:
    state = State(0, FakeClock())
    assert not state.would_keep([])
    keep(state, "a")
    assert state.bytes == 0
    with pytest.raises(NotFound, match="NDANI_RESPONSES_TTL is 0, so nothing is kept"):
        state.response("a")
    with pytest.raises(Forbidden, match="keeps no conversations: NDANI_RESPONSES_TTL is 0"):
        begin(state)
