"""A model's tokenizer over HTTP: text to ids and back, on the echo engine and on real weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conftest import Start
from ndani.service.tokenizer import MAX_TEXT_BYTES
from server import Server, until

TEXTS = ["a b", "  two  spaces ", "naïve 東京 🦊", "a word that is rather long", "line\nline", ""]


def tokens(server: Server, content: str, model: str = "echo", **more: Any) -> list[int]:
    answer = server.post("/api/tokenize", {"model": model, "content": content, **more})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert list(body) == ["model", "tokens", "count"]
    assert (body["model"], body["count"]) == (model, len(body["tokens"]))
    return list(body["tokens"])


def text(server: Server, ids: list[int], model: str = "echo") -> str:
    answer = server.post("/api/detokenize", {"model": model, "tokens": ids})
    assert answer.status_code == 200, answer.text
    assert list(answer.json()) == ["model", "content"]
    return str(answer.json()["content"])


@pytest.mark.parametrize("content", TEXTS)
def test_there_and_back(echo: Server, content: str) -> None:
    assert text(echo, tokens(echo, content)) == content


def test_three_names_for_the_text_in_any_case_and_null_is_nothing(echo: Server) -> None:
    wanted = tokens(echo, "a b c")
    assert len(wanted) == 3
    for body in ({"text": "a b c"}, {"prompt": "a b c", "content": None}, {"CONTENT": "a b c", "add_special": None, "options": None}):
        assert echo.post("/api/tokenize", {"model": " echo ", **body}).json()["tokens"] == wanted


def test_a_long_text_has_many_tokens(echo: Server) -> None:
    assert len(tokens(echo, "ab " * 200_000)) >= 200_000


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("tokenize", {"content": "x"}, 400, "model is required"),
        ("tokenize", {"model": 3, "content": "x"}, 400, "model must be a string"),
        ("tokenize", {"model": "echo"}, 400, "content is required, and no second text in text or prompt"),
        ("tokenize", {"model": "echo", "content": "x", "text": "x"}, 400, "content is required, and no second text in text or prompt"),
        ("tokenize", {"model": "echo", "content": ["x"]}, 400, "content must be a string"),
        ("tokenize", {"model": "echo", "content": "x", "add_special": 1}, 400, "add_special must be true or false"),
        ("tokenize", {"model": "none", "content": "x"}, 404, "model 'none' not found"),
        ("tokenize", {"model": "", "content": "x"}, 404, "model '' not found"),
        ("tokenize", {"model": "echo", "content": "x", "keep_alive": []}, 400, "keep_alive must be"),
        ("tokenize", {"model": "echo", "content": "x", "options": {"num_ctx": "x"}}, 400, 'option "num_ctx" must be of type integer'),
        ("tokenize", {"model": "echo", "content": "x" * (MAX_TEXT_BYTES + 1)}, 400, "the text is longer than"),
        ("detokenize", {"model": "echo"}, 400, "tokens is required"),
        ("detokenize", {"model": "echo", "tokens": "x"}, 400, "tokens must be an array"),
        ("detokenize", {"model": "echo", "tokens": [1.5]}, 400, "tokens[0] must be an integer"),
        ("detokenize", {"model": "echo", "tokens": [-1]}, 400, "tokens[0] must be an integer >= 0"),
        ("detokenize", {"model": "echo", "tokens": [2**53 + 1]}, 400, "tokens[0] must be an integer <= "),
        ("detokenize", {"model": "echo", "tokens": [True]}, 400, "tokens[0] must be an integer"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(echo: Server, path: str, body: dict[str, Any], status: int, sentence: str) -> None:
    got, said = echo.refusal(f"/api/{path}", body)
    assert (got, said[: len(sentence)]) == (status, sentence)


def test_num_ctx_and_keep_alive_are_those_of_the_request(start: Start, echo_store: Path) -> None:
    server = start(echo_store)
    tokens(server, "a b", options={"num_ctx": 1234}, keep_alive=-1)
    (resident,) = server.resident().values()
    assert resident["context_length"] == 1234
    assert resident["expires_at"] > "2200"
    server.post("/api/detokenize", {"model": "echo", "tokens": [], "keep_alive": 0})
    until(lambda: not server.resident(), "it has left")


@pytest.mark.weights
def test_a_real_tokenizer(real: Server) -> None:
    for content in TEXTS:
        assert text(real, tokens(real, content, "smollm2"), "smollm2") == content
    plain = tokens(real, "<|im_start|>user", "smollm2", parse_special=False)
    special = tokens(real, "<|im_start|>user", "smollm2")
    assert len(special) == 2 < len(plain)
    asked = {"model": "smollm2", "prompt": "The quick brown fox.", "raw": True, "options": {"num_predict": 1}}
    counted = real.ask("/api/generate", asked)["prompt_eval_count"]
    assert len(tokens(real, "The quick brown fox.", "smollm2", add_special=True)) == counted
    assert text(real, tokens(real, "東", "smollm2")[:1], "smollm2").strip("\ufffd") == "", "a part of a letter"
    for unknown in (49152, 2**31 - 1, 2**31, 2**32 + 5, 2**53):
        assert real.refusal("/api/detokenize", {"model": "smollm2", "tokens": [1, unknown]}) == (
            400,
            "tokens holds an id that this model does not have; send ids that its tokenizer made",
        )
