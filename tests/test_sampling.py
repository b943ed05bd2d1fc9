"""Options: read, merged, and sent to the engine, each one explicitly."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ndani.engines.sampling import DEFAULTS, OPTIONS, merge, parse_options, translate
from ndani.errors import BadRequest
from ndani.types import Sampling
from server import Server, serving
from stores import link


def test_every_option_of_the_reference_is_known() -> None:
    assert {f.name for f in dataclasses.fields(Sampling)} == OPTIONS


def test_null_is_not_said_unknown_names_are_collected_and_fractions_are_cut() -> None:
    said, ignored = parse_options(
        {"temperature": None, "mirostat": 2, "top_k": 3.9, "seed": 1, "stop": ["a", ""], "penalize_newline": True}
    )
    assert said == Sampling(top_k=3, seed=1, stop=("a",))
    assert ignored == ["mirostat", "penalize_newline"]


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("num_ctx", "4096", 'option "num_ctx" must be of type integer'),
        ("num_ctx", True, 'option "num_ctx" must be of type integer'),
        ("temperature", "hot", 'option "temperature" must be of type float32'),
        ("temperature", [], 'option "temperature" must be of type float32'),
        ("use_mmap", 1, 'option "use_mmap" must be of type boolean'),
        ("stop", "end", 'option "stop" must be of type array'),
        ("stop", ["a", 1], 'option "stop" must be of an array of strings'),
        ("temperature", -0.1, 'option "temperature" must be between 0 and 1e+06'),
        ("top_p", 1.5, 'option "top_p" must be between 0 and 1'),
        ("num_ctx", -1, 'option "num_ctx" must be between 0 and'),
        ("num_predict", 1e300, 'option "num_predict" must be between'),
        ("seed", 1e300, 'option "seed" must be between'),
        ("repeat_penalty", 0, 'option "repeat_penalty" must be between'),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_the_option(name: str, value: Any, sentence: str) -> None:
    with pytest.raises(BadRequest) as met:
        parse_options({name: value})
    assert str(met.value).startswith(sentence)


def test_the_first_that_says_something_wins_field_by_field() -> None:
    merged = merge(Sampling(temperature=0.0, top_k=None), Sampling(temperature=1.0, top_k=7), Sampling(seed=3))
    assert (merged.temperature, merged.top_k, merged.seed, merged.top_p) == (0.0, 7, 3, 0.9)
    assert merge() == DEFAULTS


def test_the_defaults_are_ollamas_and_each_is_sent() -> None:
    sent = translate(merge(), 4096)
    assert sent == {
        "n_predict": 40960, "seed": 0xFFFFFFFF, "n_keep": 4, "temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.0, "typical_p": 1.0,
        "repeat_last_n": 64, "repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "stop": [], "cache_prompt": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("option", "value", "field", "sent"),
    [
        ("num_predict", 5, "n_predict", 5),
        ("num_predict", 0, "n_predict", 1),
        ("num_predict", -1, "n_predict", 1000),
        ("num_predict", -2, "n_predict", 1000),
        ("num_predict", 10**6, "n_predict", 1000),
        ("repeat_last_n", -1, "repeat_last_n", 100),
        ("repeat_last_n", 0, "repeat_last_n", 0),
        ("num_keep", -1, "n_keep", -1),
        ("num_keep", 1000, "n_keep", 99),
        ("seed", 42, "seed", 42),
        ("stop", ["x"], "stop", ["x"]),
        ("temperature", 0, "temperature", 0.0),
        ("top_k", 1, "top_k", 1),
        ("min_p", 0.05, "min_p", 0.05),
    ],
)
def test_what_is_asked_reaches_the_engine_within_the_caps(option: str, value: Any, field: str, sent: Any) -> None:
    assert translate(merge(parse_options({option: value})[0]), 100)[field] == sent


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, 2**32, 1764000000000000000, 2**63, 2**64 - 1])
def test_any_clock_is_a_seed_and_never_the_random_one(seed: int) -> None:
    sent = translate(merge(parse_options({"seed": seed})[0]), 100)["seed"]
    assert 0 <= sent < 2**31
    assert translate(merge(parse_options({"seed": -5})[0]), 100)["seed"] == 0xFFFFFFFF


# ---------------------------------------------------------------- on the real model

STORY = "Once upon a time there was"


def generate(real: Server, **options: Any) -> dict[str, Any]:
    return real.ask("/api/generate", {"model": "smollm2", "prompt": STORY, "raw": True, "options": {"num_predict": 24} | options})


@pytest.mark.weights
def test_a_seed_gives_the_same_answer_and_another_seed_another(real: Server) -> None:
    said = [generate(real, seed=seed, temperature=1.2)["response"] for seed in (7, 7, 7, 8, 2**32 + 7)]
    # The first may have read the whole prompt and the next ones only its end, which rounds otherwise; from then on all is equal.
    assert said[1] == said[2]
    assert said[3] != said[2]
    assert len({generate(real, temperature=1.5)["response"] for _ in range(3)}) == 3, "no seed is another each time"


@pytest.mark.weights
def test_temperature_zero_and_top_k_one_are_the_most_likely_words(real: Server) -> None:
    generate(real)
    greedy = generate(real, temperature=0)["response"]
    assert greedy == generate(real, temperature=2.0, top_k=1)["response"] == generate(real, temperature=0, seed=99)["response"]


@pytest.mark.weights
def test_stop_words_are_not_said(real: Server) -> None:
    generate(real)
    whole = generate(real, temperature=0)["response"]
    word = whole.split()[6]
    cut = generate(real, temperature=0, stop=[f" {word}"])
    assert cut["done_reason"] == "stop"
    assert cut["response"] == whole[: whole.index(f" {word}")]
    streamed = real.lines(
        "/api/generate",
        {"model": "smollm2", "prompt": STORY, "raw": True, "options": {"num_predict": 24, "temperature": 0, "stop": [f" {word}"]}},
    )
    assert "".join(line["response"] for line in streamed) == cut["response"]


@pytest.mark.weights
def test_a_strong_repeat_penalty_changes_what_is_said(real: Server) -> None:
    generate(real)
    plain = generate(real, temperature=0, num_predict=60)["response"]
    assert generate(real, temperature=0, num_predict=60, repeat_penalty=1.8, repeat_last_n=-1)["response"] != plain
    assert generate(real, temperature=0, num_predict=60, repeat_penalty=1.8, repeat_last_n=0)["response"] == plain, "no token looked at"
    assert generate(real, temperature=0, num_predict=60, frequency_penalty=2.0)["response"] != plain


@pytest.mark.weights
@pytest.mark.parametrize(("num_predict", "count"), [(0, 0), (1, 1), (5, 5)])
def test_num_predict_is_exact(real: Server, num_predict: int, count: int) -> None:
    one = generate(real, num_predict=num_predict)
    assert one.get("eval_count", 0) == count
    assert one["done_reason"] == "length"
    assert bool(one["response"]) == bool(count)
    assert one["prompt_eval_count"] == 6


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Server]:
    """A server for values that make it load the model again."""
    folder = tmp_path_factory.mktemp("edge")
    with serving(folder, link(models, folder / "models", "smollm2")) as started:
        yield started


@pytest.mark.weights
@pytest.mark.parametrize(
    "options",
    [{"num_thread": 10**6}, {"num_thread": -3}, {"num_thread": -1}, {"num_thread": 3}, {"num_batch": 1},
     {"num_batch": 2**31 - 1}, {"num_batch": 0}, {"num_gpu": 2**31 - 1}, {"num_gpu": -7},
     {"main_gpu": 12}, {"num_ctx": 2**31 - 1}, {"num_ctx": 1}, {"use_mmap": False}, {"top_k": 2**31 - 1}, {"temperature": 1e6},
     {"min_p": 1, "top_p": 0, "typical_p": 0}, {"repeat_penalty": 1e6}, {"num_keep": 2**31 - 1}, {"stop": ["x" * 100_000]}],
    ids=str,
)  # fmt: skip
def test_values_at_the_edge_are_answered_or_refused_and_kill_nobody(edge: Server, options: dict[str, Any]) -> None:
    server = edge
    answer = server.post("/api/generate", {"model": "smollm2", "prompt": "hi", "stream": False, "options": {"num_predict": 3} | options})
    assert answer.status_code in (200, 400), answer.text
    assert "a runner died" not in server.log
    assert "Traceback" not in server.log
    assert generate(server)["done"]
