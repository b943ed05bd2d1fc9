"""The description of all routes: it is complete, the parsers read nothing else, and the answers are as it says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from described import error_of, route_of, route_table, shaped
from ndani.api.edge.described_fields import only_described
from ndani.api.ollama import bodies, requests
from ndani.api.ollama.create import parse_create
from ndani.api.ollama.embed import parse_embed, parse_embeddings
from ndani.api.ollama.show import parse_show
from ndani.errors import BadRequest
from server import PATIENCE, Server


@pytest.fixture
def described(echo: Server) -> dict[str, Any]:
    """The description, as it is served."""
    answer = echo.http.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    return dict(answer.json())


def test_every_route_is_described(described: dict[str, Any]) -> None:
    routes = route_table()
    table = {(route.method.lower(), re.sub(r":\w+}", "}", route.path)) for route in routes}
    assert table == {(method, path) for path, methods in described["paths"].items() for method in methods}
    assert len(table) == len(routes) > 70


def test_the_description_is_sound(described: dict[str, Any]) -> None:
    text = json.dumps(described)
    schemas = described["components"]["schemas"]
    named = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert named == named & set(schemas)
    assert all(re.fullmatch(r"[a-z]+\.\w+", name) for name in schemas), "two types of one dialect have one name"
    assert all(schema.get("description", "").strip() for schema in schemas.values()), "every type says what it is"
    operations = [one for path in described["paths"].values() for one in path.values()]
    assert len({one["operationId"] for one in operations}) == len(operations)
    for path, methods in described["paths"].items():
        for one in methods.values():
            assert re.findall(r"\{(\w+)\}", path) == [p["name"] for p in one["parameters"] if p["in"] == "path"]
            assert one["responses"]["default"]
            assert one["summary"][0].isupper()


# What is read is described.

PARSERS: dict[type[msgspec.Struct], Callable[[dict[str, Any]], Any]] = {
    bodies.GenerateBody: requests.parse_generate,
    bodies.ChatBody: requests.parse_chat,
    bodies.EmbedBody: parse_embed,
    bodies.EmbeddingsBody: parse_embeddings,
    bodies.ShowBody: parse_show,
    bodies.CreateBody: parse_create,
}

#: Fields that the route itself reads, after its parser.
BY_THE_ROUTE = {"stream", "model", "name"}


class Recorded(dict[str, Any]):
    """A body that remembers which of its fields were asked for."""

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.read: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)


@pytest.mark.parametrize("body_type", PARSERS, ids=lambda one: one.__name__)
def test_a_parser_reads_the_described_fields_and_no_others(body_type: type[msgspec.Struct]) -> None:
    body = Recorded({"model": "m"})
    PARSERS[body_type](body)
    described = {field.encode_name for field in msgspec.structs.fields(body_type)}
    assert body.read | BY_THE_ROUTE >= described
    assert body.read <= described | BY_THE_ROUTE


def test_what_is_not_described_is_not_there() -> None:
    call = {"FUNCTION": {"name": "f", "arguments": {"Any": 1}, "x": 1}, "id": "1", "x": 1}
    body = {
        "Model": "m",
        "x": 1,
        "messages": [{"Role": "user", "content": 3, "x": 1, "tool_calls": [call]}, 4],
        "options": {"Seed": 1, "x": 1},
        "tools": [{"function": {"name": "f", "X": 1}, "x": 1}],
        "format": {"X": {"y": 1}},
        "_debug_render_only": True,
    }
    assert only_described(body, bodies.ChatBody) == {
        "model": "m",
        "messages": [
            {
                "role": "user",
                "content": 3,
                "tool_calls": [{"function": {"name": "f", "arguments": {"Any": 1}}, "id": "1"}],
            },
            4,
        ],
        "options": {"Seed": 1, "x": 1},
        "tools": [{"function": {"name": "f", "X": 1}, "x": 1}],
        "format": {"X": {"y": 1}},
        "_debug_render_only": True,
    }


#: Values of every kind, for every field.
PROBES: list[Any] = [
    None, "", "x", "json", "5m", 0, 3, -1, 21, 2**31, 1.5, True, [], ["x"], ["aGk="], [3], [-1], [1.5], [{}], {}, {"a": "b"}, {"a": 1},
    [{"role": "user", "content": "x"}], [{"role": 3}], [{"function": {"name": "f"}}], [{"function": {}}], {"function": {"name": "f"}},
    {"seed": 1.5}, {"seed": "x"}, {"top_p": 2}, {"stop": ["x"]}, {"stop": "x"}, {"use_mmap": 1},
    [{"role": "user", "tool_calls": [{"function": {"name": "f"}}]}], [{"role": "user", "tool_calls": [{}]}],
]  # fmt: skip

#: Values of the right type that are refused for what they mean: no model, no base64, no duration, no kind of weights …
BY_MEANING = {
    ("model", ""), ("keep_alive", ""), ("keep_alive", "x"), ("keep_alive", "json"), ("images", "['x']"),
    ("regex", "x"), ("draft_quantize", "x"), ("draft_quantize", "json"), ("draft_quantize", "5m"), ("remote_host", "x"),
    ("remote_host", "json"), ("remote_host", "5m"), ("remote_model", "x"), ("remote_model", "json"), ("remote_model", "5m"),
}  # fmt: skip


def _agree(body_type: type[msgspec.Struct], name: str, value: Any) -> str:
    """Whether description and parser agree on a value; if not, how."""
    body = {"model": "m", name: value}
    try:
        msgspec.convert(body, body_type)
        fits = True
    except msgspec.ValidationError:
        fits = False
    try:
        parsed = PARSERS[body_type](dict(body))
        taken = not (isinstance(parsed, tuple) and getattr(parsed[0], "options_error", ""))
    except BadRequest:
        taken = False
    if name == "info" and fits:
        return "taken" if value and taken else ""  # no value of it is of use here
    return "" if fits == taken else "described and refused" if fits else "taken and not described"


@pytest.mark.parametrize(
    ("body_type", "name"),
    [
        (body_type, field.encode_name)
        for body_type in PARSERS
        for field in msgspec.structs.fields(body_type)
        if field.encode_name not in BY_THE_ROUTE
    ],
    ids=str,
)
def test_a_field_takes_what_its_description_says(body_type: type[msgspec.Struct], name: str) -> None:
    found = {repr(value): said for value in PROBES if (said := _agree(body_type, name, value)) and (name, str(value)) not in BY_MEANING}
    assert found == {}


# What is answered is as described.


TURN = {"messages": [{"role": "user", "content": "a b c"}]}

EXCHANGES: list[tuple[str, str, Any]] = [
    ("GET", "/", None),
    ("GET", "/api/version", None),
    ("GET", "/api/status", None),
    ("GET", "/api/tags", None),
    ("GET", "/api/health", None),
    ("GET", "/api/requests", None),
    ("GET", "/docs", None),
    ("GET", "/docs/page.js", None),
    ("GET", "/docs/page.css", None),
    ("GET", "/openapi.json", None),
    ("POST", "/api/chat", {"model": "echo", **TURN}),
    ("POST", "/api/chat", {"model": "echo", **TURN, "stream": False}),
    ("POST", "/api/chat", {"model": "echo", **TURN, "_debug_render_only": True}),
    ("POST", "/api/chat", {"model": "echo", "messages": []}),
    ("POST", "/api/chat", {"model": "none", "messages": []}),
    ("POST", "/api/generate", {"model": "echo", "prompt": "a b", "options": {"num_predict": 1}}),
    ("POST", "/api/generate", {"model": "echo", "prompt": "a b", "stream": False}),
    ("POST", "/api/generate", {"model": "echo", "prompt": "a b", "_debug_render_only": True}),
    ("GET", "/api/ps", None),
    ("POST", "/api/embed", {"model": "echo", "input": "a"}),
    ("POST", "/api/embeddings", {"model": "echo", "prompt": "a"}),
    ("POST", "/api/show", {"model": "echo"}),
    ("POST", "/api/show", {"model": "echo", "verbose": True}),
    ("POST", "/api/show", {"model": "none"}),
    ("POST", "/api/copy", {"source": "echo", "destination": "copied"}),
    ("DELETE", "/api/delete", {"model": "copied"}),
    ("POST", "/api/pull", {"model": "none/none:none", "stream": False}),
    ("POST", "/api/push", {"model": "none"}),
    ("POST", "/api/create", {"model": "made", "from": "echo", "system": "s"}),
    ("POST", "/api/create", {"model": "made", "from": "echo", "system": "s", "stream": False}),
    ("DELETE", "/api/delete", {"model": "made"}),
    ("POST", "/api/verify", {}),
    ("POST", "/api/verify", {"stream": False}),
    ("POST", "/api/prune", {"dry_run": True}),
    ("POST", "/api/prune", {"dry_run": True, "stream": False}),
    ("POST", "/api/handover", {}),
    ("POST", "/api/tokenize", {"model": "echo", "content": "a"}),
    ("POST", "/api/detokenize", {"model": "echo", "tokens": [1]}),
    ("POST", "/rerank", {"model": "echo", "query": "a", "documents": ["b"]}),
    ("POST", "/api/me", {}),
    ("POST", "/api/doctor", None),
    ("POST", "/v1/chat/completions", {"model": "echo", **TURN}),
    ("POST", "/v1/chat/completions", {"model": "echo", **TURN, "stream": True, "n": 2, "stream_options": {"include_usage": True}}),
    ("POST", "/v1/chat/completions", {"model": "none", **TURN}),
    ("POST", "/v1/completions", {"model": "echo", "prompt": "a b"}),
    ("POST", "/v1/completions", {"model": "echo", "prompt": "a b", "stream": True}),
    ("POST", "/v1/embeddings", {"model": "echo", "input": "a"}),
    ("POST", "/v1/rerank", {"model": "echo", "query": "a", "documents": ["b"]}),
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/echo", None),
    ("GET", "/v1/models/none", None),
    ("POST", "/v1/audio/transcriptions", None),
    ("POST", "/v1/messages", {"model": "echo", **TURN, "max_tokens": 9}),
    ("POST", "/v1/messages", {"model": "echo", **TURN, "max_tokens": 9, "stream": True}),
    ("POST", "/v1/messages", {"model": "echo", **TURN}),
    ("POST", "/v1/messages/count_tokens", {"model": "echo", **TURN}),
    ("POST", "/v1/responses", {"model": "echo", "input": "a b"}),
    ("POST", "/v1/responses", {"model": "echo", "input": "a b", "stream": True}),
    ("GET", "/v1/responses/none", None),
    ("POST", "/v1/conversations", None),
    ("GET", "/v1/conversations/none/items", None),
    ("GET", "/status", None),
    ("GET", "/models/loaded", None),
    ("GET", "/models/load/echo", None),
    ("GET", "/models/unload/echo", None),
    ("GET", "/models/load/none", None),
    ("GET", "/foundry/list", None),
    ("GET", "/openai/status", None),
    ("GET", "/openai/models", None),
    ("GET", "/openai/loadedmodels", None),
    ("GET", "/openai/getgpudevice", None),
    ("POST", "/openai/register", {}),
    ("POST", "/openai/download", {}),
    ("POST", "/v1/chat/completions/tokenizer/encode/count", {"model": "echo", **TURN}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path", "body"), EXCHANGES, ids=str)
def test_an_answer_has_its_described_shape(echo: Server, method: str, path: str, body: Any) -> None:
    answer = echo.http.request(method, path, json=body)
    assert shaped(answer, route_of(method, path), error_of(path)) == ""
    assert answer.headers["x-request-id"]


def test_a_wrong_shape_is_seen(echo: Server) -> None:
    answer, tags = echo.http.get("/api/version"), route_of("GET", "/api/tags")
    assert "unknown field" in shaped(answer, tags)
    assert shaped(echo.http.get("/"), tags) == "text/plain instead of application/json"


# The page.


def test_the_page_loads_nothing_from_anywhere_else(echo: Server) -> None:
    page = echo.http.get("/docs")
    policy = page.headers["content-security-policy"].split("; ")
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"unsafe|\*|data:|https?:", page.headers["content-security-policy"])
    assert set(re.findall(r'(?:src|href)="([^"#]+)"', page.text)) == {"/docs/page.js", "/docs/page.css", "/openapi.json"}
    assert "<style" not in page.text
    for path in ("/docs", "/docs/page.js", "/docs/page.css"):
        text = echo.http.get(path).text
        assert not re.search(r"https?://|//\w+\.|innerHTML|eval\(|@import|url\(", text), path


@pytest.mark.slow
def test_a_browser_shows_every_route(echo: Server, described: dict[str, Any], tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium on this machine")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--virtual-time-budget=10000", "--dump-dom"]
    shown = subprocess.run(
        [browser, *flags, f"{echo.url}/docs#post_api_chat"], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    count = sum(len(methods) for methods in described["paths"].values())
    assert f">{count} of {count} routes<" in shown.stdout
    assert re.search(r'<details id="post_api_chat"[^>]* open="">', shown.stdout), "a link to a route opens it"
    assert "_debug_render_only" in shown.stdout
    assert 'href="#type-ollama.Message"' in shown.stdout
