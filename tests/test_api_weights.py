"""Conversations, contexts and templates over a real server, with the real model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server import Server, serving
from stores import link


@pytest.mark.weights
def test_a_conversation_goes_on_through_its_context(real: Server) -> None:
    few = {"num_predict": 20, "temperature": 0}
    first = real.ask("/api/generate", {"model": "smollm2", "prompt": "My name is Zebulon.", "options": few})
    again = {"model": "smollm2", "prompt": "What is my name?", "options": few}
    assert "Zebulon" in real.ask("/api/generate", {**again, "context": first["context"]})["response"]
    assert "Zebulon" not in real.ask("/api/generate", again)["response"]
    assert real.post("/api/generate", {**again, "context": [10**9]}).status_code == 400


@pytest.mark.weights
def test_context_is_prompt_and_answer_in_ids(real: Server) -> None:
    one = real.ask("/api/generate", {"model": "smollm2", "prompt": "hi", "options": {"num_predict": 5}})
    assert len(one["context"]) == one["prompt_eval_count"] + 5
    streamed = real.lines("/api/generate", {"model": "smollm2", "prompt": "hi", "options": {"num_predict": 5}})
    assert len(streamed[-1]["context"]) == len(one["context"])
    assert not any("context" in line for line in streamed[:-1])


@pytest.mark.weights
def test_the_template_is_the_models_own_and_raw_is_without_it(real: Server) -> None:
    def count(**more: Any) -> int:
        return int(
            real.ask("/api/generate", {"model": "smollm2", "prompt": "hi", "options": {"num_predict": 1}} | more)["prompt_eval_count"]
        )

    chat = real.ask("/api/chat", {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}], "options": {"num_predict": 1}})
    assert count() == chat["prompt_eval_count"] > 20, "SmolLM2's template brings its own system message"
    assert count(raw=True) == 1
    assert count(system="Be brief.") < count(), "ours replaces it"


@pytest.mark.weights
def test_the_prefix_cache_is_counted(real: Server) -> None:
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "word " * 200}], "options": {"num_predict": 1}}
    first, second = real.ask("/api/chat", body), real.ask("/api/chat", body)
    assert first["prompt_eval_count"] == second["prompt_eval_count"] > 200, "tokens from the cache count as prompt"
    assert second["prompt_eval_cached_count"] > 200


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Server]:
    """The real model with a context that is soon full."""
    folder = tmp_path_factory.mktemp("small")
    with serving(folder, link(models, folder / "models", "smollm2"), OLLAMA_CONTEXT_LENGTH="384") as started:
        yield started


@pytest.mark.weights
def test_a_long_conversation_is_cut_and_the_answer_says_by_how_much(small: Server) -> None:
    few = {"num_predict": 2}
    turns = [{"role": "user" if n % 2 == 0 else "assistant", "content": f"turn {n} " + "word " * 30} for n in range(21)]
    body = {"model": "smollm2", "messages": [{"role": "system", "content": "Be brief."}, *turns], "options": few}
    cut = small.ask("/api/chat", body)
    smaller = small.ask("/api/chat", {**body, "options": {**few, "num_ctx": 200}})
    assert 200 < cut["prompt_eval_count"] < 384
    assert 100 < smaller["prompt_eval_count"] < 200
    assert cut["truncated"] + cut["prompt_eval_count"] == smaller["truncated"] + smaller["prompt_eval_count"], (
        "every token is accounted for"
    )
    assert small.post("/api/chat", {**body, "truncate": False}).status_code == 400
    over = small.ask("/api/generate", {"model": "smollm2", "prompt": "word " * 1000, "options": few})
    assert over["truncated"] > 600
    assert over["prompt_eval_count"] < 384
    assert "truncated" not in small.ask("/api/generate", {"model": "smollm2", "prompt": "word", "options": few})
    assert len(small.runners()) == 1
    assert small.log.count("loading a model") == 1


@pytest.mark.weights
def test_an_answer_goes_on_past_the_context_when_it_may_shift(small: Server) -> None:
    body = {"model": "smollm2", "prompt": "word " * 370, "raw": True, "options": {"num_predict": 60, "temperature": 1.5, "seed": 5}}
    assert small.ask("/api/generate", body)["eval_count"] > 20
    stopped = small.ask("/api/generate", {**body, "shift": False})
    assert stopped["eval_count"] + stopped["prompt_eval_count"] <= 384
    assert stopped["done_reason"] == "length"


@pytest.mark.weights
def test_letters_of_many_bytes_arrive_whole(real: Server) -> None:
    lines = real.lines(
        "/api/generate",
        {"model": "smollm2", "prompt": "日本語 🙂 é", "raw": True, "options": {"num_predict": 40, "temperature": 1.5, "seed": 3}},
    )
    folded = "".join(line["response"] for line in lines)
    assert folded
    assert not any(line["response"].endswith("\ufffd") and "\ufffd" not in folded[-3:] for line in lines[:-2])
