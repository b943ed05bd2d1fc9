"""A model whose chat template is in its weights: the engine renders tools and thinking, and reads what the model makes of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ndani.engines.engine_chat import EngineChat
from ndani.engines.wire import CallDelta, ChatChunk, Delta, Timings, _Choice
from ndani.outputs import Accumulator
from ndani.types import Called, Piece, Text, Thought
from server import Server, serving
from stores import link

TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "required": ["a"], "properties": {"a": {"enum": [1, 2]}}}},
    }
    for name in ("f", "g")
]
ASK = [{"role": "user", "content": "Call f."}]


def chunk(finish: str | None = None, **delta: Any) -> ChatChunk:
    """One event of the engine."""
    return ChatChunk([_Choice(Delta(**delta), finish)], timings=Timings(predicted_n=9) if finish else None)


def call(index: int, name: str = "", arguments: str = "") -> CallDelta:
    """A part of a call."""
    return CallDelta(index, CallDelta.Function(name, arguments))


def read(*chunks: ChatChunk, one_call: bool = False) -> tuple[list[Piece], EngineChat]:
    """The pieces of an answer."""
    chat = EngineChat(Accumulator(100), one_call=one_call)
    pieces: list[Piece] = []
    for event in chunks:
        if not chat.over:
            pieces += chat.take(event)
    return pieces + list(chat.end()), chat


def test_parts_of_calls_are_joined() -> None:
    pieces, chat = read(
        chunk(content=""),
        chunk(reasoning_content="hm"),
        chunk(content="so"),
        chunk(tool_calls=[call(0, "f")]),
        chunk(tool_calls=[call(0, arguments='{"a":')]),
        chunk(tool_calls=[call(0, arguments=" 1}")]),
        chunk(tool_calls=[call(1, "g", "{}")]),
        chunk("tool_calls"),
    )
    calls = [piece.call for piece in pieces if isinstance(piece, Called)]
    assert [piece for piece in pieces if not isinstance(piece, Called)] == [Thought("hm"), Text("so")]
    assert [(c.name, c.arguments, c.index) for c in calls] == [("f", {"a": 1}, 0), ("g", {}, 1)]
    assert len({c.id for c in calls}) == 2
    assert chat.done(silent=False, slot_ctx=0, truncated=0).reason == "stop"


def test_one_call_is_enough_where_one_is_wanted() -> None:
    pieces, chat = read(chunk(tool_calls=[call(0, "f", "{}")]), chunk(tool_calls=[call(1, "g", "{}")]), one_call=True)
    assert [piece.call.name for piece in pieces if isinstance(piece, Called)] == ["f"]
    assert chat.over
    assert chat.done(silent=False, slot_ctx=0, truncated=0).reason == "stop"


def test_a_call_that_was_cut_off_is_text() -> None:
    pieces, chat = read(chunk(tool_calls=[call(0, "f", '{"a": ')]), chunk("length"))
    assert pieces == [Text('{"a": ')]
    assert chat.done(silent=False, slot_ctx=0, truncated=0).reason == "length"


def test_a_call_that_was_cut_off_before_its_arguments_is_none() -> None:
    for chunks in ((chunk(tool_calls=[call(0, "f")]), chunk("length")), (chunk(tool_calls=[call(0, "f")]),)):
        pieces, chat = read(*chunks)
        assert pieces == []
        assert chat.done(silent=False, slot_ctx=0, truncated=0).reason == "length"
    pieces, _ = read(chunk(tool_calls=[call(0, "f")]), chunk("tool_calls"))
    assert [piece.call.arguments for piece in pieces if isinstance(piece, Called)] == [{}], "the engine says that it is whole"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Server]:
    """The real weights with a chat template that has tools and thinking."""
    folder = tmp_path_factory.mktemp("jinja")
    store = link(models, folder / "models", "smollm2")
    [weights] = [path for path in (store / "blobs").iterdir() if path.stat().st_size > 50_000_000 and path.read_bytes()[:4] == b"GGUF"][:1]
    template = (Path(__file__).parent / "data" / "calling.jinja").read_text()
    new = folder / "new.gguf"
    script = [sys.executable, "-m", "gguf.scripts.gguf_new_metadata", "--chat-template", template, str(weights), str(new)]
    subprocess.run(script, check=True, capture_output=True, timeout=200)
    with serving(folder, store) as started:
        digest = started.upload(new.read_bytes())
        new.unlink()
        started.ask("/api/create", {"model": "caller", "files": {"m.gguf": digest}, "stream": False})
        yield started


@pytest.mark.weights
@pytest.mark.slow
def test_the_weights_template_tells_what_the_model_can(made: Server) -> None:
    assert {"completion", "tools", "thinking"} <= set(made.ask("/api/show", {"model": "caller"})["capabilities"])
    prompt = made.rendered("/api/chat", model="caller", messages=ASK, tools=TOOLS, think=False)
    assert '"name": "f"' in prompt
    assert prompt.endswith("<think>\n\n</think>\n\n")


@pytest.mark.weights
@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_calls_are_forced_and_free_answers_are_read(made: Server, stream: bool) -> None:
    def said(**more: Any) -> tuple[str, str, list[dict[str, Any]], dict[str, Any]]:
        body = {"model": "caller", "messages": ASK, "options": {"num_predict": 40, "temperature": 0}} | more
        lines = made.lines("/api/chat", body) if stream else [made.ask("/api/chat", body)]
        messages = [line["message"] for line in lines]
        calls = [c for message in messages for c in message.get("tool_calls", ())]
        return "".join(m["content"] for m in messages), "".join(m.get("thinking", "") for m in messages), calls, lines[-1]

    for choice, names in (("required", {"f", "g"}), ({"function": {"name": "g"}}, {"g"})):
        text, thinking, calls, last = said(tools=TOOLS, tool_choice=choice)
        assert (text, thinking, last["done_reason"]) == ("", "", "stop")
        assert [c["function"]["name"] in names and c["function"]["arguments"]["a"] in (1, 2) for c in calls] == [True]
    text, thinking, calls, last = said(tools=TOOLS)
    assert text or thinking or calls
    assert last["eval_count"] > 0
    assert last["prompt_eval_count"] > 100
    assert json.loads(
        said(format={"type": "object", "properties": {"a": {"type": "integer", "maximum": 9}}, "required": ["a"]}, think=False)[0]
    )


@pytest.mark.weights
@pytest.mark.slow
def test_a_conversation_that_is_too_long_loses_turns(made: Server) -> None:
    turns = [{"role": role, "content": f"{i} " + "word " * 200} for i in range(12) for role in ("user", "assistant")]
    body = {"model": "caller", "messages": [*turns, *ASK], "tools": TOOLS, "options": {"num_predict": 4, "num_ctx": 2048}}
    assert made.ask("/api/chat", body)["truncated"] > 0
    assert made.refusal("/api/chat", body | {"truncate": False})[0] == 400
    assert made.refusal("/api/chat", body | {"logprobs": True}) == (
        400,
        "the engine gives no logprobs together with tools for this model; leave them out",
    )
