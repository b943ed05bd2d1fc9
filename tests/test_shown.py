"""What show and the listings say of a model that a client has plans with, and of one that was made from another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ndani.store.modelfile import parse
from server import Server, serving
from stores import put_echo

SHOW = "/api/show"
OWN = "{{ .System }} {{ .Prompt }}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("shown") / "models"
    put_echo(root, "base", template=OWN, system="be brief", params={"top_k": 3, "stop": ["<a>"]})
    with serving(root.parent, root) as started:
        yield started


def show(server: Server, **more: Any) -> dict[str, Any]:
    answer = server.post(SHOW, {"model": "base"} | more)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_what_a_client_has_set_stands_in_the_modelfile_and_the_model_stays_as_it_is(server: Server) -> None:
    shown = show(server, system="be long", template="[{{ .Prompt }}]", options={"top_k": 5, "seed": 7})
    read = parse(shown["modelfile"])
    assert (read.system, read.template) == (shown["system"], shown["template"]) == ("be long", "[{{ .Prompt }}]")
    assert dict(read.parameters) == {"top_k": 5, "seed": 7, "stop": ("<a>",)}
    assert shown["parameters"].split() == ["stop", '"<a>"', "top_k", "3"], "the model's own, as in Ollama"
    for nothing in ({}, {"system": "", "template": "", "options": {}}, {"system": None, "template": None, "options": None}):
        shown = show(server, **nothing)
        read = parse(shown["modelfile"])
        assert (read.system, read.template, shown["system"], shown["template"]) == ("be brief", OWN, "be brief", OWN)
        assert dict(read.parameters) == {"top_k": 3, "stop": ("<a>",)}


@pytest.mark.parametrize(
    "odd",
    [
        {"system": 'three """ quotes"""'}, {"system": "\x1b[2J\u200d"}, {"template": "{{ nobody"}, {"options": {"top_k": "many"}},
        {"options": {"nobody": 1}}, {"options": {"stop": [], "num_ctx": None}}, {"options": {"stop": [1, None, {"a": []}]}},
    ],
)  # fmt: skip
def test_what_no_model_could_be_made_of_is_shown_all_the_same(server: Server, odd: dict[str, Any]) -> None:
    """A client that asks what it has set is told; its session must not end over it."""
    shown = show(server, **odd)
    read = parse(shown["modelfile"])
    assert read.froms
    assert all(shown[key] == odd[key] for key in ("system", "template") if key in odd)


def test_the_real_clients_words_after_set_system(server: Server) -> None:
    body = {"model": "", "system": "be a pirate", "template": "", "verbose": False, "options": {"temperature": 0.5}, "name": "base:latest"}
    shown = server.post(SHOW, body).json()
    assert shown["system"] == "be a pirate"
    assert shown["details"]["family"] == "llama"
    assert "PARAMETER temperature 0.5" in shown["modelfile"]


def parents(server: Server) -> dict[str, tuple[str, str]]:
    """Of each model: what the listing says that it was made from, and what show says."""
    listed = {m["name"]: m["details"]["parent_model"] for m in server.http.get("/api/tags").json()["models"]}
    return {name: (parent, show(server, model=name)["details"]["parent_model"]) for name, parent in listed.items()}


def test_a_model_made_from_another_names_it_in_the_listing_and_in_show(server: Server) -> None:
    def make(model: str, base: str) -> None:
        body = {"model": model, "from": base, "parameters": {"num_predict": 1}, "stream": False}
        assert server.post("/api/create", body).json() == {"status": "success"}

    make("mine", "base")
    make("ns/next:1", "mine")
    make("same", "base")
    make("same", "same")
    assert server.post("/api/copy", {"source": "mine", "destination": "twin"}).status_code == 200
    none, base, mine, same = (("", ""), *((f"{name}:latest",) * 2 for name in ("base", "mine", "same")))
    want = {"base:latest": none, "mine:latest": base, "ns/next:1": mine, "same:latest": same, "twin:latest": base}
    assert parents(server) == want, "one made anew from itself names itself, as in Ollama"
    server.ask("/api/generate", {"model": "mine", "prompt": "x"})
    assert server.resident()["mine:latest"]["details"]["parent_model"] == "", "as in Ollama: not in what runs"


def test_vs_code_lists_a_model_by_the_name_that_it_asked_for(server: Server) -> None:
    """It shows `general.basename`, which a publisher writes into all weights alike."""
    for agent, shown in (("GitHubCopilotChat/0.30.1", "base"), ("ollama-python/0.6", None), ("xGitHubCopilotChat/1", None)):
        answer = server.http.post("/api/show", json={"model": "base"}, headers={"user-agent": agent}).json()
        assert answer["model_info"].get("general.basename") == shown, agent
