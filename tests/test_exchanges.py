"""Every surface answers as it did when its golden exchanges were recorded, and each streamed answer folds to the unstreamed one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from exchanges import SURFACES, Replay, golden_server, load, masked, read_body
from openai_streams import folded_chat, folded_completion
from server import Server

pytestmark = pytest.mark.slow

#: Paths whose answers can be streamed.
STREAMED = {"/api/chat", "/api/generate", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"}


@dataclass(frozen=True)
class Replayed:
    """One surface, replayed on a server of its own."""

    server: Server
    replay: Replay
    exchanges: list[dict[str, Any]]
    found: list[dict[str, Any]]


@pytest.fixture(scope="module", params=SURFACES)
def replayed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replayed]:
    with golden_server(tmp_path_factory.mktemp(request.param)) as server:
        replay, exchanges = Replay(server), load(request.param)
        yield Replayed(server, replay, exchanges, [replay.send(exchange) for exchange in exchanges])


def by_choice(response: dict[str, Any]) -> dict[str, Any]:
    """A response with the chunks of each choice together: several choices are written as their tokens come."""
    if "events" not in response:
        return response

    def choice(event: dict[str, Any]) -> int:
        data = event["data"]
        choices = data.get("choices") if isinstance(data, dict) else None
        if choices is None:
            return 1000 if data == "[DONE]" else 0
        return choices[0]["index"] if choices else 999

    return response | {"events": sorted(response["events"], key=choice)}


def test_the_answers_are_the_recorded_ones(replayed: Replayed) -> None:
    wrong = [
        f"{exchange['name']}:\n  recorded {json.dumps(exchange['response'])[:600]}\n  now      {json.dumps(found)[:600]}"
        for exchange, found in zip(replayed.exchanges, replayed.found, strict=True)
        if by_choice(exchange["response"]) != by_choice(found)
    ]
    assert not wrong, "\n".join(wrong)


def test_each_stream_folds_to_the_whole_answer(replayed: Replayed) -> None:
    folded = 0
    for exchange in replayed.exchanges:
        request = exchange["request"]
        body, ended = request.get("body") or {}, exchange["response"]["status"] != 200
        if request["path"] not in STREAMED or ended or body.get("stream") or body.get("_debug_render_only"):
            continue
        if "$" in json.dumps(body):  # what it goes on from has been deleted since
            continue
        whole = masked(replayed.replay.ask(request, stream=False).json(), replayed.server)
        stream = masked(read_body(replayed.replay.ask(request, stream=True, **_usage(request))), replayed.server)
        if "body" in stream:  # nothing was generated: a model was loaded
            assert stream["body"] == whole
            continue
        pieces = stream.get("lines") or [event["data"] for event in stream["events"] if event["data"] != "[DONE]"]
        assert FOLDS[request["path"]](pieces, whole) == whole, exchange["name"]
        folded += 1
    assert folded or replayed.exchanges[0]["name"] == "status", "the last surface is mostly not of answers"


def test_there_are_enough() -> None:
    every = {surface: load(surface) for surface in SURFACES}
    assert sum(map(len, every.values())) >= 120
    for surface, exchanges in every.items():
        names = [exchange["name"] for exchange in exchanges]
        assert len(set(names)) == len(names)
        assert any(exchange["response"]["status"] >= 400 for exchange in exchanges), surface


def _usage(request: dict[str, Any]) -> dict[str, Any]:
    chat = request["path"] in ("/v1/chat/completions", "/v1/completions")
    return {"stream_options": {"include_usage": True}} if chat else {}


def fold_lines(lines: list[dict[str, Any]], whole: dict[str, Any]) -> dict[str, Any]:
    """Ollama: texts are joined and calls collected; the last line has the rest."""
    last = dict(lines[-1])
    if "message" not in last:
        return last | {name: "".join(line.get(name, "") for line in lines) for name in ("response", "thinking") if name in whole}
    message: dict[str, Any] = {"role": last["message"]["role"]}
    for name in ("content", "thinking"):
        if name in whole["message"]:
            message[name] = "".join(line["message"].get(name, "") for line in lines)
    if calls := [call for line in lines for call in line["message"].get("tool_calls", ())]:
        message["tool_calls"] = calls
    return last | {"message": message}


def fold_chat(pieces: list[dict[str, Any]], whole: dict[str, Any]) -> dict[str, Any]:
    return {key: pieces[0][key] for key in ("id", "created")} | folded_chat(pieces)


def fold_completion(pieces: list[dict[str, Any]], whole: dict[str, Any]) -> dict[str, Any]:
    return {key: pieces[0][key] for key in ("id", "created")} | folded_completion(pieces)


def fold_response(events: list[dict[str, Any]], whole: dict[str, Any]) -> dict[str, Any]:
    """Responses: the last event has the whole response, and the deltas before it joined are its texts."""
    response = events[-1]["response"]
    texts = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert texts == "".join(part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"])
    arguments = "".join(event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta")
    assert arguments == "".join(item["arguments"] for item in response["output"] if item["type"] == "function_call")
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return dict(response)


#: The member of a block that grows, by the type of a delta.
DELTAS = {"text_delta": "text", "input_json_delta": "input", "thinking_delta": "thinking", "signature_delta": "signature"}


def fold_message(events: list[dict[str, Any]], whole: dict[str, Any]) -> dict[str, Any]:
    """Anthropic: blocks begin, grow and end; the message's end has the reason and the usage."""
    assert (events[0]["type"], events[-1]["type"]) == ("message_start", "message_stop")
    message = dict(events[0]["message"])
    blocks: list[dict[str, Any]] = []
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append(dict(event["content_block"]) | ({"input": ""} if event["content_block"]["type"] == "tool_use" else {}))
        elif event["type"] == "content_block_delta":
            delta, block = event["delta"], blocks[event["index"]]
            key = DELTAS[delta["type"]]
            block[key] += delta.get("partial_json", delta.get(key))
        elif event["type"] == "message_delta":
            message |= event["delta"] | {"usage": message["usage"] | event["usage"]}
    for block in blocks:
        if block["type"] == "tool_use":
            block["input"] = json.loads(block["input"] or "{}")
    return message | {"content": blocks}


FOLDS = {
    "/api/chat": fold_lines,
    "/api/generate": fold_lines,
    "/v1/chat/completions": fold_chat,
    "/v1/completions": fold_completion,
    "/v1/responses": fold_response,
    "/v1/messages": fold_message,
}
