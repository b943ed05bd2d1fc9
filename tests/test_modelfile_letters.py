"""No letter of a Modelfile is lost: unseen ones, unassigned ones, and those that are copied from a page."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from ndani.cli.create import build_request
from ndani.control_characters import is_visible
from ndani.prompts.template.formats import quote
from ndani.store.modelfile import Modelfile, parse, print_modelfile
from ndani.store.parameters import excerpt, go_literal
from ndani.types import Message

#: Texts that are written with letters that nobody sees, and one letter that Python 3.11 does not know yet.
UNSEEN_LETTERS = {
    "Persian": "می\u200cشود",
    "Hindi": "क्\u200dष",
    "joined emoji": "👩\u200d🚀 👨\u200d👩\u200d👧",
    "newer than the tables": "\U0001fa77",
    "not assigned": "\U0001fae9 \u0378",
    "Arabic": "a\u200f!\u061c\u2067b\u2069",
    "French": "Quoi\u00a0? 1\u202f000",
    "Japanese": "\u3000段落",
    "blanks at the edges": "\u00a0\u2003a\u2028\u2029\u0085",
    "controls": "\x00\x0b\x0c\x1b[1m\x1c\x1d\x1e\x7f\x9b",
    "a mark in the middle": "a\ufeffb",
    "private": "\ue0a0 \U000f0000",
}


@pytest.mark.parametrize("text", UNSEEN_LETTERS.values(), ids=UNSEEN_LETTERS)
def test_no_letter_is_lost(text: str) -> None:
    model = Modelfile(
        (f"./{text}.gguf",), f"{text}{{{{ .Prompt }}}}{text}", text, (("stop", (text, f"{text}\n")),), (f"/a/{text}",), (text,),
        (Message("user", text), Message("assistant", f"{text}\n{text}")),
    )  # fmt: skip
    printed = print_modelfile(model)
    assert parse(printed) == parse(printed.encode()) == model
    assert parse(f"FROM x\nSYSTEM {text}").system == text


def test_each_code_point_comes_back() -> None:
    """Assigned or not: by itself, at both edges and in the middle, with nothing left out and nothing added."""
    halves = range(0xD800, 0xE000)
    for start in range(0, 0x110000, 64):
        for apart in ("", "a") if start < 0x10000 else ("",):
            text = apart.join(chr(code) for code in range(start, start + 64) if code not in halves)
            model = Modelfile(("x",), system=text, messages=(Message("user", f"{text}\n{text}"),))
            printed = print_modelfile(model)
            assert parse(printed.encode()) == model, hex(start)


def test_what_can_be_seen_is_not_the_interpreters_to_say() -> None:
    known = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) != "Cn"]
    assert [hex(ord(char)) for char in known if is_visible(char) != char.isprintable()] == []
    for char in ("\U0001fa77", "\U0001fae9", "\u0378"):  # of Unicode 15, of 16, of none
        assert is_visible(char)
        assert quote(char) == f'"{char}"' == go_literal(char)
        assert excerpt(char) == char


def test_a_name_and_a_number_that_were_copied_from_a_page(tmp_path: Path) -> None:
    body, _ = build_request(parse("FROM llama\u200b3:8b\u00a0\nPARAMETER num_ctx\t4096\u00a0\nPARAMETER stop \u00a0"), tmp_path)
    assert body == {"from": "llama3:8b", "parameters": {"num_ctx": 4096, "stop": ["\u00a0"]}}
    weights = tmp_path / "می\u200cشود\u00a0.gguf"
    weights.write_bytes(b"GGUF")
    body, files = build_request(parse(f"FROM ./{weights.name}"), tmp_path)
    assert body == {}
    assert list(files["files"].values()) == [weights], "a file's name may need them"
