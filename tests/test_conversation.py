"""What reaches a template beside texts: roles as they are, and whether thinking was spoken of; in templates of ours and in the engine's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from checkpoints import byte_level, convert, tiny_llama
from server import Server, serving
from stores import put_echo

CHAT, GENERATE = "/api/chat", "/api/generate"
#: As Granite's TEMPLATE reads them: a role of control switches thinking on, and documents are numbered.
GRANITE = """{{- range .Messages }}
{{- if and (ge (len .Role) 8) (eq (slice .Role 0 8) "document") }}<doc {{ slice .Role 8 }}>{{ .Content }}</doc>
{{- else if eq .Role "control" }}<control>{{ .Content }}</control>
{{- else }}[{{ .Role }}]{{ .Content }}{{ end }}{{ end }}"""
THINK = (
    "{{ .Prompt }}{{ if .IsThinkSet }}{{ if .Think }}/think{{ else }}/no_think{{ end }}{{ end }}{{ .ThinkLevel }}"
    "{{ if .Suffix }}{{ .Suffix }}{{ end }}"
)
#: The same two things in the language that weights bring.
JINJA = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}/no_think{% endif %}"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("conversation")
    root = folder / "models"
    put_echo(root, "granite", template=GRANITE, system="be brief")
    put_echo(root, "thinks", template=THINK)
    put_echo(root, "legacy", template="{{ .System }}|{{ .Prompt }}|{{ .Response }}")
    llama = tiny_llama(folder / "llama", byte_level())
    (llama / "chat_template.jinja").write_text(JINJA)
    with (folder / "jinja.gguf").open("wb") as out:
        list(convert(llama, out))
    put_echo(root, "jinja", (folder / "jinja.gguf").read_bytes(), engine="gguf")
    with serving(folder, root) as started:
        yield started


def rendered(server: Server, path: str, **body: Any) -> str:
    return server.rendered(path, **body, options={"num_ctx": 256})


TURNS = [
    {"role": "control", "content": "thinking"},
    {"role": "document", "content": "a"},
    {"role": "Document 2", "content": "b"},
    {"role": "developer", "content": "c"},
    {"role": "user", "content": "d"},
    {"content": "e"},
    {"role": None, "content": "f"},
]


def test_a_template_sees_every_role_as_it_is(server: Server) -> None:
    want = "[system]be brief<control>thinking</control><doc >a</doc><doc  2>b</doc>[developer]c[user]d[]e\n\nf"
    assert rendered(server, CHAT, model="granite", messages=TURNS) == want
    answer = server.ask(CHAT, {"model": "granite", "messages": TURNS, "options": {"num_predict": 2}})
    assert answer["message"]["role"] == "assistant"
    assert answer["message"]["content"]


def test_a_template_of_one_turn_passes_over_roles_that_it_has_no_place_for(server: Server) -> None:
    assert rendered(server, CHAT, model="legacy", messages=TURNS) == "|d|"
    assert rendered(server, CHAT, model="legacy", messages=TURNS[:1]) == "||"
    assert server.ask(CHAT, {"model": "legacy", "messages": TURNS[:1], "options": {"num_predict": 1}})["done"]


def test_the_engines_own_templates_see_them_too(server: Server) -> None:
    """A developer is a system to llama.cpp, and so in Ollama where it lets the engine render."""
    want = "[control]thinking[document]a[document 2]b[system]c[user]d[]e[]f"
    assert rendered(server, CHAT, model="jinja", messages=TURNS) == want


@pytest.mark.parametrize(("think", "said"), [(None, ""), ("", ""), (False, "/no_think"), ("false", "/no_think")])
def test_thinking_that_was_refused_is_set_and_false(server: Server, think: Any, said: str) -> None:
    for model in ("thinks", "jinja"):
        one = [{"role": "user", "content": "x"}]
        user = "" if model == "thinks" else "[user]"
        assert rendered(server, CHAT, model=model, messages=one, think=think) == f"{user}x{said}"
        assert rendered(server, GENERATE, model=model, prompt="x", think=think) == f"{user}x{said}"
    assert rendered(server, GENERATE, model="thinks", prompt="x", suffix="y", think=think) == f"x{said}y"
    assert rendered(server, GENERATE, model="granite", template=THINK, prompt="x", think=think) == f"x{said}"
    assert rendered(server, GENERATE, model="thinks", prompt="x", raw=True, think=think) == "x"


def test_a_model_that_cannot_think_is_not_asked_to(server: Server) -> None:
    for think in (True, "high", "true"):
        for path, more in ((CHAT, {"messages": []}), (GENERATE, {"prompt": "x"})):
            answer = server.post(path, {"model": "thinks", "think": think, **more})
            assert (answer.status_code, answer.json()) == (400, {"error": '"thinks" does not support thinking'})
