"""Vectors of the real all-minilm: against the published weights in numpy, over Ollama's routes, its client and the command line."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import ollama
import pytest

from bert_numpy import Bert
from checkpoints import sources
from golden_cli import Result, run
from ndani.sources.catalogue import load
from server import Server, serving, slowness, until
from stores import EMBEDDER, link
from terminal import terminal

pytestmark = pytest.mark.weights

SENTENCES = [
    "The cat sits on the mat.", "A kitten rests on a rug.", "Stock prices fell sharply on Monday.", "hello", "world",
    "Der Zug nach Zürich fährt um 17:45 Uhr ab.", "L'été dernier, nous étions à la plage.", "naïve café", "¿Dónde está la biblioteca?",
    "def add(a, b):\n    return a + b", "E = mc²", "Kubernetes schedules pods onto nodes.", "I don't know; she couldn't say either…",
    "Prices rose 3.5% to $1,299.99 (an all-time high!)", "The patient was given 20 mg of prednisolone twice a day.", "UPPER and lower Case",
    "東京は日本の首都です。", "a", "antidisestablishmentarianism", "It rained. It rained again. " * 12,
]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, minilm: Path, models: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("embed")
    link(minilm, folder / "models")
    link(models, folder / "models")
    with serving(folder, folder / "models", NDANI_OFFLINE="1") as started:
        started.http.timeout = httpx.Timeout(300)
        yield started


def embed(server: Server, given: Any, **more: Any) -> dict[str, Any]:
    answer = server.post("/api/embed", {"model": EMBEDDER, "input": given, **more})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def cosine(one: Any, other: Any) -> float:
    return float(np.dot(one, other) / np.linalg.norm(one) / np.linalg.norm(other))


def test_vectors_are_those_of_the_published_weights(server: Server, checkpoint: Path) -> None:
    bert = Bert(checkpoint)
    answer = embed(server, SENTENCES)
    agreed = [cosine(bert.vector(text), made) for text, made in zip(SENTENCES, answer["embeddings"], strict=True)]
    assert min(agreed) >= 0.999, dict(zip(SENTENCES, agreed, strict=True))
    assert all(abs(np.linalg.norm(vector) - 1) < 1e-5 for vector in answer["embeddings"])
    assert answer["prompt_eval_count"] == sum(len(bert.tokenizer.encode(text).ids) for text in SENTENCES)
    assert answer["total_duration"] >= answer["load_duration"] > 0
    assert "truncated" not in answer


def test_what_means_the_same_is_nearer_and_order_is_kept(server: Server) -> None:
    cat, kitten, stock = embed(server, SENTENCES[:3])["embeddings"]
    assert cosine(cat, kitten) > cosine(cat, stock) + 0.3
    many = [f"text number {n}" for n in range(70)]  # three portions
    together = embed(server, many)["embeddings"]
    assert len(together) == 70
    for n in (0, 31, 32, 69):
        assert cosine(embed(server, many[n])["embeddings"][0], together[n]) > 0.9999


def test_texts_that_are_too_long(server: Server) -> None:
    long = "word " * 600  # a token each, and two around them
    cut = embed(server, ["short", long])
    assert cut["prompt_eval_count"] == 3 + 256
    assert cut["truncated"] == 602 - 256  # the model's own num_ctx, as in Ollama's library
    assert cosine(cut["embeddings"][1], embed(server, "word " * 254)["embeddings"][0]) > 0.9999
    body = {"model": EMBEDDER, "input": long, "truncate": False}
    assert server.refusal("/api/embed", body) == (400, "the input length exceeds the context length")
    assert embed(server, "one two three four five", options={"num_ctx": 4})["prompt_eval_count"] == 4
    assert server.refusal("/api/embed", body | {"input": "ä " * 300})[0] == 400


@pytest.mark.parametrize(
    ("num_ctx", "truncate", "said"),
    [(3, True, 3), (2, True, "input after truncation exceeds maximum context length"),
     (1, True, "input after truncation exceeds maximum context length"),
     (1, False, "input after truncation exceeds maximum context length"),
     (0, True, "input exceeds maximum context length and cannot be truncated further"),
     (3, False, "the input length exceeds the context length"),
     (0, False, "the input length exceeds the context length")],
)  # fmt: skip
def test_a_context_with_hardly_any_room(server: Server, num_ctx: int, truncate: bool, said: int | str) -> None:
    body = {"model": EMBEDDER, "input": "one two three four five", "options": {"num_ctx": num_ctx}, "truncate": truncate}
    answer = server.post("/api/embed", body)
    if isinstance(said, str):
        assert (answer.status_code, answer.json()) == (400, {"error": said})
    else:
        assert answer.json()["prompt_eval_count"] == said
    short = server.post("/api/embed", body | {"input": "one", "options": {"num_ctx": 0}})
    assert short.json()["prompt_eval_count"] == 3, "what fits is read"


def test_a_text_that_fills_the_slot_of_a_model_that_speaks(server: Server) -> None:
    """Its engine keeps a place for what it would say, so a text is cut one token shorter."""
    given = {"model": "smollm2:135m", "input": "hello world " * 600}  # two tokens each, and a space at the end
    whole = server.post("/api/embed", given | {"options": {"num_ctx": 2048}}).json()["prompt_eval_count"]
    for num_ctx in (256, 512):
        answer = server.post("/api/embed", given | {"options": {"num_ctx": num_ctx}}).json()
        assert answer["prompt_eval_count"] in (num_ctx - 1, num_ctx), answer
        assert answer["truncated"] == whole - answer["prompt_eval_count"]
        server.post("/api/embed", {"model": "smollm2:135m", "keep_alive": 0})
        until(lambda: "smollm2:135m" not in server.resident(), "it has left")


@pytest.mark.slow
def test_a_very_long_text_keeps_nobody_waiting(server: Server) -> None:
    embed(server, "warm")
    with ThreadPoolExecutor() as pool:
        long = pool.submit(embed, server, "ab " * 2_000_000)
        longest, waited = 0.0, 0
        while not long.done():
            begun = time.monotonic()
            server.http.get("/api/version")
            longest, waited = max(longest, time.monotonic() - begun), waited + 1
            time.sleep(0.01)
    assert long.result()["truncated"] == 2_000_002 - 256
    assert waited > 5
    assert longest < 0.15 * slowness(), longest


def test_dimensions(server: Server) -> None:
    whole, cut = embed(server, "hello")["embeddings"][0], embed(server, "hello", dimensions=16)["embeddings"][0]
    assert len(whole) == 384
    assert len(cut) == 16
    assert math.isclose(sum(x * x for x in cut), 1, abs_tol=1e-6)
    assert cosine(whole[:16], cut) > 0.99999
    assert embed(server, "hello", dimensions=4000)["embeddings"][0] == whole


def test_nothing_to_embed_loads_and_unloads(server: Server) -> None:
    embed(server, "x", keep_alive=0)
    until(lambda: "all-minilm:latest" not in server.resident(), "it has left")
    for nothing in ({}, {"input": ""}, {"input": []}, {"input": None}):
        answer = server.post("/api/embed", {"model": EMBEDDER, **nothing})
        assert answer.json() == {"model": EMBEDDER, "embeddings": []}
    assert server.resident()["all-minilm:latest"]["context_length"] == 256
    assert len(embed(server, [""])["embeddings"][0]) == 384  # an empty text among texts has a vector
    assert server.post("/api/embeddings", {"model": EMBEDDER, "keep_alive": 0}).json() == {"embedding": []}
    until(lambda: "all-minilm:latest" not in server.resident(), "it was unloaded")


def test_the_older_route(server: Server) -> None:
    new = embed(server, "hello")["embeddings"][0]
    old = server.post("/api/embeddings", {"model": EMBEDDER, "prompt": "hello"}).json()
    assert list(old) == ["embedding"]
    assert cosine(old["embedding"], new) > 0.99999
    assert server.post("/api/embeddings", {"model": EMBEDDER}).json() == {"embedding": []}
    long = server.post("/api/embeddings", {"model": EMBEDDER, "prompt": "hello " * 400}).json()
    assert len(long["embedding"]) == 384
    assert long["truncated"] > 100
    assert server.refusal("/api/embeddings", {"prompt": "x"}) == (400, "model is required")
    assert server.refusal("/api/embeddings", {"model": "nope", "prompt": "x"}) == (404, 'model "nope" not found, try pulling it first')


@pytest.mark.parametrize(
    ("body", "status", "begins"),
    [
        ({"input": "x"}, 404, "model '' not found"),
        ({"model": "nope", "input": "x"}, 404, 'model "nope" not found, try pulling it first'),
        ({"model": EMBEDDER, "input": 3}, 400, "invalid input type"),
        ({"model": EMBEDDER, "input": {"a": 1}}, 400, "invalid input type"),
        ({"model": EMBEDDER, "input": ["a", 3]}, 400, "invalid input type"),
        ({"model": EMBEDDER, "input": ["a", ["b"]]}, 400, "invalid input type"),
        ({"model": EMBEDDER, "input": "x", "dimensions": -1}, 400, "dimensions must be"),
        ({"model": EMBEDDER, "input": "x", "dimensions": "16"}, 400, "dimensions must be"),
        ({"model": EMBEDDER, "input": "x", "truncate": "no"}, 400, "truncate must be true or false"),
        ({"model": EMBEDDER, "input": "x", "options": {"num_ctx": "many"}}, 400, 'option "num_ctx" must be of type integer'),
        ({"model": "nope", "input": "x", "options": {"num_ctx": "many"}}, 404, 'model "nope" not found'),
        ({"model": "x:cloud", "input": "x"}, 403, "ollama cloud is disabled"),
        ([1], 400, "the request body must be a JSON object"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said(server: Server, body: Any, status: int, begins: str) -> None:
    got, sentence = server.refusal("/api/embed", body)
    assert got == status
    assert sentence.startswith(begins)


def test_options_that_mean_nothing_here_are_named(server: Server) -> None:
    options = {"temperature": 0.5, "num_thread": 1, "numa": True, "stop": None}
    answer = server.post("/api/embed", {"model": EMBEDDER, "input": "x", "options": options})
    assert answer.headers["x-ndani-ignored"] == "temperature, numa"


def test_a_model_of_embeddings_does_nothing_else(server: Server) -> None:
    assert server.post("/api/show", {"model": EMBEDDER}).json()["capabilities"] == ["embedding"]
    for verb, more in (("generate", {"prompt": "x"}), ("chat", {"messages": [{"role": "user", "content": "x"}]})):
        assert server.refusal(f"/api/{verb}", {"model": EMBEDDER, **more}) == (400, f'"{EMBEDDER}" does not support {verb}')


def test_a_model_that_speaks_embeds_too_and_still_speaks(server: Server) -> None:
    given = {"model": "smollm2:135m", "options": {"num_ctx": 512}}
    one, same, other = server.post("/api/embed", given | {"input": ["a red apple", "a red apple", "tax law"]}).json()["embeddings"]
    assert len(one) == 576
    assert cosine(one, same) > 0.9999 > cosine(one, other)
    few = {"num_ctx": 512, "num_predict": 4}
    assert server.ask("/api/generate", {"model": "smollm2:135m", "prompt": "Hi", "options": few})["eval_count"] <= 4
    server.post("/api/generate", {"model": "smollm2:135m", "keep_alive": 0})
    until(lambda: "smollm2:135m" not in server.resident(), "both its runners have left")


def test_a_client_that_leaves_stops_the_computation(server: Server) -> None:
    embed(server, "warm")
    with pytest.raises(httpx.ReadTimeout):
        server.post("/api/embed", {"model": EMBEDDER, "input": ["word " * 200] * 2000}, timeout=httpx.Timeout(300, read=3))
    until(lambda: server.health()["counts"]["cancelled"], "it was cancelled")
    # What it asked for would take many minutes; the portion under way may end.
    until(lambda: not server.busy(), "no slot computes")
    assert len(embed(server, "and the next one is served")["embeddings"]) == 1


def test_the_python_client(server: Server) -> None:
    client = ollama.Client(host=server.url, trust_env=False)
    one = client.embed(EMBEDDER, "hello")
    two = client.embed(EMBEDDER, ["hello", "world"], dimensions=8)
    assert one.prompt_eval_count == 3
    assert [len(vector) for vector in two.embeddings] == [8, 8]
    assert cosine(client.embeddings(EMBEDDER, "hello").embedding, one.embeddings[0]) > 0.99999
    with pytest.raises(ollama.ResponseError) as caught:
        client.embed("nope", "hello")
    assert caught.value.status_code == 404
    client._client.close()


def test_created_from_the_files_it_is_the_catalogues(server: Server, checkpoint: Path) -> None:
    client = ollama.Client(host=server.url, trust_env=False)
    files = {name: client.create_blob(path) for name, path in sources(checkpoint).items()}
    steps = [step.status for step in client.create("mine", files=files, stream=True)]
    assert steps[0] == "converting model"
    assert steps[-1] == "success"
    (pin,) = [layer for model in load().models if model.name == "all-minilm:22m" for layer in model.layers]
    assert f"using existing layer {pin.digest}" in steps  # byte for byte what the pull makes
    assert client.embed("mine", "hello").embeddings == client.embed(EMBEDDER, "hello").embeddings
    client.delete("mine")
    client._client.close()


def run_prompt(server: Server, *words: str, stdin: str = "") -> Result:
    return run(("run", *words), {**server.environment, "NDANI_HOST": f"127.0.0.1:{server.port}"}, stdin)


def test_the_command_line_prints_the_vector(server: Server) -> None:
    printed = run_prompt(server, EMBEDDER, "hello")
    assert printed.exit == 0
    assert printed.stderr == ""
    assert printed.stdout.count("\n") == 1
    assert json.loads(printed.stdout) == embed(server, "hello")["embeddings"][0]
    assert len(json.loads(run_prompt(server, EMBEDDER, "--dimensions", "8", stdin="hello").stdout)) == 8
    for flags, sentence in {
        (): "a text is needed: ndani run all-minilm",
        ("--dimensions", "some", "x"): 'invalid argument "some" for "--dimensions"',
        ("--truncate=false", "word " * 600): "the input length exceeds the context length",
    }.items():
        wrong = run_prompt(server, EMBEDDER, *flags)
        assert (wrong.exit, wrong.stdout) == (1, "")
        assert wrong.stderr.startswith(f"Error: {sentence}")
    assert run_prompt(server, EMBEDDER, "").stderr == 'Error: a text is needed: ndani run all-minilm "your text"\n'
    environment = server.environment | {"NDANI_HOST": f"127.0.0.1:{server.port}"}
    with terminal([sys.executable, "-m", "ndani", "run", EMBEDDER], environment) as screen:
        assert screen.exit() == 1
        assert 'Error: a text is needed: ndani run all-minilm "your text"' in screen.lines(), "no conversing with it"
    cut = run_prompt(server, EMBEDDER, "word " * 300)
    assert len(json.loads(cut.stdout)) == 384
    assert cut.stderr.startswith("Warning: the text is longer")
    assert "46 of its tokens" in cut.stderr
    assert "for models of embeddings" in run_prompt(server, "smollm2:135m", "--dimensions", "8", "x").stderr
