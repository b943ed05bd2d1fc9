"""Every renderer and parser that models name is in the table of the documentation, and is served or refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ndani.store.answer_formats import (
    PARSERS,
    RENDERERS,
    THINK_TAGS,
    AnswerFormat,
    format_of_chat_template,
    implied_parser,
    prefers_chat_template,
    unserved,
)

TABLE = (Path(__file__).parents[1] / "docs" / "renderers.md").read_text(encoding="utf-8")


def names_in(heading: str) -> set[str]:
    """The names in the first column of a table."""
    rows = TABLE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return {name for row in re.findall(r"^\| (`.*?) \|", rows, re.MULTILINE) for name in re.findall(r"`([^`]+)`", row)}


def test_the_tables_have_every_name_and_no_other() -> None:
    assert names_in("Renderers") == RENDERERS
    assert names_in("Parsers") == set(PARSERS)


def test_the_table_says_which_parsers_need_the_chat_template() -> None:
    (refused,) = re.findall(r"^\| (.*) \| refused: only with", TABLE, re.MULTILINE)
    assert set(re.findall(r"`([^`]+)`", refused)) == {name for name, read in PARSERS.items() if read is None}


@pytest.mark.parametrize(
    ("renderer", "parser", "has_chat_template", "says"),
    [
        ("", "", False, ""),
        ("", "qwen3", False, ""),
        ("qwen3-coder", "qwen3-coder", True, ""),
        ("to-come", "", True, ""),
        ("qwen3-coder", "qwen3", False, "the renderer qwen3-coder"),
        ("to-come", "", False, "the renderer to-come"),
        ("", "harmony", False, "the parser harmony"),
        ("", "to-come", False, "the parser to-come"),
    ],
)
def test_what_nothing_here_can_do_is_refused(renderer: str, parser: str, has_chat_template: bool, says: str) -> None:
    reason = unserved(renderer, parser, has_chat_template=has_chat_template)
    assert says in reason
    assert bool(reason) == bool(says)


def test_a_placeholder_template_gives_way_to_the_weights() -> None:
    assert prefers_chat_template("gemma4", "")
    assert prefers_chat_template("", "harmony")
    assert not prefers_chat_template("", "qwen3")
    assert not prefers_chat_template("", "")
    assert implied_parser("gptoss", "<|start|>{{ .Prompt }}<|end|>") == "harmony"
    assert implied_parser("gptoss", "{{ .Prompt }}") == ""
    assert implied_parser("llama", "<|start|>{{ .Prompt }}<|end|>") == ""


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ messages }}", AnswerFormat()),
        ("<think>\n</think>{{ tools }}{{ tool_calls }}", AnswerFormat(THINK_TAGS)),
        ("<|channel|>analysis", AnswerFormat(engine_reads=True)),
        ("[THINK]{{ tools }}", AnswerFormat(engine_reads=True)),
        ("write <|tool_call|> and a list{{ tools }}", AnswerFormat(tool_tag="<|tool_call|>")),
        ("<|tool_call|>{{ message.tool_calls }}", AnswerFormat()),
        ("<function_calls>{{ tools }}", AnswerFormat(call_tags=("<function_calls>", "</function_calls>"))),
    ],
)
def test_a_chat_template_shows_how_answers_are_read(template: str, expected: AnswerFormat) -> None:
    found = format_of_chat_template(template)
    assert found == expected
    assert found.thinks == (expected.thinking is not None or expected.engine_reads)
    assert found.calls_are_ours == bool(expected.tool_tag or expected.call_tags)
