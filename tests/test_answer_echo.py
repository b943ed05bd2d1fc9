"""An answer's text is read for thoughts and calls, over a real server: the echo engine writes what it is told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from server import Server, serving
from stores import put_echo

TEMPLATE = """{{ if .Tools }}{{ .Tools }}{{ end }}
{{- range .Messages }}<|{{ .Role }}|>{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}
{{- if .ToolCalls }}<tool_call>
{{- range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}{{ end }}
{{- end }}<|end|>{{ end }}<|assistant|>"""
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("f", "g")]
CALLS = (
    '<tool_call> {"name": "f", "arguments": {"a": [1, {"b": "}"}]}} </tool_call> <tool_call> {"name": "g", "arguments": {}} </tool_call>'
)


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model that thinks and calls."""
    folder = tmp_path_factory.mktemp("echo")
    put_echo(folder / "models", "m", template=TEMPLATE)
    with serving(folder, folder / "models") as started:
        yield started


def said(server: Server, text: str, stream: bool, **more: Any) -> tuple[str, str, list[dict[str, Any]], dict[str, Any]]:
    """Text, thinking, calls, and the last line of an answer that is `text`."""
    body = {"model": "m", "messages": [{"role": "user", "content": text}], "options": {"num_predict": len(text.split())}} | more
    lines = server.lines("/api/chat", body) if stream else [server.ask("/api/chat", body)]
    messages = [line["message"] for line in lines]
    calls = [call for message in messages for call in message.get("tool_calls", ())]
    return "".join(m["content"] for m in messages), "".join(m.get("thinking", "") for m in messages), calls, lines[-1]


@pytest.mark.parametrize("stream", [False, True])
def test_calls_are_read_and_thoughts_before_them(echo: Server, stream: bool) -> None:
    text, thinking, calls, last = said(echo, f"<think> first this </think> {CALLS}", stream, tools=TOOLS)
    assert thinking.strip() == "first this"
    assert [call["function"]["name"] for call in calls] == ["f", "g"]
    assert [call["function"]["index"] for call in calls] == [0, 1]
    assert calls[0]["function"]["arguments"] == {"a": [1, {"b": "}"}]}
    assert "tool_call" not in text
    assert last["done_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_without_tools_a_call_is_text_and_without_think_a_thought_is_text(echo: Server, stream: bool) -> None:
    text, thinking, calls, _ = said(echo, f"<think> a </think> {CALLS}", stream, think=False)
    assert text.strip() == f"<think> a </think> {CALLS}"
    assert not thinking
    assert not calls


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_cut_off_is_text(echo: Server, stream: bool) -> None:
    text, _, calls, last = said(echo, 'Hm. <tool_call> {"name": "f", "arguments": {"a": 1', stream, tools=TOOLS)
    assert not calls
    assert '"arguments"' in text
    assert last["done_reason"] == "length"


def test_a_choice_that_needs_a_grammar_is_refused_by_an_engine_without(echo: Server) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": TOOLS, "tool_choice": "required"}
    assert echo.refusal("/api/chat", body) == (400, "format is not in this version; ask for free text")
    assert not said(echo, CALLS, False, tools=TOOLS, tool_choice="none")[2]
