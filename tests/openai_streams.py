"""Streams of OpenAI's API, read as its clients do: events in order, and folded into the object that the same request gives unstreamed."""

from __future__ import annotations

import json
from typing import Any


def events(text: str) -> list[dict[str, Any]]:
    """The JSON of each event; the stream must end in `[DONE]`."""
    frames = text.split("\n\n")
    assert frames.pop() == ""
    assert frames.pop() == "data: [DONE]"
    assert all(frame.startswith("data: {") and "\n" not in frame for frame in frames)
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def folded_chat(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The chat completion of a stream's chunks: deltas added up as a client would."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for piece in chunk["choices"]:
            new = {"index": piece["index"], "message": {"content": None, "refusal": None}, "logprobs": None, "finish_reason": None}
            choice = choices.setdefault(piece["index"], new)
            assert choice["finish_reason"] is None, "a piece after the end of its choice"
            _add(choice["message"], piece["delta"])
            choice["finish_reason"] = piece["finish_reason"]
            if piece["logprobs"]:
                choice["logprobs"] = choice["logprobs"] or {"content": [], "refusal": None}
                choice["logprobs"]["content"] += piece["logprobs"]["content"]
    whole = {key: chunks[0][key] for key in ("model", "system_fingerprint")} | {"object": "chat.completion"}
    return whole | {"choices": [choices[index] for index in sorted(choices)], "usage": chunks[-1].get("usage")}


def _add(message: dict[str, Any], delta: dict[str, Any]) -> None:
    assert "role" not in delta or "role" not in message, "the role comes once"
    for key, value in delta.items():
        if key == "tool_calls":
            calls = message.setdefault("tool_calls", [])
            for call in value:
                if call["index"] == len(calls):
                    calls.append(call)
                else:
                    calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
        elif isinstance(message.get(key), str):
            message[key] += value
        elif value is not None:
            message[key] = value


def folded_completion(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    """The completion of a stream's pieces."""
    choices: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        for part in piece["choices"]:
            new = {"text": "", "index": part["index"], "logprobs": None, "finish_reason": None}
            choice = choices.setdefault(part["index"], new)
            assert choice["finish_reason"] is None, "a piece after the end of its choice"
            choice["text"] += part["text"]
            choice["finish_reason"] = part["finish_reason"]
            if part["logprobs"]:
                choice["logprobs"] = choice["logprobs"] or {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
                for key, values in part["logprobs"].items():
                    choice["logprobs"][key] += values or []
    whole = {key: pieces[0][key] for key in ("model", "system_fingerprint", "object")}
    return whole | {"choices": [choices[index] for index in sorted(choices)], "usage": pieces[-1].get("usage")}
