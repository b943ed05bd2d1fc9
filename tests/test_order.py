"""In which order a request is refused (reference 1.6): its body, its model, what the model cannot do, its options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from server import Server, serving, until
from stores import gguf, put_echo

CHAT, GENERATE = "/api/chat", "/api/generate"
HI = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]
#: What this version cannot do yet, or a model cannot do, or nobody can.
ASKS: list[dict[str, Any]] = [
    {"think": True}, {"think": "high"}, {"format": "json"}, {"format": {"type": "object"}}, {"logprobs": True}, {"top_logprobs": 3},
    {"options": {"num_ctx": "many"}}, {"options": {"temperature": -1}},
]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("order") / "models"
    put_echo(store, "echo")
    put_echo(store, "embeds", gguf("embeds", **{"llama.pooling_type": 1}))
    thinking = "{{ range .Messages }}{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}{{ end }}"
    put_echo(store, "able", template=f"{{{{ .Tools }}}}{{{{ .Suffix }}}}{thinking}")
    with serving(store.parent, store) as started:
        yield started


def refused(server: Server, path: str, model: str, **more: Any) -> tuple[int, str]:
    return server.refusal(path, {"model": model} | ({"messages": HI} if path == CHAT else {"prompt": "hi"}) | more)


@pytest.mark.parametrize("path", [CHAT, GENERATE])
@pytest.mark.parametrize("asks", ASKS, ids=str)
def test_an_unknown_model_is_404_whatever_is_asked_of_it(server: Server, path: str, asks: dict[str, Any]) -> None:
    assert refused(server, path, "nobody", **asks) == (404, "model 'nobody' not found")
    assert refused(server, path, "gpt:cloud", **asks)[0] == 403
    assert refused(server, path, "echo", **asks)[0] == 400


def test_more_that_an_unknown_model_is_asked(server: Server) -> None:
    assert refused(server, CHAT, "nobody", tools=TOOLS)[0] == 404
    assert refused(server, CHAT, "nobody", messages=[{"role": "user", "content": "x", "images": ["aGk="]}])[0] == 404
    assert refused(server, GENERATE, "nobody", images=["aGk="])[0] == 404
    assert refused(server, GENERATE, "echo", images=["aGk="])[0] == 400
    assert refused(server, GENERATE, "nobody", suffix="x")[0] == 404
    assert refused(server, GENERATE, "nobody", raw=True, system="x")[0] == 404
    assert refused(server, GENERATE, "nobody", template="{{ .Prompt")[0] == 404


def test_a_body_is_refused_before_its_model_is_looked_for(server: Server) -> None:
    for path in (CHAT, GENERATE):
        assert refused(server, path, "nobody", top_logprobs=21) == (400, "top_logprobs must be between 0 and 20")
        assert refused(server, path, "nobody", think=3)[0] == refused(server, path, "nobody", keep_alive="soon")[0] == 400
        assert refused(server, path, "nobody", options=[]) == (400, "options must be an object")
    assert refused(server, CHAT, "", think=True) == (400, "model is required")
    assert refused(server, GENERATE, "", think=True) == (404, "model '' not found")


def test_of_several_wrongs_the_first_in_ollamas_order_is_said(server: Server) -> None:
    wrong = {"options": {"num_ctx": "many"}, "format": "json", "suffix": "x"}
    raw = {"raw": True, "system": "y"}
    assert refused(server, GENERATE, "embeds", think=True, **wrong, **raw)[1].startswith("raw mode does not support")
    assert refused(server, GENERATE, "embeds", think=True, **wrong)[1] == '"embeds" does not support thinking'
    assert refused(server, GENERATE, "embeds", **wrong)[1] == '"embeds" does not support generate'
    assert refused(server, GENERATE, "echo", **wrong)[1] == "registry.ollama.ai/library/echo:latest does not support insert"
    assert refused(server, CHAT, "embeds", tools=TOOLS, **wrong)[1] == '"embeds" does not support chat'
    assert refused(server, CHAT, "echo", tools=TOOLS, **wrong)[1] == "registry.ollama.ai/library/echo:latest does not support tools"
    assert refused(server, CHAT, "echo", **wrong)[1] == "format is not in this version; ask for free text"
    assert refused(server, GENERATE, "echo", options={"num_ctx": "many"}, template="{{")[1] == 'option "num_ctx" must be of type integer'
    assert refused(server, GENERATE, "echo", template="{{")[1].startswith("the template is wrong at line 1")


def test_what_a_model_could_do_and_this_version_cannot_is_said_so(server: Server) -> None:
    assert server.post("/api/show", {"model": "able"}).json()["capabilities"] == ["completion", "tools", "insert", "thinking"]
    assert refused(server, CHAT, "able", format="json")[1] == "format is not in this version; ask for free text"
    assert refused(server, CHAT, "able", logprobs=True)[1] == "logprobs are not in this version; leave out logprobs and top_logprobs"


def test_there_is_no_cloud_and_it_says_so(server: Server) -> None:
    for path in ("/api/me", "/api/signout", "/api/experimental/web_search", "/api/experimental/web_fetch"):
        answer = server.post(path, {"query": "x", "url": "http://127.0.0.1:9/"})
        assert answer.status_code == 403, answer.text
        assert answer.json()["error"].startswith("ollama cloud is disabled: "), answer.text


def test_a_model_that_cannot_speak_is_not_loaded_to_speak(server: Server) -> None:
    assert refused(server, GENERATE, "embeds", prompt="") == (400, '"embeds" does not support generate')
    assert refused(server, CHAT, "embeds", messages=[]) == (400, '"embeds" does not support chat')
    for body in ({"prompt": ""}, {"prompt": "", "think": True, "options": {"num_ctx": "x"}}):
        assert server.ask(GENERATE, {"model": "echo", "keep_alive": 0} | body)["done_reason"] == "unload", "whatever else it says"
    until(lambda: not server.resident(), "it is unloaded", at_rest=20)
