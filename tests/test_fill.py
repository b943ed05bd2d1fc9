"""A request's messages and tools into a template: it sees all that Ollama shows it, in every recorded case."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from ndani.errors import BadRequest
from ndani.prompts import fill
from ndani.prompts.template import parse
from ndani.types import Message, Tool, ToolCall

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "templates.json").read_text())
RENDERED = [
    (shape["template"], case)
    for shape in RECORDED["templates"]
    for case in shape.get("cases", ())
    if "rendered" in case and "Date" not in shape["template"]
]


def message(recorded: dict[str, Any]) -> Message:
    calls = tuple(ToolCall(each["function"]["name"], each["function"]["arguments"]) for each in recorded.get("tool_calls", ()))
    return Message(
        recorded["role"],
        recorded["content"],
        recorded.get("thinking", ""),
        tool_name=recorded.get("tool_name", ""),
        tool_calls=calls,
    )


def tool(definition: dict[str, Any]) -> Tool:
    function = definition["function"]
    return Tool(function["name"], function.get("parameters", {}), definition)


@pytest.mark.parametrize(("template", "case"), RENDERED, ids=range(len(RENDERED)))
def test_a_recorded_conversation_is_filled_in_letter_for_letter(template: str, case: dict[str, Any]) -> None:
    given = RECORDED["conversations"][case["conversation"]]
    messages, tools = tuple(map(message, given["messages"])), tuple(map(tool, given.get("tools", ())))
    assert fill(parse(template), messages, think=case.get("think"), tools=tools) == case["rendered"]


def test_the_recordings_hold_tools_calls_and_thoughts() -> None:
    assert len(RENDERED) > 150
    used = [RECORDED["conversations"][case["conversation"]] for _, case in RENDERED]
    assert any(given.get("tools") for given in used)
    assert any(turn.get("tool_calls") for given in used for turn in given["messages"])
    assert any(turn.get("thinking") for given in used for turn in given["messages"])
    assert {case.get("think") for _, case in RENDERED} >= {None, False}  # what can think was not recorded with True


@pytest.mark.parametrize(
    ("think", "sees"),
    [(None, "false,,false"), (False, "false,,true"), (True, "true,,true"), ("low", "true,low,true"), ("max", "true,max,true")],
)
def test_a_template_sees_whether_and_how_much_to_think(think: bool | str | None, sees: str) -> None:
    template = parse("{{ if .Messages }}{{ end }}{{ .Think }},{{ .ThinkLevel }},{{ .IsThinkSet }}")
    assert fill(template, (Message("user", "a"),), think=think) == sees


def test_a_template_sees_calls_images_and_the_tool_of_an_answer() -> None:
    template = parse(
        "{{ range .Messages }}{{ range .ToolCalls }}{{ .ID }}:{{ .Function.Index }}:{{ .Function.Name }}{{ .Function.Arguments }} {{ end }}"
        "{{ .ToolName }}{{ .ToolCallID }}{{ len .Images }};{{ end }}{{ json .Tools }}"
    )
    calls = (ToolCall("add", {"b": 1, "a": 2}, "call_1", 0), ToolCall("get", {}, "call_2", 1))
    messages = (Message("assistant", "", tool_calls=calls), Message("tool", "3", tool_name="add", tool_call_id="call_1", images=(b"x",)))
    assert fill(template, messages) == 'call_1:0:add{"a":2,"b":1} call_2:1:get{} 0;addcall_11;null'
    assert fill(template, messages, tools=(tool({"type": "function", "function": {"name": "add"}}),)).endswith(
        ';[{"type":"function","function":{"name":"add","description":"","parameters":{"type":"","properties":null}}}]'
    )


def test_thoughts_count_for_the_length_of_a_prompt() -> None:
    with pytest.raises(BadRequest, match="the prompt is longer than"):
        fill(parse("{{ .Prompt }}"), (Message("assistant", "", thinking="x" * (1 << 24)),))


def test_the_date_is_todays() -> None:
    before = date.today()
    assert before.isoformat() <= fill(parse("{{ if .Messages }}{{ end }}{{ currentDate }}"), (Message("user", "a"),))
