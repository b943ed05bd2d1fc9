"""Reranking over HTTP: with a made-up model that has a rank head, with a model of embeddings, and refused with any other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from checkpoints import byte_level, made_of, tiny_bert, tiny_llama, tiny_reranker
from server import Server, serving, until
from stores import link, put_echo

pytestmark = pytest.mark.slow

QUERY, DOCUMENTS = "hello world", ["a b", "hello world", "worlds a", "b b b hello"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a reranker, a model of embeddings and one that generates text, all of random numbers."""
    folder = tmp_path_factory.mktemp("rerank")
    for name in ("reranker", "bert"):
        (folder / name).mkdir()
    store = folder / "models"
    put_echo(store, "reranker", tiny_reranker(folder / "reranker"), engine="gguf")
    put_echo(store, "embedder", made_of(tiny_bert(folder / "bert")), engine="gguf")
    put_echo(store, "writer", made_of(tiny_llama(folder / "llama", byte_level())), engine="gguf")
    put_echo(store, "echo")
    with serving(folder, store) as started:
        yield started


def rerank(server: Server, model: str = "reranker", **more: Any) -> dict[str, Any]:
    answer = server.post("/v1/rerank", {"model": model, "query": QUERY, "documents": DOCUMENTS, **more})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert list(body) == ["object", "model", "method", "results", "usage"]
    assert (body["object"], body["model"]) == ("list", model)
    scores = [result["relevance_score"] for result in body["results"]]
    assert scores == sorted(scores, reverse=True)
    return dict(body)


def scores(body: dict[str, Any]) -> dict[int, float]:
    return {result["index"]: result["relevance_score"] for result in body["results"]}


def test_a_rank_head_scores_each_document(server: Server) -> None:
    body = rerank(server)
    assert body["method"] == "rank"
    assert sorted(scores(body)) == [0, 1, 2, 3]
    assert len(set(scores(body).values())) == 4
    assert all(list(result) == ["index", "relevance_score"] for result in body["results"])
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 20
    # A document's score does not depend on those beside it, nor on the route.
    for index, document in enumerate(DOCUMENTS):
        alone = server.post("/rerank", {"model": "reranker", "query": QUERY, "documents": [{"text": document, "id": 3}]}).json()
        assert alone["results"][0]["relevance_score"] == pytest.approx(scores(body)[index], abs=1e-3)
    assert server.resident()["reranker:latest"]["context_length"] == 64


def test_many_documents_come_back_under_their_own_numbers(server: Server) -> None:
    many = [DOCUMENTS[index % 4] for index in range(101)]
    found, whole = scores(rerank(server, documents=many)), scores(rerank(server))
    assert sorted(found) == list(range(101))
    assert all(found[index] == pytest.approx(whole[index % 4], abs=1e-3) for index in found)


def test_the_best_of_them_with_their_texts(server: Server) -> None:
    best = rerank(server, top_n=2, return_documents=True)["results"]
    assert best == [{**result, "document": {"text": DOCUMENTS[result["index"]]}} for result in rerank(server)["results"][:2]]
    assert len(rerank(server, top_n=99)["results"]) == 4


def test_a_model_of_embeddings_scores_by_cosine(server: Server) -> None:
    body = rerank(server, "embedder")
    vectors = server.post("/api/embed", {"model": "embedder", "input": [QUERY, *DOCUMENTS]}).json()["embeddings"]
    cosines = [sum(a * b for a, b in zip(vectors[0], vector, strict=True)) for vector in vectors[1:]]
    assert body["method"] == "cosine"
    assert [scores(body)[index] for index in range(4)] == pytest.approx(cosines, abs=1e-4)
    assert scores(body)[1] == pytest.approx(1, abs=1e-4)
    assert body["results"][0]["index"] == 1


def test_a_long_document_loses_its_end_or_is_refused(server: Server) -> None:
    long = "a b " * 200
    assert len(rerank(server, documents=[long, "a b"])["results"]) == 2
    assert rerank(server, documents=["a b " * 100])["results"] == rerank(server, documents=[long])["results"]
    body = {"model": "reranker", "query": QUERY, "documents": ["a", long]}
    assert server.refusal("/rerank", {**body, "truncate": False}) == (
        400,
        "documents[1] and the query are longer than the model's context of 63 tokens; send it in parts",
    )
    assert server.refusal("/rerank", {**body, "query": long}) == (
        400,
        "the query is longer than the model's context of 63 tokens; shorten it",
    )
    assert len(rerank(server, "embedder", documents=[long])["results"]) == 1


def test_num_ctx_and_keep_alive_are_those_of_the_request(server: Server) -> None:
    body = {"model": "reranker", "query": "a", "documents": ["a b " * 15], "truncate": False}
    assert server.refusal("/rerank", {**body, "options": {"num_ctx": 16}})[1].startswith("documents[0] and the query are longer")
    assert server.post("/rerank", {**body, "keep_alive": 0}).status_code == 200
    until(lambda: "reranker:latest" not in server.resident(), "it has left")


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({"model": None}, 400, "model must be a string"),
        ({"model": "none"}, 404, "model 'none' not found"),
        ({"query": " "}, 400, "query and documents must not be empty"),
        ({"documents": []}, 400, "query and documents must not be empty"),
        ({"documents": "a"}, 400, "documents must be an array"),
        ({"documents": ["a", 3]}, 400, "documents[1] must be"),
        ({"documents": [{"title": "a"}]}, 400, "documents[0].text is required"),
        ({"documents": ["a"] * 1001}, 400, "documents must be an array of length <= 1000"),
        ({"top_n": 0}, 400, "top_n must be an integer >= 1"),
        ({"options": {"num_ctx": "x"}}, 400, 'option "num_ctx" must be of type integer'),
        ({"model": "writer"}, 400, '"writer" does not rank documents; use a reranker, or a model of embeddings'),
        ({"model": "echo"}, 400, '"echo" does not rank documents; use a reranker, or a model of embeddings'),
    ],
)
def test_what_is_wrong_is_said(server: Server, body: dict[str, Any], status: int, sentence: str) -> None:
    got, said = server.refusal("/rerank", {"model": "reranker", "query": QUERY, "documents": DOCUMENTS, **body})
    assert (got, said[: len(sentence)]) == (status, sentence)


def test_the_fields_that_other_servers_have_are_named(server: Server) -> None:
    body = {"model": "reranker", "query": "x", "documents": ["y"], "max_chunks_per_doc": 3}
    assert server.post("/v1/rerank", body).headers["x-ndani-ignored"] == "max_chunks_per_doc"


def test_an_empty_document_is_one(server: Server) -> None:
    assert sorted(scores(rerank(server, documents=["", "a"]))) == [0, 1]


def test_a_reranker_makes_no_vectors_and_no_text(server: Server) -> None:
    assert server.refusal("/api/embed", {"model": "reranker", "input": "a"}) == (400, '"reranker:latest" does not support embeddings')
    assert server.refusal("/api/generate", {"model": "reranker", "prompt": "a"}) == (400, '"reranker" does not support generate')


@pytest.mark.weights
def test_real_embeddings_find_the_answer(tmp_path: Path, minilm: Path) -> None:
    documents = ["The recipe needs flour and eggs.", "Paris is the capital of France.", "Dogs bark at night."]
    with serving(tmp_path, link(minilm, tmp_path / "models")) as started:
        body = rerank(started, "all-minilm", query="What is the capital of France?", documents=documents)
    assert body["results"][0]["index"] == 1
    assert body["results"][0]["relevance_score"] > 0.6 > body["results"][1]["relevance_score"] + 0.2
