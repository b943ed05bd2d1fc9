"""Answers in Anthropic's JSON and events: made of synthetic events, and folded as the official client folds them."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, MessageDeltaUsage, RawMessageStreamEvent
from pydantic import TypeAdapter

from ndani.api.anthropic.responses import ERRORS, format_message
from ndani.api.edge.streaming import CollectedSink
from ndani.errors import BadRequest, Busy, Failed, Forbidden, NdaniError, NotFound, TooLarge
from ndani.types import Called, Done, Event, Piece, Text, Thought, ToolCall, Usage

USAGE = Usage(prompt_tokens=12, cached_tokens=5, output_tokens=6)
CALL = Called(ToolCall("weather", {"city": "Kisumu", "days": [1, 2]}))
OTHER_CALL = Called(ToolCall("time", {}, index=1))
EVENT: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)

ANSWERS: dict[str, list[Piece]] = {
    "nothing": [],
    "text": [Text("Hel"), Text('lo "you"\n'), Text("…")],
    "thinking": [Thought("Hm"), Thought("m"), Text("Yes"), Text(".")],
    "only-thinking": [Thought("Hm")],
    "call": [CALL],
    "text-and-calls": [Text("I look."), CALL, OTHER_CALL],
    "all": [Thought("Hm"), Text("I look."), CALL],
}


def frames(pieces: list[Piece], end: Done, **options: Any) -> list[tuple[str, dict[str, Any]]]:
    """Every event of the stream: its name and its data."""
    event = format_message("echo", 6, **options).event
    stream = b"".join(event(piece) for piece in [*pieces, end]).decode()
    assert stream.endswith("\n\n")
    found = []
    for frame in stream.split("\n\n")[:-1]:
        name, data = frame.split("\n")
        assert name.startswith("event: ")
        assert data.startswith("data: ")
        found.append((name[7:], json.loads(data[6:])))
    assert all(name == data["type"] for name, data in found)
    return found


def whole(pieces: list[Piece], end: Done, **options: Any) -> dict[str, Any]:
    sink = CollectedSink()
    for piece in pieces:
        sink.put(piece)
    return dict(json.loads(format_message("echo", 6, **options).whole(sink.collected(), end)))


def folded(pieces: list[Piece], end: Done, **options: Any) -> Message:
    """The message that the official client makes of a stream."""
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    for name, data in frames(pieces, end, **options):
        if name != "ping":
            snapshot = accumulate_event(event=EVENT.validate_python(data), current_snapshot=snapshot, json_bufs=buffers)
    return Message.model_validate(snapshot.to_dict())


def comparable(message: Message) -> dict[str, Any]:
    """A message without its ids, which are random."""
    found = message.model_dump(exclude_none=True) | {"id": ""}
    return found | {"content": [{k: v for k, v in block.items() if k != "id"} for block in found["content"]]}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("show_thinking", [True, False])
def test_a_streamed_answer_folds_to_the_unstreamed_one(name: str, show_thinking: bool) -> None:
    end = Done("stop", USAGE)
    one = Message.model_validate(whole(ANSWERS[name], end, show_thinking=show_thinking))
    assert comparable(folded(ANSWERS[name], end, show_thinking=show_thinking)) == comparable(one)


def test_the_events_of_an_answer_with_everything() -> None:
    names = [name for name, _ in frames(ANSWERS["all"], Done("stop", USAGE))]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    thinking = ["content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"]
    assert names == ["message_start", *thinking, *block, *block, "message_delta", "message_stop"]
    data = [data for _, data in frames(ANSWERS["all"], Done("stop", USAGE))]
    assert [item["index"] for item in data if item["type"] == "content_block_start"] == [0, 1, 2]
    deltas = [item["delta"] for item in data if item["type"] == "content_block_delta"]
    assert deltas[:3] == [
        {"type": "thinking_delta", "thinking": "Hm"},
        {"type": "signature_delta", "signature": ""},
        {"type": "text_delta", "text": "I look."},
    ]
    assert deltas[3]["type"] == "input_json_delta"
    assert json.loads(deltas[3]["partial_json"]) == {"city": "Kisumu", "days": [1, 2]}


def test_every_piece_of_a_stream_is_some_bytes() -> None:
    """An empty chunk would end the body."""
    event = format_message("echo", 6, show_thinking=False).event
    assert all(event(piece) for piece in ANSWERS["thinking"])
    assert b"Hm" not in b"".join(map(format_message("echo", 6, show_thinking=False).event, ANSWERS["thinking"]))


def test_a_whole_answer() -> None:
    message = whole(ANSWERS["all"], Done("stop", USAGE))
    assert message["id"].startswith("msg_")
    assert len(message["id"]) == 28
    assert message["content"][2].pop("id").startswith("toolu_")
    assert message["content"] == [
        {"type": "thinking", "thinking": "Hm", "signature": ""},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "name": "weather", "input": {"city": "Kisumu", "days": [1, 2]}},
    ]
    assert {key: message[key] for key in ("type", "role", "model", "stop_sequence")} == {
        "type": "message",
        "role": "assistant",
        "model": "echo",
        "stop_sequence": None,
    }


def test_the_first_event_tells_the_size_of_the_prompt() -> None:
    answer_format = format_message("echo", 6)
    assert answer_format.measure is not None
    answer_format.measure(12, 5)
    first = json.loads(answer_format.event(Text("a")).split(b"\n")[1].removeprefix(b"data: "))
    assert first["message"]["usage"] == {
        "input_tokens": 7,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 5,
        "output_tokens": 0,
    }


def test_cached_tokens_are_counted_apart() -> None:
    usage = {"input_tokens": 7, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 5, "output_tokens": 6}
    assert whole([], Done("stop", USAGE))["usage"] == usage
    last = frames(ANSWERS["text"], Done("stop", USAGE))[-2][1]["usage"]
    assert last == usage
    assert MessageDeltaUsage.model_validate(last).input_tokens == 7


@pytest.mark.parametrize(
    ("pieces", "end", "reason"),
    [
        (ANSWERS["text"], Done("stop", USAGE), "end_turn"),
        (ANSWERS["text"], Done("length", USAGE), "max_tokens"),
        (ANSWERS["text"], Done("length", Usage(output_tokens=5)), "model_context_window_exceeded"),
        (ANSWERS["text"], Done("stop", USAGE, stop_sequence="END"), "stop_sequence"),
        (ANSWERS["call"], Done("stop", USAGE), "tool_use"),
        (ANSWERS["call"], Done("length", USAGE), "max_tokens"),
    ],
)
def test_why_an_answer_ended(pieces: list[Piece], end: Done, reason: str) -> None:
    one, streamed = whole(pieces, end), frames(pieces, end)[-2][1]["delta"]
    assert (one["stop_reason"], one["stop_sequence"]) == (reason, end.stop_sequence)
    assert streamed == {"stop_reason": reason, "stop_sequence": end.stop_sequence}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BadRequest("x"), "invalid_request_error"),
        (Forbidden("x"), "permission_error"),
        (NotFound("x"), "not_found_error"),
        (TooLarge("x"), "request_too_large"),
        (Busy("x"), "overloaded_error"),
        (Failed("x"), "api_error"),
    ],
)
def test_errors(error: NdaniError, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ndani.api.anthropic.responses.current_id", lambda: "req_1")
    last = ERRORS.stream_end(error).decode()
    assert ERRORS.headers() == {"request-id": "req_1"}
    assert last.startswith('event: error\ndata: {"')
    body = json.loads(last.split("data: ")[1])
    assert body.pop("request_id") == "req_1"
    assert body == {"type": "error", "error": {"type": kind, "message": "x"}}


def test_a_token_costs_little() -> None:
    """The bound is 25 µs; the best of several rounds is what the code costs, not what else the machine does."""
    pieces: list[Event] = [Text(" word")] * 2000
    best = 1.0
    for _ in range(5):
        event = format_message("echo", 6).event
        began = time.perf_counter()
        for piece in pieces:
            event(piece)
        best = min(best, (time.perf_counter() - began) / len(pieces))
    assert best < 25e-6
