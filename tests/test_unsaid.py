"""What every field of every native route means when it is null or empty: the table that the real Ollama's own types and handlers give.

Many languages have no "absent": Go's own client sends `"system": ""` with every request. An empty field means that nothing
was said, unless its emptiness is a word of its own (`keep_alive: 0`, `context: []`, `stop: []`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Start
from ndani.api.edge import fields
from ndani.api.ollama import requests
from ndani.api.ollama.create import parse_create
from ndani.api.ollama.embed import parse_embed, parse_embeddings
from ndani.api.ollama.show import parse_show
from ndani.engines.sampling import OPTIONS, parse_options
from ndani.errors import BadName, BadRequest, NotFound
from server import Server
from stores import put_echo

EMPTY: tuple[Any, ...] = (None, "", 0, [], {}, False)

#: Per field: what null, "", 0, [], {} and false mean. `-`: as if absent; `+`: something is said; `!`: 400.
#: Where a field is marked *, the real Ollama refuses `""`, or `{}`, which nobody can mean anything by.
TABLE = {
    "generate": """
        model               - - ! ! ! !
        prompt              - - ! ! ! !
        suffix              - - ! ! ! !
        system              - - ! ! ! !
        template            - - ! ! ! !
        context             - ! ! + ! !
        stream              - ! ! ! ! +
        raw                 - ! ! ! ! -
        format              - - ! ! + !
        keep_alive          - ! + ! ! !
        images              - ! ! - ! !
        options             - ! ! ! - !
        think*              - - ! ! ! +
        truncate            - ! ! ! ! +
        shift               - ! ! ! ! +
        _debug_render_only  - ! ! ! ! -
        logprobs            - ! ! ! ! -
        top_logprobs        - ! - ! ! !
        unknown             - - - - - -""",
    "chat": """
        messages            - ! ! - ! !
        stream              - ! ! ! ! +
        format              - - ! ! + !
        keep_alive          - ! + ! ! !
        tools               - ! ! - ! !
        options             - ! ! ! - !
        think*              - - ! ! ! +
        truncate            - ! ! ! ! +
        shift               - ! ! ! ! +
        _debug_render_only  - ! ! ! ! -
        logprobs            - ! ! ! ! -
        top_logprobs        - ! - ! ! !""",
    "message": """
        role                - - ! ! ! !
        content             - - ! ! ! !
        thinking            - - ! ! ! !
        images              - ! ! - ! !
        tool_calls          - ! ! - ! !
        tool_name           - - ! ! ! !
        tool_call_id        - - ! ! ! !""",
    "embed": """
        input               - - ! - ! !
        truncate            - ! ! ! ! +
        dimensions          - ! - ! ! !
        options             - ! ! ! - !
        keep_alive          - ! + ! ! !""",
    "embeddings": """
        prompt              - - ! ! ! !
        options             - ! ! ! - !
        keep_alive          - ! + ! ! !""",
    "show": """
        name                - - ! ! ! !
        verbose             - ! ! ! ! -
        system              - - ! ! ! !
        template            - - ! ! ! !
        options             - ! ! ! - !""",
    "create": """
        name                - - ! ! ! !
        from                - - ! ! ! !
        stream              - ! ! ! ! +
        files               - ! ! ! - !
        adapters*           - ! ! ! - !
        draft_files*        - ! ! ! - !
        template            - - ! ! ! !
        license             - - ! - ! !
        system              - - ! ! ! !
        parameters          - ! ! ! - !
        messages            - ! ! - ! !
        renderer            - - ! ! ! !
        parser              - - ! ! ! !
        requires            - - ! ! ! !
        quantize            - - ! ! ! !
        quantization        - - ! ! ! !
        draft_quantize      - - ! ! ! !
        remote_host         - - ! ! ! !
        info                - ! ! ! - !""",
}

READERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "generate": lambda body: (requests.parse_generate(body), fields.flag(body, "stream", True)),
    "chat": lambda body: (requests.parse_chat({"model": "m"} | body), fields.flag(body, "stream", True)),
    "message": lambda body: requests.parse_chat({"model": "m", "messages": [body]}),
    "embed": lambda body: parse_embed({"model": "m"} | body),
    "embeddings": lambda body: parse_embeddings({"model": "m"} | body),
    "show": lambda body: (fields.model({"model": "m"} | body), fields.text(body, "name"), parse_show(body)),
    "create": lambda body: (parse_create({"model": "m"} | body), fields.text(body, "name"), fields.flag(body, "stream", True)),
}

CELLS = [
    (route, field.rstrip("*"), value, meant)
    for route, rows in TABLE.items()
    for field, *row in (line.split() for line in rows.strip().splitlines())
    for value, meant in zip(EMPTY, row, strict=True)
]


@pytest.mark.parametrize(("route", "field", "value", "meant"), CELLS, ids=[f"{r}-{f}-{v!r}" for r, f, v, _ in CELLS])
def test_an_empty_field_means_what_the_table_says(route: str, field: str, value: object, meant: str) -> None:
    read = READERS[route]
    if meant == "!":
        with pytest.raises(BadRequest, match=f"{field}|invalid (input type|duration)"):
            read({field: value})
        return
    assert (read({field: value}) == read({})) == (meant == "-")


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_an_option_that_is_null_is_not_said_and_one_that_is_zero_is(name: str) -> None:
    def meaning(value: object) -> str:
        try:
            return "-" if parse_options({name: value}) == parse_options({}) else "+"
        except BadRequest:
            return "!"

    want = {"use_mmap": "- ! ! ! ! +", "stop": "- ! ! + ! !", "num_batch": "- ! ! ! ! !", "repeat_penalty": "- ! ! ! ! !"}
    assert " ".join(map(meaning, EMPTY)) == want.get(name, "- ! + ! ! !"), "no batch is 0 tokens long, and no penalty divides by 0"


@pytest.mark.parametrize("name", ["", None, " ", "\n"])
def test_a_model_that_is_empty_is_a_model_not_said(name: str | None) -> None:
    with pytest.raises(BadRequest, match="model is required"):
        requests.parse_chat({"model": name})
    with pytest.raises(BadRequest, match="model is required"):
        parse_embeddings({"model": name})
    with pytest.raises(NotFound, match="model '' not found"):
        parse_embed({"model": name})
    assert requests.parse_generate({"model": name}) == requests.parse_generate({})
    if not name:
        with pytest.raises(BadName, match="invalid model name"):
            parse_create({"model": name})


@pytest.fixture
def server(start: Start, tmp_path: Path) -> Server:
    turns = "{{ range .Messages }}<{{ .Role }}>{{ .Content }}{{ end }}"
    put_echo(tmp_path / "models", "pirate", template=turns, system="be a pirate", messages=[{"role": "user", "content": "ahoy"}])
    return start(tmp_path / "models")


def rendered(server: Server, **body: Any) -> str:
    return server.rendered("/api/generate", **{"model": "pirate", "prompt": "x"} | body)


def test_the_go_client_leaves_a_model_its_own_words(server: Server) -> None:
    """Bodies with every field that the client's types do not leave out when they are empty."""
    sent = {"suffix": "", "system": "", "template": "", "options": None}
    assert rendered(server, **sent) == "<system>be a pirate<user>ahoy\n\nx"
    assert rendered(server, system="be a cook") == "<system>be a cook<user>ahoy\n\nx"
    assert server.post("/api/generate", {"model": "pirate", "prompt": "x", "raw": True, **sent, "context": []}).status_code == 200
    shown = server.post("/api/show", {"model": "pirate", "system": "", "template": "", "verbose": False, "options": None, "name": ""})
    assert shown.status_code == 200
    assert shown.json()["system"] == "be a pirate"
    made = {"model": "cook", "from": "pirate", "system": "", "template": "", "name": "", "stream": False}
    assert server.post("/api/create", made).json() == {"status": "success"}
    assert server.post("/api/show", {"model": "cook"}).json()["system"] == "be a pirate"
    assert server.http.request("DELETE", "/api/delete", json={"model": "cook", "name": ""}).status_code == 200
    pulled = {"model": "", "username": "", "password": "", "name": ""}
    assert server.post("/api/pull", pulled).json() == {"error": "invalid model name"}
    assert server.post("/api/push", pulled).json() == {"error": "model is required"}


def test_a_context_without_ids_is_a_context(server: Server) -> None:
    assert rendered(server, context=[]) == "<system>be a pirate<user>x"
    assert rendered(server, context=None) == "<system>be a pirate<user>ahoy\n\nx"
