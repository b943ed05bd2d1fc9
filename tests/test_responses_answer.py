"""Answers of /v1/responses, of made-up events: the stream's events, and that they come to the response that is not streamed."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from ndani.api.ollama.responses import format_chat
from ndani.api.ollama.timestamps import Timestamps
from ndani.api.responses.answer import AnswerSink, ResponseAnswer
from ndani.api.responses.events import ResponseEvent
from ndani.api.responses.forms import FOUNDRY, OLLAMA, Form, form_of
from ndani.api.responses.objects import ResponseObject
from ndani.errors import BadRequest, Busy, EngineFailed
from ndani.types import Called, Done, Event, Piece, Text, Thought, TokenLogprob, ToolCall, Usage

DONE = Done("stop", Usage(prompt_tokens=9, cached_tokens=4, output_tokens=5))
CUT = Done("length", Usage(prompt_tokens=9, output_tokens=5))
TOKEN = TokenLogprob("é", -0.5, "é".encode(), (TokenLogprob("e", -1.5, b"e"),))
CALL = Called(ToolCall("weather", {"city": "Nairobi"}, "call_1"))

ANSWERS: dict[str, list[Piece]] = {
    "text": [Text("Hel"), Text("lo"), Text(' \n\u2028"{')],
    "nothing": [],
    "thoughts": [Thought("hm"), Thought(", so", (1, 2)), Text("Yes")],
    "only thoughts": [Thought("hm")],
    "calls": [CALL, Called(ToolCall("time", {}))],
    "everything": [Thought("hm"), Text("I "), Text("look"), CALL],
    "text after a call": [CALL, Text("there")],
    "logprobs": [Thought("hm", (), (TOKEN,)), Text("é", (5,), (TOKEN,)), Text("e"), Text("é", (5,), (TOKEN,))],
}


def opening() -> ResponseObject:
    return ResponseObject(id="resp_1", created_at=1, model="m")


def events(stream: bytes) -> list[dict[str, Any]]:
    """The events of a stream. Each frame's name is its type, and they are numbered without a gap."""
    found = []
    for frame in stream.decode().split("\n\n"):
        if frame.startswith("event: "):
            name, data = frame.removeprefix("event: ").split("\ndata: ")
            found.append(json.loads(data))
            assert found[-1]["type"] == name
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def streamed(pieces: list[Piece], done: Event = DONE, form: Form = OLLAMA) -> bytes:
    answer = ResponseAnswer(opening(), form)
    frames = [answer.event(event) for event in (*pieces, done)]
    assert all(frames), "an empty chunk would end the response"
    return b"".join(frames)


def whole(pieces: list[Piece], done: Done = DONE, form: Form = OLLAMA) -> dict[str, Any]:
    answer = ResponseAnswer(opening(), form)
    sink = AnswerSink(answer)
    for piece in pieces:
        sink.put(piece)
    return dict(json.loads(answer.response_format().whole(sink.collected(), done)))


def folded(stream: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items that the events build up, each delta added to what it belongs to."""
    items: list[dict[str, Any]] = []
    for event in stream:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            items.append(event["item"])
            assert event["output_index"] == len(items) - 1
            continue
        item = items[event["output_index"]] if "output_index" in event else {}
        if kind in ("content_part.added", "reasoning_summary_part.added"):
            (item["content"] if "content_index" in event else item["summary"]).append(event["part"])
        elif kind == "output_text.delta":
            item["content"][event["content_index"]]["text"] += event["delta"]
            item["content"][event["content_index"]]["logprobs"] += event["logprobs"]
        elif kind == "reasoning_summary_text.delta":
            item["summary"][event["summary_index"]]["text"] += event["delta"]
        elif kind == "function_call_arguments.delta":
            item["arguments"] += event["delta"]
        elif kind == "output_text.done":
            assert item["content"][0]["text"] == event["text"]
            assert item["content"][0]["logprobs"] == event["logprobs"]
        elif kind == "output_item.done":
            assert item | {"status": event["item"]["status"]} == event["item"]
            item["status"] = event["item"]["status"]
    return items


def without_chance(response: Any) -> Any:
    """A response without the ids and times that differ between two answers."""
    if isinstance(response, dict):
        return {key: without_chance(value) for key, value in response.items() if key not in ("id", "call_id", "completed_at")}
    return [without_chance(value) for value in response] if isinstance(response, list) else response


@pytest.mark.parametrize("done", [DONE, CUT])
@pytest.mark.parametrize("form", [OLLAMA, FOUNDRY])
@pytest.mark.parametrize("pieces", ANSWERS.values(), ids=ANSWERS)
def test_a_stream_folds_to_the_response_that_is_not_streamed(pieces: list[Piece], form: Form, done: Done) -> None:
    stream = events(streamed(pieces, done, form))
    last = stream[-1]["response"]
    assert folded(stream) == last["output"]
    assert without_chance(last) == without_chance(whole(pieces, done, form))


@pytest.mark.parametrize("form", [OLLAMA, FOUNDRY])
@pytest.mark.parametrize("pieces", ANSWERS.values(), ids=ANSWERS)
def test_every_event_is_as_it_is_described(pieces: list[Piece], form: Form) -> None:
    for event in events(streamed(pieces, CUT, form)):
        msgspec.convert(event, ResponseEvent)


@pytest.mark.parametrize("form", [OLLAMA, FOUNDRY])
@pytest.mark.parametrize("pieces", ANSWERS.values(), ids=ANSWERS)
def test_every_event_is_one_of_openais_schema(pieces: list[Piece], form: Form) -> None:
    schema: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    for event in events(streamed(pieces, CUT, form)):
        assert schema.validate_python(event).type == event["type"]
    response = Response.model_validate(whole(pieces, CUT, form))
    assert not [item for item in response.output if item.type not in ("message", "reasoning", "function_call")]
    failed = ResponseAnswer(opening(), form)
    for event in events(failed.event(Text("x")) + failed.fail(EngineFailed("it broke"))):
        schema.validate_python(event)


def test_the_events_of_a_text() -> None:
    stream = events(streamed(ANSWERS["text"]))
    assert [event["type"].removeprefix("response.") for event in stream] == [
        *("created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta"),
        *("output_text.delta", "output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert stream[0]["response"]["status"] == "in_progress"
    assert stream[0]["response"]["usage"] is None
    assert stream[-1]["response"]["usage"] == {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 5},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 14,
    }


def test_the_events_of_thoughts_and_a_call() -> None:
    stream = events(streamed(ANSWERS["everything"]))
    assert [event["type"].removeprefix("response.") for event in stream] == [
        *("created", "in_progress", "output_item.added", "reasoning_summary_part.added", "reasoning_summary_text.delta"),
        *("reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done", "completed"),
    ]
    thought, message, call = stream[-1]["response"]["output"]
    assert thought["summary"] == [{"type": "summary_text", "text": "hm"}]
    assert message["content"][0]["text"] == "I look"
    assert (call["name"], call["call_id"], json.loads(call["arguments"])) == ("weather", "call_1", {"city": "Nairobi"})
    assert [item["id"].partition("_")[0] for item in (thought, message, call)] == ["rs", "msg", "fc"]


def test_a_call_without_an_id_gets_one() -> None:
    calls = whole(ANSWERS["calls"])["output"]
    assert calls[0]["call_id"] == "call_1"
    assert calls[1]["call_id"].startswith("call_")
    assert calls[1]["arguments"] == "{}"


def test_thoughts_are_counted() -> None:
    done = Done("stop", Usage(output_tokens=5, thinking_tokens=3))
    assert whole(ANSWERS["thoughts"], done)["usage"]["output_tokens_details"] == {"reasoning_tokens": 3}


def test_logprobs_are_those_of_the_text() -> None:
    (_, message) = whole(ANSWERS["logprobs"])["output"]
    token = {"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": [{"token": "e", "logprob": -1.5, "bytes": [101]}]}
    assert message["content"][0]["logprobs"] == [token, token]


def test_encrypted_content_is_only_there_where_it_is_asked_for() -> None:
    assert whole(ANSWERS["thoughts"])["output"][0]["encrypted_content"] is None
    answer = ResponseAnswer(opening(), OLLAMA, shows_encrypted=True)
    answer.event(Thought("hm"))
    assert json.loads(answer.whole(DONE))["output"][0]["encrypted_content"] == "hm"


def test_an_answer_at_its_limit_has_the_status_of_its_form() -> None:
    ours, foundry = whole(ANSWERS["text"], CUT), whole(ANSWERS["text"], CUT, FOUNDRY)
    assert (ours["status"], ours["incomplete_details"], ours["output"][0]["status"]) == ("completed", None, "completed")
    assert (foundry["status"], foundry["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert (foundry["output"][0]["status"], foundry["completed_at"]) == ("incomplete", None)
    assert foundry["output_text"] == 'Hello \n\u2028"{'
    assert events(streamed(ANSWERS["text"], CUT, FOUNDRY))[-1]["type"] == "response.incomplete"
    assert streamed([], CUT, FOUNDRY).endswith(b"\n\ndata: [DONE]\n\n")


@pytest.mark.parametrize(
    ("model", "form"),
    [
        ("smollm2-135m-generic-cpu:1", FOUNDRY),
        ("Phi-4-mini-instruct-cuda-gpu", FOUNDRY),
        ("smollm2:135m", OLLAMA),
        ("generic-cpu", OLLAMA),
        ("x-generic-cpu:latest", OLLAMA),
    ],
)
def test_the_name_of_a_model_tells_the_form(model: str, form: Form) -> None:
    assert form_of(model) is form


@pytest.mark.parametrize(
    ("error", "code"),
    [(EngineFailed("it broke"), "server_error"), (Busy("full"), "rate_limit_exceeded"), (BadRequest("no"), "invalid_prompt")],
)
def test_a_stream_that_fails_says_so_in_its_last_event(error: Any, code: str) -> None:
    answer = ResponseAnswer(opening(), OLLAMA)
    stream = answer.event(Text("so far"))
    last = events(stream + answer.response_format().errors.stream_end(error))[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"] == {"code": code, "message": str(error)}
    assert last["response"]["output"][0]["content"][0]["text"] == "so far"


def test_what_is_kept_is_what_was_sent() -> None:
    kept: list[ResponseObject] = []
    answer = ResponseAnswer(opening(), OLLAMA, kept.append)
    answer.event(Text("x"))
    assert kept == []
    answer.event(DONE)
    assert [response.status for response in kept] == ["completed"]


def test_a_token_costs_little_more_than_ollamas() -> None:
    """25 µs of processor time are allowed; the better of several rounds, for the machine does other things too."""

    def cost(line: Any) -> float:
        text, best = Text(" word"), float("inf")
        for _ in range(7):
            began = time.thread_time()
            for _ in range(2000):
                line(text)
            best = min(best, (time.thread_time() - began) / 2000)
        return best * 1e6

    answer = ResponseAnswer(opening(), OLLAMA)
    answer.event(Text("first"))
    assert cost(answer.event) - cost(format_chat("m", Timestamps()).event) < 25
