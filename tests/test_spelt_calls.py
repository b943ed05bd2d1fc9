"""Calls that are spelt as in a program: read whole, or given back to the letter."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ndani.outputs.call_syntax import read_calls
from server import slowness
from test_answer_parser import THINK, agrees

OLMO = ("<function_calls>", "</function_calls>")
GEMMA = ("<start_function_call>", "<end_function_call>")


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("add()", [("add", {})]),
        ('f(a="x", b=3, c=-2.5e1, d=true, e=None)', [("f", {"a": "x", "b": 3, "c": -25.0, "d": True, "e": None})]),
        ("f(a='it\\'s', b=\"\\u00e9\\n\\\"\")", [("f", {"a": "it's", "b": 'é\n"'})]),
        ('f(a=["x", \'y\'], b={"k": {"z": [1, 2,]}, \'l\': []}, )', [("f", {"a": ["x", "y"], "b": {"k": {"z": [1, 2]}, "l": []}})]),
        ('f(a="),]}")\ng(b=1)', [("f", {"a": "),]}"}), ("g", {"b": 1})]),
        ("[f(a=1), g(b=2)]", [("f", {"a": 1}), ("g", {"b": 2})]),
        ("call:f{}", [("f", {})]),
        ("call:f{a:<escape>x, {y}\"<escape>,b:3,c:[<escape>z<escape>,1],d:{e:true}}",
         [("f", {"a": 'x, {y}"', "b": 3, "c": ["z", 1], "d": {"e": True}})]),
        ("f(a=New York)", [("f", {"a": "New York"})]),
        (" \n ", []),
        ("f(a=1", None),
        ("f(1)", None),
        ("f(a=)", None),
        ("f(a='x)", None),
        ("f(a=[1)", None),
        ("f", None),
        ("f(a=1) and g", None),
        ("f(a=1 b=2)", None),
        ("f(a=" + "[" * 200 + "]" * 200 + ")", None),
    ],
)  # fmt: skip
def test_calls_are_read_whole_or_not_at_all(text: str, calls: list[Any] | None) -> None:
    assert read_calls(text) == calls


@pytest.mark.parametrize(
    ("tags", "text", "expected"),
    [
        (OLMO, 'Let me see.<function_calls>add(a=1)\nhello()</function_calls>\n Done. ',
         [("text", "Let me see."), ("add", {"a": 1}), ("hello", {}), ("text", "Done. ")]),
        (OLMO, "<function_calls>add(a=1)</function_calls><function_calls>add(a=2)</function_calls>",
         [("add", {"a": 1}), ("add", {"a": 2})]),
        (OLMO, '<function_calls>add(a="é🦊")', [("add", {"a": "é🦊"})]),
        (OLMO, "<function_calls>other(a=1)</function_calls> so", [("text", "<function_calls>other(a=1)</function_calls> so")]),
        (OLMO, "<function_calls>add(a=1</function_calls>", [("text", "<function_calls>add(a=1</function_calls>")]),
        (OLMO, "<function_calls></function_calls>", [("text", "<function_calls></function_calls>")]),
        (OLMO, "<function_calls>add(a=", [("text", "<function_calls>add(a=")]),
        (OLMO, "a < b <function_ca", [("text", "a < b <function_ca")]),
        (GEMMA, "<start_function_call>call:add{a:<escape>x<escape>}<end_function_call>", [("add", {"a": "x"})]),
    ],
)  # fmt: skip
def test_calls_stand_between_the_tags(tags: tuple[str, str], text: str, expected: list[Any]) -> None:
    agrees(text, expected, call_tags=tags)
    agrees("<think>hm</think>\n" + text, [("thought", "hm"), *expected], call_tags=tags, thinking=THINK)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    ["f(a=" + "[" * (1 << 20), "f(" + "a=1," * (1 << 18) + ")", "f(a='" + "\\" * (1 << 20), "<escape>" * (1 << 17), "f() " * (1 << 18),
     "call:f{a:" + "<escape>x" * (1 << 17), 'f(a="' + '"' * (1 << 20), " " * (1 << 20), "f(a=" + "x" * (1 << 20)],
)  # fmt: skip
def test_a_hostile_call_takes_time_that_grows_with_its_length_only(text: str) -> None:
    started = time.process_time()
    read_calls(text)
    assert time.process_time() - started < 6 * slowness()
