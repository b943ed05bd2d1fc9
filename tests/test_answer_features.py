"""What an answer may have beside its text, natively and with real weights: a format, log-probabilities, thinking, tool calls."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server import Server, serving
from stores import link

pytestmark = [pytest.mark.weights]

THINKING = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
{{ if and .IsThinkSet .Think }}<think>
{{ end }}"""
CALLING = """{{- if .Tools }}<|im_start|>system
You may call functions: {{ .Tools }}
For each call write <tool_call>{"name": function, "arguments": object}</tool_call><|im_end|>
{{ end }}{{ range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}{{ if .ToolCalls }}<tool_call>
{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}{{ end }}</tool_call>{{ end }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "required": ["city"], "properties": {"city": {"type": "string", "maxLength": 20}}},
    },
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
ASK = [{"role": "user", "content": "Ann is 12 years old."}]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Server]:
    """The real model, and two of its weights with templates that think and call."""
    folder = tmp_path_factory.mktemp("made")
    with serving(folder, link(models, folder / "models", "smollm2")) as started:
        for name, template in (("thinky", THINKING), ("tooly", CALLING)):
            started.ask("/api/create", {"model": name, "from": "smollm2", "template": template, "stream": False})
        yield started


def chat(server: Server, model: str = "smollm2", **more: Any) -> dict[str, Any]:
    """One unstreamed chat."""
    return server.ask("/api/chat", {"model": model, "messages": ASK, "stream": False, "options": {"num_predict": 80}} | more)


@pytest.mark.parametrize("seed", range(5))
def test_a_format_is_obeyed(made: Server, seed: int) -> None:
    options = {"seed": seed, "num_predict": 80}
    person = json.loads(chat(made, format=PERSON, options=options)["message"]["content"])
    assert set(person) == {"name", "age"}
    assert isinstance(person["age"], int)
    assert re.fullmatch(r"[0-9]{3}-[A-F]{2}", chat(made, regex="[0-9]{3}-[A-F]{2}", options=options)["message"]["content"])
    assert chat(made, grammar='root ::= "yes" | "no"', options=options)["message"]["content"] in ("yes", "no")
    generated = made.ask(
        "/api/generate", {"model": "smollm2", "prompt": "A list.", "format": {"type": "array", "items": {"enum": [1, "x"]}, "maxItems": 3}}
    )
    assert set(json.loads(generated["response"])) <= {1, "x"}


def test_json_is_an_object(made: Server) -> None:
    assert chat(made, format="json")["message"]["content"].startswith("{")


def test_a_format_that_cannot_be_obeyed_is_refused(made: Server) -> None:
    for format_, said in (({"not": {}}, "uses not"), ("xml", "invalid format"), (7, "invalid format")):
        status, error = made.refusal("/api/chat", {"model": "smollm2", "messages": ASK, "format": format_})
        assert status == 400
        assert said in error
    assert made.refusal("/api/chat", {"model": "smollm2", "messages": ASK, "grammar": "root ::= nowhere"})[0] == 400
    assert made.refusal("/api/chat", {"model": "smollm2", "messages": ASK, "grammar": "x", "format": "json"})[0] == 400


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_log_probabilities_of_every_token(made: Server, path: str) -> None:
    body = {"model": "smollm2", "messages": ASK, "prompt": "Say hello.", "options": {"num_predict": 6, "temperature": 0}}
    whole = made.ask(path, body | {"logprobs": True, "top_logprobs": 3})
    text = whole["response"] if "response" in whole else whole["message"]["content"]
    assert len(whole["logprobs"]) == whole["eval_count"] == 6
    assert b"".join(bytes(item["bytes"]) for item in whole["logprobs"]).decode() == text
    for item in whole["logprobs"]:
        assert item["logprob"] <= 0
        assert len(item["top_logprobs"]) == 3
        assert item["top_logprobs"][0]["token"] == item["token"], "greedy"
    lines = made.lines(path, body | {"logprobs": True})
    assert [item["token"] for line in lines for item in line.get("logprobs", ())] == [item["token"] for item in whole["logprobs"]]
    assert "logprobs" not in made.ask(path, body)


def test_a_thinking_model_thinks_unless_told_not_to(made: Server) -> None:
    few = {"num_predict": 6, "temperature": 0}
    for think in (None, True, "high"):
        answer = chat(made, "thinky", think=think, options=few)
        assert answer["message"]["thinking"]
        assert answer["message"]["content"] == ""
    lines = made.lines("/api/chat", {"model": "thinky", "messages": ASK, "options": few})
    assert "".join(line["message"].get("thinking", "") for line in lines) == chat(made, "thinky", options=few)["message"]["thinking"]
    quiet = chat(made, "thinky", think=False, options=few)["message"]
    assert quiet["content"]
    assert "thinking" not in quiet
    generated = made.ask("/api/generate", {"model": "thinky", "prompt": "2+2?", "options": few})
    assert generated["thinking"]
    assert generated["response"] == ""


def test_thoughts_are_free_and_the_answer_after_them_obeys(made: Server) -> None:
    for stream in (True, False):
        body = {"model": "thinky", "messages": ASK, "format": PERSON, "options": {"num_predict": 200, "seed": 4}}
        lines = made.lines("/api/chat", body) if stream else [made.ask("/api/chat", body)]
        thinking = "".join(line["message"].get("thinking", "") for line in lines)
        content = "".join(line["message"]["content"] for line in lines)
        assert thinking
        if lines[-1]["done_reason"] == "stop":
            assert set(json.loads(content)) == {"name", "age"}
        assert lines[-1]["eval_count"] > 10


def test_what_a_model_cannot_do_is_refused(made: Server) -> None:
    for model, more, said in (
        ("smollm2", {"think": True}, '"smollm2" does not support thinking'),
        ("thinky", {"tools": [WEATHER]}, "registry.ollama.ai/library/thinky:latest does not support tools"),
        ("tooly", {"tools": [WEATHER], "tool_choice": {"function": {"name": "other"}}}, "tool_choice names a tool that is not among tools"),
        ("tooly", {"tool_choice": "required"}, "tool_choice wants a call, but there are no tools; send tools, or leave it out"),
    ):
        assert made.refusal("/api/chat", {"model": model, "messages": ASK} | more) == (400, said)


def test_tools_and_calls_are_rendered(made: Server) -> None:
    history = [
        {"role": "user", "content": "Weather in Nairobi?"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Nairobi"}}}]},
        {"role": "tool", "content": "21 C", "tool_name": "get_weather"},
    ]
    prompt = made.rendered("/api/chat", model="tooly", messages=history, tools=[WEATHER])
    assert '"name":"get_weather"' in prompt
    assert '{"name": "get_weather", "arguments": {"city":"Nairobi"}}' in prompt
    assert "21 C" in prompt


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_must_be_is_made(made: Server, seed: int, stream: bool) -> None:
    clock = {
        "type": "function",
        "function": {"name": "get_time", "parameters": {"type": "object", "properties": {"utc": {"type": "boolean"}}}},
    }
    for choice, names in (
        ("required", {"get_weather", "get_time"}),
        ({"type": "function", "function": {"name": "get_time"}}, {"get_time"}),
    ):
        body = {
            "model": "tooly",
            "messages": ASK,
            "tools": [WEATHER, clock],
            "tool_choice": choice,
            "options": {"seed": seed, "num_predict": 90},
        }
        lines = made.lines("/api/chat", body) if stream else [made.ask("/api/chat", body)]
        [call] = [call for line in lines for call in line["message"].get("tool_calls", ())]
        assert call["function"]["name"] in names
        assert isinstance(call["function"]["arguments"], dict)
        assert call["function"]["index"] == 0
        assert re.fullmatch(r"call_[a-z0-9]{8}", call["id"])
        assert "".join(line["message"]["content"] for line in lines) == ""
        assert lines[-1]["done_reason"] == "stop"
    without = chat(made, "tooly", tools=[WEATHER], tool_choice="none")
    assert "tool_calls" not in without["message"]
