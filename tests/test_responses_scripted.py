"""/v1/responses of a model that thinks, speaks and calls, in the real engine: made-up weights that always say the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from scripted_model import scripted
from server import Server, serving
from stores import put_echo

pytestmark = pytest.mark.slow

SAYS = '<think>I look it up.</think>One moment.<tool_call>{"name": "get_weather", "arguments": {"city": "Nairobi"}}</tool_call>'
TEMPLATE = """{{ if .Tools }}Tools: {{ .Tools }} For a call write <tool_call>{"name": function, "arguments": object}</tool_call>
{{ end }}{{ range .Messages }}{{ .Role }}: {{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}
{{- if .ToolCalls }}<tool_call>
{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}{{ end }}</tool_call>{{ end }}
{{ end }}assistant:{{ if and .IsThinkSet (not .Think) }} /no_think{{ end }}"""
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "strict": None,
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
REQUEST: Any = {
    "model": "scripted",
    "input": "How is the weather in Nairobi?",
    "tools": [WEATHER],
    "temperature": 0,
    "max_output_tokens": 200,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("scripted")
    put_echo(folder / "models", "scripted", scripted(SAYS), engine="gguf", template=TEMPLATE)
    with serving(folder, folder / "models") as started:
        yield started


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_thoughts_text_and_a_call_are_three_items(client: openai.OpenAI) -> None:
    response = client.responses.create(reasoning={"effort": "high", "summary": "auto"}, **REQUEST)
    thought, message, call = response.output
    assert thought.type == "reasoning"
    assert thought.summary[0].text.strip() == "I look it up."
    assert message.type == "message"
    assert response.output_text.strip() == "One moment."
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Nairobi"})
    assert response.usage is not None
    assert 0 < response.usage.output_tokens_details.reasoning_tokens < response.usage.output_tokens


def test_the_stream_builds_the_same_items(client: openai.OpenAI) -> None:
    whole = client.responses.create(**REQUEST)
    events = list(client.responses.create(stream=True, **REQUEST))
    kinds, last = [event.type for event in events], events[-1]
    assert last.type == "response.completed"
    assert [item.type for item in last.response.output] == ["reasoning", "message", "function_call"]
    for ours, streamed in zip(whole.output, last.response.output, strict=True):
        assert {**ours.to_dict(), "id": "", "call_id": ""} == {**streamed.to_dict(), "id": "", "call_id": ""}
    assert kinds.count("response.reasoning_summary_text.delta") > 1
    assert kinds.count("response.function_call_arguments.done") == 1


def test_the_call_and_its_result_are_the_next_prompt(client: openai.OpenAI, server: Server) -> None:
    first = client.responses.create(**REQUEST)
    call = first.output[-1]
    assert call.type == "function_call"
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    second = client.responses.create(**REQUEST | {"input": [result], "previous_response_id": first.id})
    again = client.responses.create(**REQUEST | {"input": [{"role": "user", "content": REQUEST["input"]}, *first.output, result]})
    assert first.usage is not None
    assert second.usage is not None
    assert again.usage is not None
    assert second.usage.input_tokens == again.usage.input_tokens > first.usage.input_tokens


def test_a_model_that_is_not_to_think_is_told_so(client: openai.OpenAI) -> None:
    counts = [client.responses.input_tokens.count(model="scripted", input="hi", reasoning={"effort": effort}) for effort in ("none", "low")]
    assert counts[0].input_tokens - counts[1].input_tokens == len(" /no_think")
