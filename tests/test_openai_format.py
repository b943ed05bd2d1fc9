"""OpenAI's answers, from events that a test makes up: chunks, whole objects, and that a stream folds to the object."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from ndani.api.edge.streaming import CollectedSink
from ndani.api.openai import objects
from ndani.api.openai.chat_format import format_chat
from ndani.api.openai.choices import ChoicesFormat
from ndani.api.openai.completion_format import format_completion
from ndani.api.openai.embeddings import format_embeddings
from ndani.api.openai.errors import ERRORS, ErrorBody
from ndani.errors import BadRequest, Busy, EngineFailed, NdaniError, NotFound
from ndani.types import Answer, Called, Done, Piece, Text, Thought, TokenLogprob, ToolCall, Usage, Vectors
from openai_streams import events, folded_chat, folded_completion

END = Done("stop", Usage(prompt_tokens=10, cached_tokens=4, output_tokens=6, thinking_tokens=2))
CUT = Done("length", END.usage)


def logprob(token: str) -> TokenLogprob:
    return TokenLogprob(token, -0.5, token.encode(), (TokenLogprob(token, -0.5, token.encode()), TokenLogprob("?", -1.5, b"?")))


PLAIN: list[Piece] = [Text("one"), Text(' "two"'), Text("\n ü €")]
LOGGED: list[Piece] = [Text("one", (), (logprob("one"),)), Text(" two", (), (logprob(" t"), logprob("wo")))]
THOUGHTFUL: list[Piece] = [Thought("let me"), Thought(" see"), Text("one"), Text(" two")]
CALLS: list[Piece] = [Called(ToolCall("weather", {"city": "Nairobi"}, "call_1")), Called(ToolCall("news", {}, "call_2", 1))]
STORIES = {
    "plain": PLAIN, "logged": LOGGED, "thoughtful": THOUGHTFUL, "calls": CALLS, "said and called": [Text("wait"), *CALLS],
    "thought and called": [Thought("hm"), *CALLS], "nothing": [], "only thoughts": [Thought("hm")],
    "logged thoughts": [Thought("hm", (), (logprob("hm"),)), *LOGGED],
}  # fmt: skip


def answer_of(pieces: Sequence[Piece]) -> Answer:
    sink = CollectedSink()
    for piece in pieces:
        sink.put(piece)
    return sink.collected()


def streamed(written: ChoicesFormat, *stories: Sequence[Piece], end: Done = END) -> list[dict[str, Any]]:
    """The chunks of these answers, piece by piece in turns, and then their ends."""
    frames = []
    for place in range(max(map(len, stories))):
        frames += [written.chunks[index](story[place]) for index, story in enumerate(stories) if place < len(story)]
    frames += [written.chunks[index](end) for index in reversed(range(len(stories)))]
    assert all(frames), "an empty chunk would end the body"
    return events(b"".join(frames).decode())


def whole(written: ChoicesFormat, *stories: Sequence[Piece], end: Done = END) -> dict[str, Any]:
    return dict(json.loads(written.whole([(answer_of(story), end) for story in stories])))


def same(folded: dict[str, Any], unstreamed: dict[str, Any]) -> None:
    assert folded == {key: value for key, value in unstreamed.items() if key not in ("id", "created")}


@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("end", [END, CUT], ids=["stop", "length"])
def test_a_streamed_chat_folds_to_the_unstreamed_one(story: str, end: Done) -> None:
    pieces = STORIES[story]
    chunks = streamed(format_chat("m", 1, True), pieces, end=end)
    folded = folded_chat(chunks)
    unstreamed = whole(format_chat("m", 1, False), pieces, end=end)
    if any(isinstance(piece, Thought) for piece in pieces) and not any(isinstance(piece, Text) for piece in pieces):
        # The first delta has an empty text beside its thought, and a client cannot tell that none will follow.
        folded["choices"][0]["message"]["content"] = unstreamed["choices"][0]["message"]["content"]
    same(folded, unstreamed)
    for chunk in chunks:
        assert msgspec.convert(chunk, objects.ChatChunk).object == "chat.completion.chunk"
    msgspec.convert(unstreamed, objects.ChatCompletion)


def test_several_choices_fold_too_and_their_prompt_counts_once() -> None:
    stories = (PLAIN, THOUGHTFUL, CALLS, LOGGED)
    folded = folded_chat(streamed(format_chat("m", 4, True), *stories))
    unstreamed = whole(format_chat("m", 4, True), *stories)
    same(folded, unstreamed)
    assert [choice["index"] for choice in folded["choices"]] == [0, 1, 2, 3]
    assert [choice["finish_reason"] for choice in folded["choices"]] == ["stop", "stop", "tool_calls", "stop"]
    assert folded["usage"] == {
        "prompt_tokens": 10, "completion_tokens": 24, "total_tokens": 34,
        "prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 8},
    }  # fmt: skip


def test_the_chunks_of_a_plain_chat() -> None:
    first, *others, last = streamed(format_chat("m", 1, False), PLAIN)
    assert set(first) == {"id", "object", "created", "model", "system_fingerprint", "choices"}
    assert {key: len({chunk[key] for chunk in (first, *others, last)}) for key in ("id", "created", "model")} == dict.fromkeys(
        ("id", "created", "model"), 1
    )
    assert first["choices"] == [{"index": 0, "delta": {"role": "assistant", "content": "one"}, "logprobs": None, "finish_reason": None}]
    assert [chunk["choices"][0]["delta"] for chunk in others] == [{"content": ' "two"'}, {"content": "\n ü €"}]
    assert last["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]


def test_usage_is_in_a_chunk_of_its_own_and_null_before() -> None:
    *others, last = streamed(format_chat("m", 1, True), PLAIN)
    assert {chunk["usage"] for chunk in others} == {None}
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 16


def test_a_call_has_its_arguments_as_text_and_content_is_null() -> None:
    message = whole(format_chat("m", 1, False), CALLS)["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [
        {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Nairobi"}'}},
        {"index": 1, "id": "call_2", "type": "function", "function": {"name": "news", "arguments": "{}"}},
    ]
    assert objects.tool_call_object(ToolCall("f", {})).id.startswith("call_")


def test_log_probabilities_of_a_chat() -> None:
    choice = whole(format_chat("m", 1, False), LOGGED)["choices"][0]
    assert [item["token"] for item in choice["logprobs"]["content"]] == ["one", " t", "wo"]
    assert choice["logprobs"]["content"][0] == {
        "token": "one", "logprob": -0.5, "bytes": [111, 110, 101],
        "top_logprobs": [{"token": "one", "logprob": -0.5, "bytes": [111, 110, 101]}, {"token": "?", "logprob": -1.5, "bytes": [63]}],
    }  # fmt: skip


def test_names_of_foundry_local_have_no_fingerprint() -> None:
    assert objects.fingerprint("smollm2-135m-generic-cpu:1") is objects.fingerprint("phi-4-cuda-gpu:12") is None
    assert objects.fingerprint("smollm2:135m") == objects.fingerprint("my-cpu:latest") == "fp_ndani"


@pytest.mark.parametrize("story", ["plain", "logged", "thoughtful", "nothing"])
def test_a_streamed_completion_folds_to_the_unstreamed_one(story: str) -> None:
    pieces = STORIES[story]
    for echoed in ([""], ["before "], ["", ""], ["a", "b"]):
        chunks = streamed(format_completion("m", echoed, 1, True), *[pieces] * len(echoed))
        unstreamed = whole(format_completion("m", echoed, 1, True), *[pieces] * len(echoed))
        same(folded_completion(chunks), unstreamed)
        for chunk in (*chunks, unstreamed):
            msgspec.convert(chunk, objects.TextCompletion)


def test_the_legacy_log_probabilities_and_the_tokens_of_several_prompts() -> None:
    one = whole(format_completion("m", [""] * 4, 2, False), *[LOGGED] * 4)
    assert one["choices"][0]["logprobs"] == {
        "tokens": ["one", " t", "wo"], "token_logprobs": [-0.5, -0.5, -0.5], "text_offset": [0, 3, 5],
        "top_logprobs": [{"one": -0.5, "?": -1.5}, {" t": -0.5, "?": -1.5}, {"wo": -0.5, "?": -1.5}],
    }  # fmt: skip
    assert (one["usage"]["prompt_tokens"], one["usage"]["completion_tokens"]) == (20, 24)


def test_vectors_as_numbers_and_as_base64() -> None:
    vectors = Vectors(((0.5, 0.25), (1.0, 1 / 3)), Usage(prompt_tokens=3))
    numbers = json.loads(asyncio.run(format_embeddings("m", vectors, False)))
    assert numbers == {
        "object": "list", "model": "m", "usage": {"prompt_tokens": 3, "total_tokens": 3},
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]},
            {"object": "embedding", "index": 1, "embedding": [1.0, 0.333333333]},
        ],
    }  # fmt: skip
    msgspec.convert(numbers, objects.EmbeddingList)
    encoded = json.loads(asyncio.run(format_embeddings("m", vectors, True)))
    assert encoded["data"][0]["embedding"] == "AAAAPwAAgD4="  # 0.5 and 0.25 as little-endian floats


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BadRequest("x"), "invalid_request_error"),
        (NotFound("x"), "not_found_error"),
        (EngineFailed("x"), "api_error"),
        (Busy("x"), "api_error"),
    ],
)
def test_errors(error: NdaniError, kind: str) -> None:
    body = {"error": {"message": "x", "type": kind, "param": None, "code": None}}
    assert msgspec.to_builtins(ERRORS.body(error)) == body
    assert msgspec.convert(body, ErrorBody).error.message == "x"
    frame = ERRORS.stream_end(error)
    assert frame.endswith(b"\n\n")
    assert json.loads(frame.removeprefix(b"data: ")) == body


def test_a_token_costs_at_most_25_microseconds() -> None:
    for chunk in (format_chat("m", 1, False).chunks[0], format_completion("m", [""], 1, False).chunks[0]):
        piece = Text(" token")
        chunk(piece)
        best = min(_microseconds(chunk, piece) for _ in range(5))
        assert best < 25, f"{best:.1f} µs"


def _microseconds(chunk: Any, piece: Piece) -> float:
    began = time.thread_time_ns()
    for _ in range(2000):
        chunk(piece)
    return (time.thread_time_ns() - began) / 2000 / 1000
