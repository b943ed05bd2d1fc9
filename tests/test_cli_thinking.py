"""Thoughts on the screen: between Ollama's two lines, before the answer, and only where there are any."""

from __future__ import annotations

import io

import pytest

from ndani.cli.thinking import ThinkingWriter
from ndani.cli.word_wrap import WordWrapper


@pytest.mark.parametrize(
    ("events", "shown", "hidden"),
    [
        ([("", "Hi"), ("", " you")], "Hi you", "Hi you"),
        ([("so", ""), (" it", ""), ("", "Hi")], "Thinking...\nso it\n...done thinking.\n\nHi", "Hi"),
        ([("so\n", ""), ("", "Hi")], "Thinking...\nso\n...done thinking.\n\nHi", "Hi"),
        ([("so", "")], "Thinking...\nso", ""),
        ([("", "")], "", ""),
    ],
)
def test_thoughts_stand_before_the_answer(events: list[tuple[str, str]], shown: str, hidden: str) -> None:
    for hide, expected in ((False, shown), (True, hidden)):
        out = io.StringIO()
        writer = WordWrapper(out)
        output = ThinkingWriter(writer, hidden=hide)
        for thought, text in events:
            output.write(thought, text)
        writer.close()
        assert out.getvalue() == expected
