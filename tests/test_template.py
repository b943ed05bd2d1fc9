"""TEMPLATE against real Go: what Ollama rendered, what Go's text/template rendered, and what must stop."""

from __future__ import annotations

import json
import re
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from ndani.errors import BadRequest
from ndani.prompts.template import Conversation, Template, Turn, parse
from ndani.types import ToolCall
from server import slowness

GOLDEN = Path(__file__).parent / "golden"
TODAY = date(2026, 11, 22)  # the day of the recordings
OLLAMA: dict[str, Any] = json.loads((GOLDEN / "templates.json").read_text())
GO: dict[str, Any] = json.loads((GOLDEN / "gotemplate.json").read_text())
LEGACY: dict[str, Any] = json.loads((GOLDEN / "legacy-templates.json").read_text())
MESSAGES = "{{ if .Messages }}{{ end }}"  # what mentions them is run once, not turn by turn


def conversation(recorded: dict[str, Any], think: bool | str | None = None) -> Conversation:
    """A recorded conversation in the words of the API."""
    turns = [
        Turn(
            role=message["role"],
            content=message["content"],
            thinking=message.get("thinking", ""),
            tool_calls=tuple(ToolCall(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())),
            tool_name=message.get("tool_name", ""),
        )
        for message in recorded["messages"]
    ]
    return Conversation(turns, recorded.get("tools", []), think=think)


def go_conversation(recorded: dict[str, Any]) -> Conversation:
    """A conversation of the generator, which speaks Go's field names."""
    turns = [
        Turn(
            role=message["Role"],
            content=message["Content"],
            thinking=message.get("Thinking", ""),
            tool_calls=tuple(
                ToolCall(call["Function"]["Name"], call["Function"]["Arguments"], call["ID"], call["Function"]["Index"])
                for call in message.get("ToolCalls", ())
            ),
            tool_name=message.get("ToolName", ""),
            tool_call_id=message.get("ToolCallID", ""),
        )
        for message in recorded["Messages"]
    ]
    think = (recorded["ThinkLevel"] or recorded["Think"]) if recorded.get("IsThinkSet") else None
    return Conversation(turns, recorded.get("Tools"), think=think)


def refusal(text: str, given: Conversation | None = None) -> str:
    """The sentence that a template ends in, read or run."""
    with pytest.raises(BadRequest) as caught:
        parse(text).render(given or Conversation([Turn("user", "a")]), TODAY)
    return str(caught.value)


def is_sentence(text: str) -> bool:
    return "\n" not in text and len(text) < 200 and bool(re.match(r"the template is wrong at line \d+, column \d+: \S", text))


def named(recorded: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("shape", recorded, ids=[shape["name"] for shape in recorded])


@named(OLLAMA["templates"])
def test_ollamas_recordings_agree_letter_for_letter(shape: dict[str, Any]) -> None:
    if "refused_at_create" in shape:
        with pytest.raises(BadRequest) as caught:
            parse(shape["template"])
        assert is_sentence(str(caught.value))
        return
    template = parse(shape["template"])
    assert {"completion"} | template.capabilities() == set(shape["capabilities"])
    for case in shape["cases"]:
        given = conversation(OLLAMA["conversations"][case["conversation"]], case.get("think"))
        if case.get("status") == 400:
            continue  # refused before any template is looked at: the model cannot think
        if "error" in case:
            assert is_sentence(refusal(shape["template"], given))
        else:
            assert template.render(given, TODAY) == case["rendered"], case["conversation"]
    if "generate" in shape:
        filled = Conversation(prompt=shape["generate"]["prompt"], suffix=shape["generate"]["suffix"])
        assert template.render(filled) == shape["generate"]["rendered"]


@named(GO["templates"])
def test_gos_recordings_agree_letter_for_letter(shape: dict[str, Any]) -> None:
    if "refused" in shape:
        with pytest.raises(BadRequest) as caught:
            parse(shape["template"])
        assert is_sentence(str(caught.value))
        return
    template = parse(shape["template"])
    for case in shape["cases"]:
        given = go_conversation(GO["conversations"][case["conversation"]])
        if case["rendered"] is None:
            assert is_sentence(refusal(shape["template"], given))
        else:
            assert template.render(given, TODAY) == case["rendered"], case["conversation"]


@pytest.mark.parametrize("shape", LEGACY["templates"], ids=[repr(shape["template"]) for shape in LEGACY["templates"]])
def test_legacy_templates_run_turn_by_turn_and_are_cut_after_the_response(shape: dict[str, Any]) -> None:
    template = parse(shape["template"])
    given = [conversation({"messages": messages}) for messages in LEGACY["conversations"]]
    assert [template.render(each, TODAY) for each in given] == shape["rendered"]


def test_the_recordings_cover_what_was_asked() -> None:
    rendered = [shape for shape in GO["templates"] if any(case["rendered"] for case in shape.get("cases", ()))]
    assert len(OLLAMA["templates"]) == 38
    assert len(rendered) >= 35
    assert sum("refused" in shape for shape in GO["templates"]) >= 30


def test_where_ollama_itself_fails_we_do_better() -> None:
    given = Conversation([Turn("user", "a"), Turn("assistant", "b")])
    assert parse('{{ define "r" }}{{ .Response }}{{ end }}{{ .Prompt }}{{ template "r" . }}').render(given) == "ab"
    assert parse("{{ .Prompt }}{{ if .Response }}{{ .Response }}{{ else }}none{{ end }}z").render(given) == "ab"
    assert parse("{{ json .Prompt }}{{ .Response }}").render(given) == '"a"b'


def test_what_only_ollama_refuses_is_refused() -> None:
    assert "called without a value" in refusal('{{ define "x" }}{{ .Response }}{{ end }}{{ template "x" }}')


def test_mentions_follow_ollamas_walk() -> None:
    template = parse(
        "{{ range $i, $m := .Messages }}{{ $m.ToolCalls }}{{ (index $.Tools 0).Function }}{{ if eq (len .Suffix) 1 }}{{ end }}{{ end }}"
    )
    assert template.mentions("Messages")
    assert template.mentions("toolcalls")
    assert template.mentions("suffix")
    assert template.mentions("$M")
    # It does not look before (…).Field.
    assert not template.mentions("tools")
    assert not template.mentions("function")
    assert parse("{{ .Prompt }}").mentions("response")  # given one
    assert parse('{{ define "a" }}{{ .Tools }}{{ end }}{{ .Prompt }}').capabilities() == {"tools"}


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        (
            "{{ range .Messages }}{{ if .Thinking }}<think>\n{{ .Thinking }}\n</think>{{ end }}{{ .Content }}{{ end }}",
            ("<think>", "</think>"),
        ),
        ("{{ range $i, $_ := .Messages }}{{ if and $.Think .Thinking }}[T]{{ .Thinking }}[/T]{{ end }}{{ end }}", ("[T]", "[/T]")),
        ("{{ range .Messages }}{{ if $m.Thinking }}<a>{{ end }}{{ end }}", None),
        ("{{ range .Messages }}{{ .Thinking }}</think>{{ end }}", ("", "</think>")),
        ("<a>{{ .Thinking }}</a>{{ range .Messages }}{{ end }}", ("", "")),
        ("{{ range .Messages }}{{ range .ToolCalls }}<a>{{ .Thinking }}</a>{{ end }}{{ end }}", ("", "")),
    ],
)
def test_thinking_tags_stand_around_the_thinking_of_a_message(text: str, tags: tuple[str, str] | None) -> None:
    if tags is None:
        assert "is not defined" in refusal(text)
        return
    template = parse(text)
    assert template.thinking_tags() == tags
    assert template.capabilities() == ({"thinking"} if all(tags) else set())


def test_an_error_names_its_line_and_column() -> None:
    assert refusal("a\nbé {{ .Prompt }}\n  {{ if .System }}") == "the template is wrong at line 3, column 6: {{ if }} has no {{ end }}"
    assert refusal("é\n{{ range .Messages }}{{ .Content.Foo }}{{ end }}") == (
        "the template is wrong at line 2, column 25: string has no field Foo"
    )
    assert refusal("{{ frob\x1b[31m }}").startswith("the template is wrong at line 1, column ")
    assert "\x1b" not in refusal('{{ template "\x1b[31m" . }}')


def test_a_sentence_never_holds_what_was_said() -> None:
    given = Conversation([Turn("user", "my secret")])
    for text in (
        "{{ range .Messages }}{{ .Content.X }}{{ end }}",
        '{{ index .Messages "a" }}',
        "{{ range .Messages }}{{ lt .Content 1 }}{{ end }}",
    ):
        assert "secret" not in refusal(text, given)


def test_text_that_is_no_unicode_becomes_the_replacement_character() -> None:
    given = Conversation([Turn("user", "a\ud800b\udc80")])
    assert parse("{{ range .Messages }}{{ .Content }}{{ end }}").render(given) == "a\ufffdb\ufffd"
    assert parse(MESSAGES + '{{ slice "é" 0 1 }}{{ slice "é" 1 }}').render(given) == "é"  # two halves are whole again
    assert parse("{{ .Prompt }}").render(given).encode() == "a\ufffdb\ufffd".encode()
    assert parse("{{ .Suffix }}{{ .Prompt }}").render(Conversation(prompt="\ud800", suffix="x")) == "x\ufffd"


def test_dates_are_todays_unless_one_is_given() -> None:
    template = parse(MESSAGES + "{{ currentDate }} {{ yesterdayDate }}")
    assert template.render(Conversation([Turn("user", "a")]), date(2024, 3, 1)) == "2024-03-01 2024-02-29"
    before = date.today()
    shown = template.render(Conversation([Turn("user", "a")]))[:10]
    assert before.isoformat() <= shown <= date.today().isoformat()


def test_images_can_be_counted_and_written() -> None:
    given = Conversation([Turn("user", "a", images=(b"\x00\xff", b"x"))])
    template = parse(
        "{{ range .Messages }}{{ range $i, $_ := .Images }}[img-{{ $i }}]{{ end }}{{ len .Images }}{{ .Images }}{{ json .Images }}{{ end }}"
    )
    assert template.render(given) == '[img-0][img-1]2[[0 255] [120]]["AP8=","eA=="]'


@pytest.mark.parametrize(
    ("tools", "says"),
    [
        (["x"], "tools[0] must be an object"),
        ([{"function": 1}], "tools[0].function must be an object"),
        ([{"function": {"name": 1}}], "tools[0].function.name must be a string"),
        ([{"function": {"parameters": {"required": "a"}}}], "tools[0].function.parameters.required must be a list of strings"),
        ([{"function": {"parameters": {"properties": {"a": 1}}}}], "tools[0].function.parameters.properties.a must be an object"),
        (
            [{"function": {"parameters": {"properties": {"a": {"enum": 1}}}}}],
            "tools[0].function.parameters.properties.a.enum must be a list",
        ),
        (
            [{"function": {"parameters": {"properties": {"a": {"anyOf": 1}}}}}],
            "tools[0].function.parameters.properties.a.anyOf must be a list",
        ),
        ([{"items": 10**400}], "a number in tools[0].items is too large"),
    ],
)
def test_what_is_no_tool_is_refused_by_its_field(tools: list[object], says: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(MESSAGES + "{{ .Tools }}").render(Conversation([Turn("user", "a")], tools))
    assert str(caught.value) == says


def test_nested_tools_keep_their_order_and_end_somewhere() -> None:
    inner: dict[str, Any] = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "number"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"o": inner}}}}
    shown = parse("{{ range .Messages }}{{ end }}{{ .Tools }}").render(Conversation([Turn("user", "a")], [tool]))
    assert '"properties":{"z":{"type":"string"},"a":{"type":"number"}}' in shown
    for _ in range(200):
        inner = {"type": "object", "properties": {"x": inner}}
    tool["function"]["parameters"]["properties"]["o"] = inner  # type: ignore[index]
    with pytest.raises(BadRequest, match="nested more than 100 deep"):
        parse(MESSAGES + "{{ .Tools }}").render(Conversation([Turn("user", "a")], [tool]))


DOUBLED = '{{ $s := "é🦊\\x01x" }}{{ range 19 }}{{ $s = print $s $s }}{{ end }}'
HOSTILE = {
    "a template that calls itself": '{{ define "a" }}{{ template "a" . }}{{ end }}{{ template "a" . }}',
    "a template that calls the whole": '{{ template "" . }}',
    "an endless range": "{{ range 1000000000000 }}{{ end }}",
    "ranges in ranges": "{{ range 100000 }}{{ range 100000 }}{{ range 100000 }}x{{ end }}{{ end }}{{ end }}",
    "a huge prompt": "{{ range 1000000000 }}" + "x" * 10_000 + "{{ end }}",
    "a text that doubles": '{{ $s := "abcdefgh" }}{{ range 40 }}{{ $s = print $s $s }}{{ end }}',
    "a wide number": '{{ printf "%999999999d" 1 }}',
    "a width from outside": '{{ printf "%*d" 100000000 1 }}',
    "fractions without end": '{{ range 1000000 }}{{ $x := printf "%.999f" 1.5e300 }}{{ end }}',
    "long texts quoted": DOUBLED + '{{ range 1000 }}{{ $x := printf "%q" $s }}{{ end }}',
    "long texts escaped": DOUBLED + "{{ range 1000 }}{{ $x := html $s }}{{ $x = js $s }}{{ $x = json $s }}{{ end }}",
    "long texts measured": DOUBLED + "{{ range 100000 }}{{ $x := len $s }}{{ end }}",
    "long texts cut": DOUBLED + "{{ range 100000 }}{{ $x := slice $s 3 }}{{ end }}",
    "long texts kept": DOUBLED + "".join(f'{{{{ $a{place} := print $s "x" }}}}' for place in range(900)),
    "the data printed again and again": "{{ range 100000000 }}{{ $x := print $ }}{{ $x = json $ }}{{ end }}",
    "many variables": "".join(f"{{{{ $a{place} := 1 }}}}" for place in range(2000)),
    "far variables": "".join(f"{{{{ $a{place} := 1 }}}}" for place in range(990)) + "{{ range 1000000 }}{{ $a0 = 2 }}{{ end }}",
    "deep parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep blocks": "{{ if 1 }}" * 2000 + "{{ end }}" * 2000,
    "a long chain of else-ifs": "{{ if 0 }}" + "{{ else if 0 }}" * 4000 + "{{ end }}",
    "a long number": "{{ " + "9" * 100_000 + " }}",
}


@pytest.mark.slow
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_template_stops_within_its_bounds(text: str) -> None:
    many = {f"p{place}": {"type": "string", "description": "d" * 50} for place in range(300)}
    given = Conversation([Turn("user", "é🦊" * 1000)], [{"function": {"parameters": {"properties": many}}}])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    assert is_sentence(refusal(MESSAGES + text, given))
    assert time.process_time() - started < 10 * slowness()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB


@pytest.mark.slow
def test_a_long_template_is_refused_and_the_deepest_allowed_one_runs() -> None:
    assert refusal("x" * (1 << 19)) == "the template is longer than 262,144 characters"
    assert refusal("{{1}}" * 20_000).endswith("it has more than 40,000 words and signs; make it shorter")
    assert parse(MESSAGES + "x" * 200_000 + "{{1}}" * 10_000).render(Conversation()).endswith("x" + "1" * 10_000)
    assert refusal(MESSAGES + "{{ range 2000000 }}{{ end }}").endswith("it takes more than 1,000,000 steps; have it do less, or less often")
    assert parse(MESSAGES + "{{ if 1 }}" * 99 + "x" + "{{ end }}" * 99).render(Conversation()) == "x"
    assert parse(MESSAGES + "{{ " + "(print " * 99 + "1" + ")" * 99 + " }}").render(Conversation()) == "1"


@pytest.mark.slow
def test_a_long_conversation_is_no_endless_loop() -> None:
    shape = next(shape for shape in OLLAMA["templates"] if shape["name"] == "tool-call-tags")
    turns = [Turn("user" if place % 2 == 0 else "assistant", "word " * 10) for place in range(5_000)]
    shown = parse(shape["template"]).render(Conversation(turns))
    assert shown.count("<|im_start|>") == 5_000


def test_one_template_is_rendered_by_many_threads_at_once() -> None:
    template: Template = parse("{{ $n := 0 }}{{ range .Messages }}{{ $n = len .Content }}{{ .Content }}{{ end }}{{ $n }}{{ .System }}")
    with ThreadPoolExecutor(8) as threads:
        shown = list(threads.map(lambda place: template.render(Conversation([Turn("user", str(place))])), range(200)))
    assert shown == [f"{place}{len(str(place))}" for place in range(200)]
