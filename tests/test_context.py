"""A conversation that goes on through `context`, and one that outgrows its model's context: nothing twice, nothing silently."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from conftest import Start
from ndani import names
from ndani.store import Store
from stores import REAL, put_echo

GENERATE = "/api/generate"
_FLAG = b"tokenizer.ggml.add_bos_token\x07\x00\x00\x00"


@pytest.mark.weights
def test_what_a_model_puts_in_front_of_every_prompt_comes_once(start: Start, models: Path, tmp_path: Path) -> None:
    """The real model, told by one byte of its file to begin every prompt with its first token, as gemma's is."""
    weights = bytearray(Store(models).find(names.parse(REAL)).weights_path.read_bytes())
    at = weights.index(_FLAG) + len(_FLAG)
    weights[at] = 1
    put_echo(tmp_path / "models", "begins", bytes(weights), engine="gguf")
    del weights
    server = start(tmp_path / "models", OLLAMA_CONTEXT_LENGTH="512", OLLAMA_NUM_PARALLEL="1")
    few = {"num_predict": 3, "temperature": 0}
    answer = server.ask(GENERATE, {"model": "begins", "prompt": "one", "template": "{{ .Prompt }}", "options": few})
    first = answer["context"][0]
    lengths = [len(answer["context"])]
    for word in ("two", "three", "four"):
        body = {"model": "begins", "prompt": word, "template": " {{ .Prompt }}", "context": answer["context"], "options": few}
        answer = server.ask(GENERATE, body)
        assert answer["context"][0] == first
        assert first not in answer["context"][1 : answer["prompt_eval_count"]]
        lengths.append(len(answer["context"]))
    assert all(1 <= more - less <= 8 for less, more in itertools.pairwise(lengths)), lengths


@pytest.mark.weights
def test_a_real_answer_that_outgrows_its_context_says_how_much(start: Start, real_store: Path) -> None:
    server = start(real_store, OLLAMA_CONTEXT_LENGTH="64", OLLAMA_NUM_PARALLEL="1")
    body = {"model": REAL, "prompt": "word " * 48, "raw": True, "options": {"num_predict": 24, "temperature": 0, "repeat_penalty": 1}}
    answer = server.ask(GENERATE, body)
    over = answer["prompt_eval_count"] + answer["eval_count"] - 64
    assert answer.get("truncated", 0) == max(over, 0)
    assert answer["eval_count"] == 24
    assert over > 0, "it went on past the end"


def test_an_answer_that_outgrows_its_context_is_counted_as_cut(start: Start, echo_store: Path) -> None:
    server = start(echo_store, OLLAMA_CONTEXT_LENGTH="64")
    body = {"model": "echo", "prompt": "one two " * 10, "raw": True}
    assert "truncated" not in server.ask(GENERATE, body | {"options": {"num_predict": 30}})
    answer = server.ask(GENERATE, body | {"options": {"num_predict": 100}})
    assert answer["truncated"] == answer["prompt_eval_count"] + 100 - 64 > 50
    counts = server.health()["counts"]
    assert (counts["truncated_prompts"], counts["truncated_tokens"]) == (1, answer["truncated"])
    stopped = server.ask(GENERATE, body | {"shift": False, "options": {"num_predict": 100}})
    assert "truncated" not in stopped
    assert stopped["eval_count"] < 64
