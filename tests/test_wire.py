"""Bytes in and out: decoding, framing, folding, and that every generator is closed."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.requests import Request

from ndani.api.edge import faults, json_response, long_work, request_body, streaming
from ndani.api.ollama import timestamps
from ndani.api.ollama.responses import ERRORS, format_chat, format_generate, format_step
from ndani.errors import BadRequest, Busy, Cancelled, NdaniError
from ndani.types import Answer, Done, Event, Progress, Report, Text, Usage

END = Done("stop", Usage(3, 1, 2, 0, 10, 20, 30, 40), truncated=5)


def request(*pieces: bytes, leaves: bool = False) -> Request:
    parts = list(pieces)

    async def receive() -> dict[str, Any]:
        if leaves and not parts:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts) or leaves}

    return Request({"type": "http", "method": "POST", "headers": [], "path": "/"}, receive)


async def test_names_are_lower_case_and_null_is_nothing_said() -> None:
    assert await request_body.decode(request(b'{"Model": "x", "KEEP_ALIVE": {"A": 1}}')) == {"model": "x", "keep_alive": {"A": 1}}
    assert await request_body.decode(request(b"null")) == {}
    assert await request_body.decode(request(b'{"a":', b" 1}")) == {"a": 1}
    assert await request_body.decode(request(b'\xef\xbb\xbf{"a": 1}')) == {"a": 1}, "what Windows writes in front of a text"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "missing request body"),
        (b'{"a": 1', "unexpected EOF"),
        (b"[1]", "the request body must be a JSON object"),
        (b'{"a": xyzzy}', "invalid JSON: "),
        (b'{"a": \xff}', "invalid JSON: "),
        (b'{"a": "\xff"', "unexpected EOF"),
        (b"[" * 10**5, "invalid JSON: "),
    ],
)
async def test_what_is_no_object_is_one_sentence_that_quotes_nothing(body: bytes, sentence: str) -> None:
    with pytest.raises(BadRequest) as met:
        await request_body.decode(request(body))
    assert str(met.value).startswith(sentence)
    assert "xyzzy" not in str(met.value)


@pytest.mark.parametrize("letter", [rb"\ud800", rb"\ud800\\\\", b"\xff\xc3\xa9abc"])
@pytest.mark.slow
async def test_a_body_that_must_be_mended_takes_a_few_times_its_size(letter: bytes) -> None:
    body = b'{"a": "' + letter * 200_000 + b'"}'
    tracemalloc.start()
    try:
        found = await request_body.decode(request(body))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found["a"] == (await request_body.decode(request(b'{"a": "' + letter + b'"}')))["a"] * 200_000
    assert most < 14 * len(body)


async def test_a_client_that_leaves_in_its_body_is_no_fault_of_ours() -> None:
    with pytest.raises(Cancelled):
        await request_body.decode(request(b'{"a":', leaves=True))


def test_a_fault_names_its_kind_and_place_and_no_words() -> None:
    try:
        json_response.encode({1, "a secret"} and object())
    except TypeError as error:
        said = str(faults.fault(error))
    assert re.fullmatch(r"ndani met a fault of its own \(TypeError at \w+\.py:\d+\); please report it", said)


class Events:
    """A source of events that knows whether it was closed."""

    def __init__(self, *events: Event | Exception) -> None:
        self.events, self.closed, self.given = events, False, 0

    async def __call__(self) -> AsyncGenerator[Event]:
        try:
            for event in self.events:
                if isinstance(event, Exception):
                    raise event
                self.given += 1
                yield event
        finally:
            self.closed = True


async def messages_of(response: Any, *, gone_after: int = 10**6) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def take(message: dict[str, Any]) -> None:
        if len(sent) >= gone_after:
            raise ConnectionResetError
        sent.append(message)

    await response({"type": "http", "method": "POST"}, None, take)
    return sent


async def respond(events: Events, *, stream: bool) -> Any:
    response_format = format_chat("m", timestamps.Timestamps())
    return await streaming.respond(events(), streaming.open_sink(stream, response_format), response_format, {"X-Y": "z"})


def json_lines(sent: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [json.loads(m["body"]) for m in sent if m.get("body")]


async def test_a_stream_is_a_line_per_event_sent_as_it_comes() -> None:
    events = Events(Text("a"), Text("b"), END)
    response = await respond(events, stream=True)
    assert events.given == 1, "only the first is awaited before the status"
    sent = await messages_of(response)
    assert sent[0]["status"] == 200
    assert (b"content-type", b"application/x-ndjson") in sent[0]["headers"]
    assert (b"x-y", b"z") in sent[0]["headers"]
    assert not any(name == b"content-length" for name, _ in sent[0]["headers"])
    assert all(m["body"].endswith(b"\n") and m["body"].count(b"\n") == 1 for m in sent[1:-1])
    assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert events.closed
    said = json_lines(sent)
    assert [s["message"]["content"] for s in said] == ["a", "b", ""]
    last = said[-1]
    counts = {key: last[key] for key in last if key.endswith(("_count", "_duration", "truncated"))}
    assert counts == {
        "total_duration": 40, "load_duration": 30, "prompt_eval_count": 3, "prompt_eval_cached_count": 1, "prompt_eval_duration": 10,
        "eval_count": 2, "eval_duration": 20, "truncated": 5,
    }  # fmt: skip


async def test_the_fold_of_a_stream_is_one_object() -> None:
    events = Events(Text("a"), Text('"b\n'), END)
    (said,) = json_lines(await messages_of(await respond(events, stream=False)))
    assert said["message"] == {"role": "assistant", "content": 'a"b\n'}
    assert said["eval_count"] == 2
    assert events.closed


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reason", ["load", "unload"])
async def test_a_load_is_one_object_even_when_streaming(stream: bool, reason: str) -> None:
    events = Events(Done(reason))
    sent = await messages_of(await respond(events, stream=stream))
    assert (b"content-type", json_response.JSON.encode()) in sent[0]["headers"]
    assert events.closed
    assert json_lines(sent)[0]["done_reason"] == reason
    assert not any(key.endswith("duration") for key in json_lines(sent)[0])


@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_before_the_first_event_is_raised_for_its_own_status(stream: bool) -> None:
    events = Events(Busy("full"))
    with pytest.raises(Busy):
        await respond(events, stream=stream)
    assert events.closed


async def test_an_error_after_the_first_event_is_the_last_line() -> None:
    events = Events(Text("a"), NdaniError("it broke"), Text("b"))
    sent = await messages_of(await respond(events, stream=True))
    assert json_lines(sent)[-1] == {"error": "it broke"}
    assert sent[-1]["more_body"] is False
    assert events.closed
    with pytest.raises(NdaniError):
        await respond(Events(Text("a"), NdaniError("it broke")), stream=False)


async def test_a_fault_in_a_stream_is_a_last_line_too_and_is_raised_for_the_log() -> None:
    events = Events(Text("a"), KeyError("a secret"))
    response, sent = await respond(events, stream=True), []

    async def take(message: dict[str, Any]) -> None:
        sent.append(message)

    with pytest.raises(KeyError):
        await response({"type": "http", "method": "POST"}, None, take)
    assert json_lines(sent)[-1]["error"].startswith("ndani met a fault of its own (KeyError at ")
    assert "secret" not in str(sent)
    assert sent[-1]["more_body"] is False
    assert events.closed


async def test_a_client_that_cannot_be_written_to_closes_the_source() -> None:
    events = Events(*[Text("a")] * 10, END)
    response = await respond(events, stream=True)
    with pytest.raises(ConnectionResetError):
        await messages_of(response, gone_after=4)
    assert events.closed
    assert events.given < 10


async def test_progress_is_a_line_per_step_or_only_the_last() -> None:
    async def work(report: Report) -> None:
        report(Progress("pulling manifest"))
        report(Progress("pulling x", "sha256:x", 10, 0))
        report(Progress("success"))

    said = json_lines(await messages_of(await long_work.respond(work, True, format_step, ERRORS)))
    assert said == [
        {"status": "pulling manifest"},
        {"status": "pulling x", "digest": "sha256:x", "total": 10, "completed": 0},
        {"status": "success"},
    ]
    assert json_lines(await messages_of(await long_work.respond(work, False, format_step, ERRORS))) == [{"status": "success"}]


@pytest.mark.parametrize("text", ["", '"', "\\", "\n\r\t", "<&>", "\u2028", "\0", "🙂", "é" * 100])
def test_any_text_survives_rendering(text: str) -> None:
    for format_answer, read in ((format_chat, lambda v: v["message"]["content"]), (format_generate, lambda v: v["response"])):
        response_format = format_answer(f'm"{text}', timestamps.Timestamps())
        line = response_format.event
        assert read(json.loads(line(Text(text)))) == text
        assert json.loads(line(Text(text)))["model"] == f'm"{text}'
        assert read(json.loads(response_format.whole(Answer(text), END))) == text
        assert line(Text(text)).count(b"\n") == 1


def test_stamps_have_nanoseconds_and_grow() -> None:
    clock = timestamps.Timestamps()
    stamps = [clock.now() for _ in range(1000)]
    assert stamps == sorted(stamps)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", s) for s in stamps)
    assert re.fullmatch(r"2001-09-0\dT\d\d:46:40\.500000000(Z|[+-]\d\d:\d\d)", timestamps.local_stamp(1e9 + 0.5))
