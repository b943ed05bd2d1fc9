"""A model's text into thoughts, text and calls: the same for any chunks, nothing lost, and in time that grows with the text only."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from ndani.outputs import AnswerParser
from ndani.prompts.template import parse
from ndani.types import Called, Piece, Text, Thought, TokenLogprob, Tool
from server import slowness

THINK = ("<think>", "</think>")


def tool(name: str) -> Tool:
    return Tool(name, {}, {"type": "function", "function": {"name": name}})


TOOLS = tuple(map(tool, ("get_weather", "get_weather_now", "add", "hello")))
OSLO = ("get_weather", {"city": "Oslo"})
ADD = ("add", {"a": 1, "b": -2.5})
ODD = ("get_weather_now", {"é": '}{\\ " 🦊'})


def call(name: str, arguments: Any, key: str = "arguments") -> str:
    return json.dumps({"name": name, key: arguments}, ensure_ascii=False)


def joined(pieces: Iterable[Piece]) -> list[Any]:
    """Pieces with neighbours of one kind joined; a call is its name and its arguments."""
    out: list[Any] = []
    for piece in pieces:
        if isinstance(piece, Called):
            out.append((piece.call.name, dict(piece.call.arguments)))
        elif piece.text:
            kind = "thought" if isinstance(piece, Thought) else "text"
            if out and out[-1][0] == kind:
                out[-1] = (kind, out[-1][1] + piece.text)
            else:
                out.append((kind, piece.text))
    return out


def run(chunks: Iterable[str], **given: Any) -> list[Piece]:
    parser = AnswerParser(**{"thinking": None, "tool_tag": None, "tools": TOOLS, **given})
    return [piece for chunk in chunks for piece in parser.take(chunk)] + parser.finish()


def chunkings(text: str) -> Iterator[list[str]]:
    """Every way to cut a text in two, each length of chunks up to nine, and twenty ways with seeds."""
    yield [text]
    for place in range(1, len(text)):
        yield [text[:place], text[place:]]
    for size in range(1, 10):
        yield [text[start : start + size] for start in range(0, len(text), size)]
    for seed in range(20):
        dice = random.Random(seed)
        cuts = sorted(dice.randrange(len(text) + 1) for _ in range(dice.randrange(12)))
        yield [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def agrees(text: str, expected: list[Any], **given: Any) -> None:
    for chunks in chunkings(text):
        assert joined(run(chunks, **given)) == expected, chunks


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a b</think>c", [("thought", "a b"), ("text", "c")]),
        (" \n<think>\n a\n</think>\n\n c \n", [("thought", "a\n"), ("text", "c \n")]),
        ("<think></think> c", [("text", "c")]),
        ("<think>\n</think>", []),
        ("<think>a </thin </think>c</think><think>", [("thought", "a </thin "), ("text", "c</think><think>")]),
        ("<think>a<think>b</think>", [("thought", "a<think>b")]),
        ("<think>never closed </thin", [("thought", "never closed </thin")]),
        ("\n c <think>a</think>", [("text", "\n c <think>a</think>")]),
        ("<thin", [("text", "<thin")]),
        (" \n<thin king", [("text", " \n<thin king")]),
        (" \n ", [("text", " \n ")]),
        ("<think>é🦊</think>🦊é", [("thought", "é🦊"), ("text", "🦊é")]),
        ("", []),
    ],
)
def test_thoughts_stand_between_the_tags(text: str, expected: list[Any]) -> None:
    agrees(text, expected, thinking=THINK)


def test_thinking_may_have_begun_in_the_prompt() -> None:
    agrees("\n a</think>\nb", [("thought", "a"), ("text", "b")], thinking=THINK, thinking_began=True)
    agrees("a b", [("thought", "a b")], thinking=THINK, thinking_began=True)
    agrees("<think>a</think>b", [("thought", "<think>a"), ("text", "b")], thinking=THINK, thinking_began=True)


QWEN = "{{ range .Messages }}{{ if .ToolCalls }}<tool_call>\n{{ range .ToolCalls }}" + '{"name"{{ end }}</tool_call>{{ end }}{{ end }}'


@pytest.mark.parametrize(
    ("template", "tag"),
    [
        (QWEN, "<tool_call>"),
        ("{{ range .Messages }}{{ if eq .Role `x` }}a{{ else if .ToolCalls }}[TOOL_CALLS] [{{ end }}{{ end }}", "[TOOL_CALLS] ["),
        ("{{ if .ToolCalls }}{{ range .ToolCalls }}\r\n{{ end }}{{ end }}", "{"),
        ("{{ if .ToolCalls }}{{ range .ToolCalls }}{{ .Function.Name }}{{ end }}x{{ end }}", "{"),
        ("{{ if .ToolCalls }}{{ with 1 }} {{ else }}Action:\r\nx{{ end }}y{{ end }}", "Action:\nx"),
        ('{{ if .ToolCalls }}\n {"name": {{ end }}', "{"),
        ("{{ if .ToolCalls }}[{{ end }}", "["),
        ("{{ if $.Tools }}a{{ end }}{{ if .ToolCalls }}b{{ end }}{{ if .ToolCalls }}c{{ end }}", "b"),
        ("{{ with .Messages }}{{ range .ToolCalls }}a{{ end }}{{ end }}", "{"),
        ("{{ .Prompt }}", "{"),
    ],
)
def test_the_tag_of_calls_stands_in_the_template(template: str, tag: str) -> None:
    assert parse(template).tool_tag() == tag


def test_the_marks_of_calls_stand_in_the_template() -> None:
    text = "{{ range .Messages }}{{ if .Thinking }}[THINK]{{ .Thinking }}[/THINK]{{ end }}<|im_end|>{{ if .ToolCalls }}[TOOL_CALLS] ["
    text += '{{ range .ToolCalls }}<|sep|>{"name": <{{ .Function.Name }}> "b<c>"{{ else }}<x y>{{ end }}]</s>{{ end }}{{ end }}[AFTER]'
    assert parse(text).answer_marks() == ("[THINK]", "[/THINK]", "[TOOL_CALLS]", "<|sep|>", "<c>", "</s>")
    assert parse("{{ .Prompt }}<a>").answer_marks() == ()


DEEPSEEK = "<|tool▁calls▁begin|>"
DEEPSEEK_CALL = "<|tool▁call▁begin|>function<|tool▁sep|>{}\n```json\n{}\n```<|tool▁call▁end|>"
GIVEN_CALLS = [
    ("<tool_call>", "Wait. <tool_call>\n" + call(*OSLO) + "\n</tool_call>", [("text", "Wait. "), OSLO]),
    ("<tool_call>", f"<tool_call>{call(*OSLO)}</tool_call>\n<tool_call>\n{call(*ADD)}</tool_call>\n", [OSLO, ADD]),
    ("<tool_call>", f"<tool_call>\n{call(*OSLO)}\n{call(*ADD)}\n</tool_call>\n Done. ", [OSLO, ADD, ("text", "Done. ")]),
    ("<tool_call>", f"a<tool_call>{call(*OSLO)}</tool_call>b<tool_call>{call(*ADD)}</tool_call>c",
     [("text", "a"), OSLO, ("text", "b"), ADD, ("text", "c")]),
    ("<tool_call>", f"<tool_call>{call('hello', {})}</tool_call>", [("hello", {})]),
    ("<tool_call>", f"<tool_call>{call('hello', {})}}}</tool_call>", [("hello", {})]),  # one bracket too many
    ("<tool_call>", '<tool_call>{"arguments": {"city": "Oslo"}, "name": "get_weather"}</tool_call>', [OSLO]),
    ("<tool_call>", '<tool_call>{"name": "hello"}</tool_call>', [("hello", {})]),
    ("<tool_call>", '<tool_call>{"name": "hello", "arguments": null}</tool_call>', [("hello", {})]),
    ("<tool_call>", f"<tool_call>{call('add', json.dumps(ADD[1]))}", [ADD]),
    ("<tool_call>", "<tool_call>" + call(*ODD) + "x", [ODD, ("text", "x")]),
    ("[TOOL_CALLS]", f"[TOOL_CALLS] [{call(*OSLO)}, {call(*ADD)}][/TOOL_CALLS]", [OSLO, ADD]),
    ("[TOOL_CALLS]", '[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo"}[TOOL_CALLS]add[CALL_ID]a1B2[ARGS]{"a": 1, "b": -2.5}', [OSLO, ADD]),
    (DEEPSEEK, DEEPSEEK + DEEPSEEK_CALL.format("get_weather", '{"city": "Oslo"}') + "\n" + DEEPSEEK_CALL.format("add", json.dumps(ADD[1]))
     + "<|tool▁calls▁end|>", [OSLO, ADD]),
    ("Action:", 'Action: ```json\n[\n {"tool_name": "get_weather", "parameters": {"city": "Oslo"}}\n]```', [OSLO]),
    ("functools", f"functools[{call(*OSLO, 'parameters')}]", [OSLO]),
    ("<call>", '<call>{"get_weather": {"city": "Oslo"}, "add": {"a": 1, "b": -2.5}}</call>', [OSLO, ADD]),
    ("<call>", f'<call>{{"tool_calls": [{{"type": "function", "function": {call(*OSLO)}}}, {call(*ADD)}]}}</call>', [OSLO, ADD]),
    ("<call>", '<call>{"name": "Bob", "arguments": {"get_weather": {}}}</call>',
     [("text", '<call>{"name": "Bob", "arguments": {"get_weather": {}}}</call>')]),
    ("<call>", '<call>add <call>{"name": "Bob", "age": 3}', [("add", {"name": "Bob", "age": 3})]),
    ("[TOOL_CALLS] [", f"a [TOOL_CALLS][{call(*OSLO)}]", [("text", "a "), OSLO]),
    ("{", call(*OSLO, "parameters"), [OSLO]),
    ("{", f" \n[{call(*OSLO)},\n{call(*ADD)}]\n", [OSLO, ADD]),
    ("{", f"{call(*OSLO)}; {call(*ADD)} So.", [OSLO, ADD, ("text", "So.")]),
    ("[", f"[{call(*OSLO)}]", [OSLO]),
    ("[", call(*OSLO), [OSLO]),
]  # fmt: skip


@pytest.mark.parametrize(("tag", "text", "expected"), GIVEN_CALLS, ids=range(len(GIVEN_CALLS)))
def test_calls_are_found(tag: str, text: str, expected: list[Any]) -> None:
    agrees(text, expected, tool_tag=tag)
    agrees("<think>hm</think>\n" + text, [("thought", "hm"), *expected], tool_tag=tag, thinking=THINK)


NO_CALLS = [
    ("<tool_call>", "Just text, <b>bold</b> and {a} [b] get_weather."),
    ("<tool_call>", "<tool_cal"),
    ("<tool_call>", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Os'),
    ("<tool_call>", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call> after'),
    ("<tool_call>", '<tool_call>{"name": "get_weather", "arguments": 3}</tool_call>'),
    ("<tool_call>", "<tool_call>{'name': 'get_weather'}</tool_call>"),
    ("<tool_call>", '<tool_call>{"name": "get_weather\n", "arguments": {}}</tool_call>'),
    ("<tool_call>", "<tool_call> stands for a call; " + "it is long. " * 40 + "<tool_call> {}"),
    ("<tool_call>", '<tool_call>{"a": ' * 3),
    ("<tool_call>", "<tool_call>}{\\\"}"),
    ("[TOOL_CALLS]", "[TOOL_CALLS][get_weather(city='Oslo')]"),
    ("{", "[1] says so {}"),
    ("{", f"Sure: {call(*OSLO)}"),
    ("{", '{"answer": 42}'),
    ("{", '[[{"name": "add", "arguments": {}}]]'),
    ("{", ' [ {"answer": [1, {"b": {}}]}, {"c": 1}] and more'),
    ("{", " \n ["),
    ("[", '{"name": "add", "argum'),
]  # fmt: skip


@pytest.mark.parametrize(("tag", "text"), NO_CALLS, ids=range(len(NO_CALLS)))
def test_what_is_no_call_is_text_to_the_letter(tag: str, text: str) -> None:
    agrees(text, [("text", text)], tool_tag=tag)


def test_an_unfinished_call_after_a_finished_one_is_text() -> None:
    text = f"<tool_call>{call(*OSLO)}</tool_call>\n"
    agrees(text + '<tool_call>{"name"', [OSLO, ("text", '<tool_call>{"name"')], tool_tag="<tool_call>")
    agrees(text + "<tool_c", [OSLO, ("text", "<tool_c")], tool_tag="<tool_call>")
    agrees(text[:-3], [OSLO], tool_tag="<tool_call>")  # a closing tag that the end has cut
    agrees(text + "get_weather was called", [OSLO, ("text", "get_weather was called")], tool_tag="<tool_call>")
    agrees(text + "getting on", [OSLO, ("text", "getting on")], tool_tag="<tool_call>")


def test_an_answer_that_is_known_to_be_calls_needs_no_tag() -> None:
    agrees(call(*OSLO, "parameters"), [OSLO], tool_tag="<tool_call>", called=True)
    agrees(f"[{call(*OSLO)}, {call(*ADD)}]", [OSLO, ADD], tool_tag=None, called=True, thinking=THINK)


def test_calls_are_numbered_and_have_ids_of_their_own() -> None:
    calls = [piece.call for piece in run([f"[{call(*OSLO)},{call(*ADD)},{call(*OSLO)}]"], tool_tag="{") if isinstance(piece, Called)]
    assert [made.index for made in calls] == [0, 1, 2]
    assert all(re.fullmatch(r"call_[a-z0-9]{8}", made.id) for made in calls)
    assert len({made.id for made in calls}) == 3


def test_without_tools_or_tag_a_text_passes_at_once() -> None:
    assert run(["<tool_call>", "{"], tool_tag="<tool_call>", tools=()) == [Text("<tool_call>"), Text("{")]
    assert run(["<tool_call>", "{"]) == [Text("<tool_call>"), Text("{")]


def test_only_what_may_be_a_tag_is_held_back() -> None:
    parser = AnswerParser(thinking=THINK, tool_tag="<tool_call>", tools=TOOLS)
    assert parser.take("<think>ab</") == [Thought("ab")]
    assert parser.take("b></think>c") == [Thought("</b>"), Text("c")]
    assert parser.take("d <tool") == [Text("d ")]
    assert parser.take("box>") == [Text("<toolbox>")]
    assert parser.take(f"e<tool_call>{call(*OSLO)}")[0] == Text("e")
    assert parser.take("</tool_call>f") == []  # of "function", which may come before another call
    assert parser.take("it") == [Text("fit")]


def test_no_token_and_no_logprob_is_lost() -> None:
    text = f"<think> ab</think>\ncd <tool_call>{call(*OSLO)}</tool_call> ef<tool_call>{call(*ADD)}</tool_call>"
    for size in range(1, 12):
        chunks = [text[start : start + size] for start in range(0, len(text), size)]
        logprobs = [TokenLogprob(chunk, -1.0, chunk.encode()) for chunk in chunks]
        parser = AnswerParser(thinking=THINK, tool_tag="<tool_call>", tools=TOOLS)
        pieces: list[Piece] = []
        for index, chunk in enumerate(chunks):
            pieces += parser.take(chunk, (index,), (logprobs[index],))
        pieces += parser.finish()
        spoken = [piece for piece in pieces if not isinstance(piece, Called)]
        assert [token for piece in spoken for token in piece.tokens] == list(range(len(chunks)))
        assert [each for piece in spoken for each in piece.logprobs] == logprobs
        if size == 1:
            first = next(piece for piece in spoken if isinstance(piece, Thought))
            assert first.tokens == tuple(range(9))  # the tag's and the white space's with the first letter


MEGABYTE = 1 << 20
HOSTILE = {
    "white space": "\n " * (MEGABYTE // 2),
    "an object in an object": '{"a":' * (MEGABYTE // 5),
    "an object in a call in an object": '<tool_call>{"a":' * (MEGABYTE // 16) + "}" * (MEGABYTE // 16),
    "tags only": "<tool_call>" * (MEGABYTE // 11),
    "halves of tags": "<tool_cal" * (MEGABYTE // 9),
    "objects that are no calls": "<tool_call>{}" * (MEGABYTE // 13),
    "many calls": ("<tool_call>" + call("hello", {}) + "</tool_call>") * (MEGABYTE // 62),
    "a call that holds much": "<tool_call>" + call("add", {"a": "x" * MEGABYTE}),
    "a call of many values": "<tool_call>" + call("add", {"a": [{}] * (MEGABYTE // 4)}),
    "many objects, none a call": '<tool_call>{"a": [' + ",".join(["{}"] * (MEGABYTE // 3)) + "]}",
    "an open string": '<tool_call>{"' + "\\" * MEGABYTE,
    "quotes": '<tool_call>{"' + '"' * MEGABYTE,
    "closing brackets after a call": f"<tool_call>{call('hello', {})}" + "]" * MEGABYTE,
    "closing tags after a call": f"<tool_call>{call('hello', {})}" + "</a>" * (MEGABYTE // 4),
    "names after a call": f"<tool_call>{call('hello', {})}" + "function " * (MEGABYTE // 9),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_text_takes_time_that_grows_with_its_length_only(text: str) -> None:
    started = time.process_time()
    for tag in ("<tool_call>", "{"):
        run([text], tool_tag=tag)
        run([text], tool_tag=tag, thinking=THINK, thinking_began=True)
    part = text[: MEGABYTE // 4]
    run([part[start : start + 4] for start in range(0, len(part), 4)], tool_tag="<tool_call>")
    run([part[start : start + 4] for start in range(0, len(part), 4)], tool_tag="{", thinking=THINK)
    assert time.process_time() - started < 12 * slowness()
