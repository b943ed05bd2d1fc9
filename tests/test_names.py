"""Model names as users type them."""

from __future__ import annotations

import pytest

from ndani.errors import BadName
from ndani.names import parse


@pytest.mark.parametrize(
    ("typed", "short", "full"),
    [
        ("smollm2", "smollm2:latest", "registry.ollama.ai/library/smollm2:latest"),
        ("smollm2:135m", "smollm2:135m", "registry.ollama.ai/library/smollm2:135m"),
        ("library/x:1", "x:1", "registry.ollama.ai/library/x:1"),
        ("me/x", "me/x:latest", "registry.ollama.ai/me/x:latest"),
        ("registry.ollama.ai/library/x:t", "x:t", "registry.ollama.ai/library/x:t"),
        ("https://hf.co/bartowski/Llama-3.2:Q4_K_M", "hf.co/bartowski/Llama-3.2:Q4_K_M", "hf.co/bartowski/Llama-3.2:Q4_K_M"),
        ("localhost:5000/a/b:c", "localhost:5000/a/b:c", "localhost:5000/a/b:c"),
        ("HTTP://localhost:5000/a/b:c", "localhost:5000/a/b:c", "localhost:5000/a/b:c"),
        ("_x.y-z:0.5b-instruct", "_x.y-z:0.5b-instruct", "registry.ollama.ai/library/_x.y-z:0.5b-instruct"),
        ("REGISTRY.ollama.AI/Library/X:T", "X:T", "REGISTRY.ollama.AI/Library/X:T"),
    ],
)
def test_a_name_is_read_and_printed(typed: str, short: str, full: str) -> None:
    name = parse(typed)
    assert (str(name), name.full) == (short, full)
    assert parse(str(name)).key == parse(full).key == name.key, "what is printed can be typed"


@pytest.mark.parametrize(
    "typed",
    [
        "", " ", ":", ":x", "x:", "/x", "x/", "a//b", "a/b/c/d", "..", "../x", "x/../y", ".x", "-x", "x:.t", "x:-t", "x:a:b",
        "a.b/x", "x y", "x\ty", "x\0", "x\ny", "x:\n1", "é", "x:日", "x;y", "x%2e", "x@y", "x\\y", "~/x", "x" * 81,
        " x:1", "x:1\n", "https://n/x:t", "http:///n/x", "https://http://h/n/x", "http://x", "x:" + "t" * 81,
        "n" * 81 + "/x", "h" * 256 + "/n/x", "..:5/a/b", "C:\\x", "ftp://h/n/x", "http://", "x" * 400, "$(x)", "x?y", "x#y", "x:1/2",
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused(typed: str) -> None:
    with pytest.raises(BadName) as met:
        parse(typed)
    assert str(met.value) == "invalid model name"


def test_a_scheme_can_be_refused() -> None:
    with pytest.raises(BadName):
        parse("https://hf.co/n/x", allow_scheme=False)
    assert parse("hf.co/n/x", allow_scheme=False).host == "hf.co"


def test_the_longest_parts_pass_and_case_does_not_matter() -> None:
    longest = f"{'h' * 255}/{'n' * 80}/{'m' * 80}:{'t' * 80}"
    assert parse(longest).full == longest
    assert parse("SmolLM2:135M").key == parse("smollm2:135m").key != parse("smollm2:136m").key


def test_the_refusal_is_the_callers_sentence() -> None:
    with pytest.raises(BadName, match="the source is no name"):
        parse("..", error="the source is no name")
