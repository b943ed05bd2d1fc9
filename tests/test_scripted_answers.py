"""Thoughts and calls as the real engine writes them, token by token, some of them control tokens: read rightly in every format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from scripted_model import scripted
from server import Server, serving
from stores import put_echo

pytestmark = pytest.mark.slow

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}
    for name in ("get_weather", "get_news")
]
OSLO = ("get_weather", {"city": "Oslo"})
NEWS = ("get_news", {"city": "Rome"})

#: A chat template that shows tools, and writes calls with a tag, a name and arguments.
JINJA = """{%- if tools -%}{{- '<tools>' + (tools | tojson) + '</tools>' -}}{%- endif -%}
{%- for m in messages -%}{{- '<|' + m.role + '|>' + (m.content or '') -}}
{%- if m.tool_calls -%}{%- for c in m.tool_calls -%}CALL{%- endfor -%}{%- endif -%}
{{- '<|over|>' -}}{%- endfor -%}{{- '<|assistant|>' -}}"""


HARMONY = """{%- for m in messages -%}{%- if m.role == 'assistant' -%}
{%- if m.thinking -%}{{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' -}}{%- endif -%}
{%- if m.tool_calls -%}{%- set call = m.tool_calls[0].function -%}
{{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' + (call.arguments | tojson) + '<|call|>' -}}
{%- else -%}{{- '<|start|>assistant<|channel|>final<|message|>' + (m.content or '') + '<|end|>' -}}{%- endif -%}
{%- else -%}{{- '<|start|>' + m.role + '<|message|>' + (m.content or '') + '<|end|>' -}}{%- endif -%}
{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}"""


def jinja(call: str) -> str:
    """The chat template with this expression for a call."""
    return JINJA.replace("CALL", "{{- " + call + " -}}")


def go(before: str, each: str, after: str = "", thinking: tuple[str, str] = ("<think>", "</think>")) -> str:
    """A TEMPLATE that writes calls in this form."""
    return (
        "{{ if .Tools }}{{ .Tools }}{{ end }}{{ range .Messages }}<|{{ .Role }}|>"
        f"{{{{ if .Thinking }}}}{thinking[0]}{{{{ .Thinking }}}}{thinking[1]}{{{{ end }}}}{{{{ .Content }}}}"
        f"{{{{ if .ToolCalls }}}}{before}{{{{ range .ToolCalls }}}}{each}{{{{ end }}}}{after}{{{{ end }}}}<|over|>{{{{ end }}}}"
        "<|assistant|>"
    )


NAMED = '{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}'
DEEPSEEK = [f"<｜tool▁{mark}｜>" for mark in ("calls▁begin", "call▁begin", "sep", "call▁end", "calls▁end")]  # noqa: RUF001


@dataclass(frozen=True)
class Case:
    """What a model says, and what is to be read in it."""

    name: str
    text: str
    calls: tuple[tuple[str, dict[str, Any]], ...]
    thinking: str = ""
    content: str = ""
    special: tuple[str, ...] = ()
    template: str = ""
    chat_template: str | None = None
    config: dict[str, str] = field(default_factory=dict)


CASES = [
    Case(
        "qwen",
        '<think>\nHm, so.\n</think>\n\nOne moment. <tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>',
        (OSLO,),
        "Hm, so.\n",
        "One moment. ",
        ("<think>", "</think>", "<tool_call>"),
        go("<tool_call>\n", NAMED, "\n</tool_call>"),
    ),
    Case(
        "mistral",
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Oslo"}}, {"name": "get_news", "arguments": {"city": "Rome"}}]',
        (OSLO, NEWS),
        special=("[TOOL_CALLS]",),
        template=go("[TOOL_CALLS] [", NAMED, "]"),
    ),
    Case(
        "devstral",
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo"}',
        (OSLO,),
        special=("[TOOL_CALLS]", "[ARGS]"),
        template=go("", "[TOOL_CALLS]{{ .Function.Name }}[ARGS]{{ .Function.Arguments }}"),
    ),
    Case(
        "deepseek",
        f'{DEEPSEEK[0]}{DEEPSEEK[1]}function{DEEPSEEK[2]}get_weather\n```json\n{{"city": "Oslo"}}\n```{DEEPSEEK[3]}{DEEPSEEK[4]}',
        (OSLO,),
        special=tuple(DEEPSEEK),
        template=go(
            DEEPSEEK[0],
            f"{DEEPSEEK[1]}function{DEEPSEEK[2]}{{{{ .Function.Name }}}}\n```json\n{{{{ .Function.Arguments }}}}\n```{DEEPSEEK[3]}",
            DEEPSEEK[4],
        ),
    ),
    Case("llama", '{"name": "get_weather", "parameters": {"city": "Oslo"}}', (OSLO,), template=go("", NAMED.replace("arg", "par"))),
    Case(
        "olmo",
        'See here. <function_calls>get_weather(city="Oslo")\nget_news(city="Rome")</function_calls>',
        (OSLO, NEWS),
        content="See here. ",
        special=("<function_calls>",),
        chat_template=jinja("'<function_calls>' + c.function.name + '(…)</function_calls>'"),
        config={"renderer": "olmo3", "parser": "olmo3"},
    ),
    Case(
        "functiongemma",
        "<start_function_call>call:get_weather{city:<escape>Oslo<escape>}<end_function_call>",
        (OSLO,),
        special=("<start_function_call>", "<end_function_call>"),
        chat_template=jinja("'<start_function_call>call:' + c.function.name + '{…}<end_function_call>'"),
        config={"renderer": "functiongemma", "parser": "functiongemma"},
    ),
    Case(
        "granite",
        '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Oslo"}}]',
        (OSLO,),
        special=("<|tool_call|>",),
        chat_template="{{- 'Write <|tool_call|> and a list of calls.' -}}" + JINJA.replace("m.tool_calls", "m.calls").replace("CALL", ""),
    ),
    Case(
        "harmony, read by the engine",
        "<|channel|>analysis<|message|>Hm, so.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather "
        '<|constrain|>json<|message|>{"city": "Oslo"}',
        (OSLO,),
        "Hm, so.",
        special=("<|channel|>", "<|start|>", "<|constrain|>"),
        template="<|start|>{{ .Prompt }}<|end|>",  # gives way to the chat template
        chat_template=HARMONY,
        config={"model_family": "gptoss"},
    ),
    Case(
        "harmony without a call",
        "<|channel|>analysis<|message|>Hm, so.<|end|><|start|>assistant<|channel|>final<|message|>It rains.",
        (),
        "Hm, so.",
        "It rains.",
        chat_template=HARMONY,
        config={"model_family": "gptoss"},
    ),
    Case(
        "hermes, read by the engine",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>',
        (OSLO,),
        chat_template=jinja(
            "'<tool_call>\\n{\"name\": \"' + c.function.name + '\", \"arguments\": ' + (c.function.arguments | tojson) + '}\\n</tool_call>'"
        ),
    ),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("scripted")
    for number, case in enumerate(CASES):
        weights = scripted(case.text, special=case.special, chat_template=case.chat_template)
        layers = {"template": case.template} if case.template else {}
        put_echo(folder / "models", f"m{number}", weights, engine="gguf", config=case.config, **layers)
    with serving(folder, folder / "models", NDANI_OFFLINE="1") as started:
        yield started


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_calls_and_thoughts_are_read(server: Server, number: int, stream: bool) -> None:
    case = CASES[number]
    body = {"model": f"m{number}", "messages": [{"role": "user", "content": "Weather?"}], "tools": TOOLS, "options": {"num_predict": 200}}
    lines = server.lines("/api/chat", body) if stream else [server.ask("/api/chat", body)]
    messages = [line["message"] for line in lines]
    calls = [call["function"] for message in messages for call in message.get("tool_calls", ())]
    assert [(call["name"], call["arguments"]) for call in calls] == list(case.calls)
    assert "".join(message.get("thinking", "") for message in messages) == case.thinking
    assert "".join(message["content"] for message in messages) == case.content
    assert lines[-1]["done_reason"] == "stop"


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_an_answer_that_is_cut_off_is_an_answer(server: Server, number: int) -> None:
    body = {"model": f"m{number}", "messages": [{"role": "user", "content": "Weather?"}], "tools": TOOLS}
    for limit in (1, 5, 12):
        answer = server.ask("/api/chat", body | {"options": {"num_predict": limit}})
        assert answer["done_reason"] == "length"
        assert answer["eval_count"] == limit
        assert "tool_calls" not in answer["message"]


def test_without_tools_the_text_comes_as_it_is(server: Server) -> None:
    number = next(index for index, case in enumerate(CASES) if case.name == "llama")
    answer = server.ask("/api/chat", {"model": f"m{number}", "messages": [{"role": "user", "content": "Weather?"}]})
    assert answer["message"] == {"role": "assistant", "content": CASES[number].text}


def test_what_the_engine_cannot_give_with_its_reading_is_refused(server: Server) -> None:
    """Log-probabilities and a context, where an answer has channels that only the engine takes apart."""
    model = f"m{next(index for index, case in enumerate(CASES) if case.name == 'harmony without a call')}"
    chat = server.post("/api/chat", {"model": model, "messages": [{"role": "user", "content": "a"}], "logprobs": True})
    assert (chat.status_code, chat.json()["error"]) == (
        400,
        "the engine gives no logprobs with this form of thinking for this model; leave them out",
    )
    generate = server.post("/api/generate", {"model": model, "prompt": "a", "context": [1, 2]})
    assert generate.status_code == 400
    assert "takes no context" in generate.json()["error"]
    answer = server.ask("/api/generate", {"model": model, "prompt": "a"})
    assert (answer["thinking"], answer["response"]) == ("Hm, so.", "It rains.")
