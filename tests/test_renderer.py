"""A model that asks for a renderer or a parser of Ollama's own is served by the chat template in its weights, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli_server import surroundings
from conftest import Start
from golden_cli import run
from mirrors import Mirror
from ndani import names
from ndani.store import Store
from server import Server
from stores import gguf, put_echo

CHAT, GENERATE, SHOW = (f"/api/{verb}" for verb in ("chat", "generate", "show"))
HI = [{"role": "user", "content": "hi"}]
IGNORED = "x-ndani-ignored"
INSTEAD = "the chat template in its weights is used instead, and without one it cannot be asked"
SAID = f"this model asks for the renderer qwen3-coder and the parser qwen3-coder of Ollama's own; {INSTEAD}"


def configure(root: Path, model: str, **more: Any) -> None:
    """Have a model's config say more."""
    store, name = Store(root), names.parse(model)
    manifest = json.loads(store.layout.manifest(name).read_bytes())
    config = json.dumps(json.loads(store.blobs.read(manifest["config"]["digest"])) | more).encode()
    manifest["config"] |= {"digest": store.blobs.put(config), "size": len(config)}
    store.commit(name, json.dumps(manifest).encode())


@pytest.fixture
def server(start: Start, tmp_path: Path) -> Server:
    root = tmp_path / "models"
    put_echo(root, "plain")
    for name, more in (("coder", {"renderer": "qwen3-coder", "parser": "qwen3-coder"}), ("parsed", {"parser": "harmony"})):
        put_echo(root, name, gguf(name, template=""), template="<{{ .Prompt }}>{{ if .Suffix }}{{ .Suffix }}{{ end }}")
        configure(root, name, **more)
    put_echo(root, "served", template="<{{ .Prompt }}>")  # its weights hold a chat template
    configure(root, "served", renderer="qwen3-coder", parser="qwen3-coder")
    put_echo(root, "readable", gguf("readable", template=""), template="<{{ .Prompt }}>")
    configure(root, "readable", parser="qwen3")
    put_echo(root, "nothing")
    configure(root, "nothing", renderer="", parser=None)
    return start(root)


def test_the_chat_template_in_the_weights_serves_it(server: Server) -> None:
    body = {"options": {"num_predict": 1}, "prompt": "hi", "messages": HI}
    by_weights = "<|user|>\nhi\n<|end|>\n<|assistant|>"
    for model, prompt in (("served", by_weights), ("readable", "<hi>"), ("plain", by_weights), ("nothing", by_weights)):
        for path in (CHAT, GENERATE):
            answer = server.post(path, body | {"model": model, "stream": False, "_debug_render_only": True})
            assert answer.status_code == 200
            assert IGNORED not in answer.headers
            assert answer.json()["_debug_info"]["rendered_template"] == prompt


def test_without_a_chat_template_it_is_refused(server: Server) -> None:
    body = {"options": {"num_predict": 1}, "prompt": "hi", "messages": HI}
    for model, asked in (("coder", "the renderer qwen3-coder"), ("parsed", "the parser harmony")):
        for path in (CHAT, GENERATE):
            answer = server.post(path, body | {"model": model})
            assert answer.status_code == 400
            assert f"cannot be asked here: it asks for {asked} of Ollama's own, and its weights hold no" in answer.json()["error"]


def test_what_no_renderer_would_be_asked_is_not_said(server: Server) -> None:
    """A prompt sent as it is, a template of the request, a text to be filled in: Ollama asks no renderer for them either."""
    for more, ignored in (({"raw": True}, None), ({"template": "{{ .Prompt }}"}, "parser"), ({"suffix": "x"}, "parser")):
        answer = server.post(GENERATE, {"model": "coder", "prompt": "hi", "options": {"num_predict": 1}} | more)
        assert answer.status_code == 200, more
        assert answer.headers.get(IGNORED) == ignored, more
    for body in ({"model": "coder"}, {"model": "coder", "keep_alive": 0}):
        assert IGNORED not in server.post(GENERATE, body).headers


def test_it_is_said_where_the_model_is_made_and_where_it_is_shown(server: Server) -> None:
    told = [line["status"] for line in server.lines("/api/create", {"model": "mine", "from": "coder", "system": "be brief"})]
    assert told[0] == f"warning: {SAID}"
    assert told[-1] == "success"
    for name in ("coder", "mine"):
        shown = server.post(SHOW, {"model": name}).json()
        assert shown["warnings"] == [SAID]
        assert (shown["renderer"], shown["parser"]) == ("qwen3-coder", "qwen3-coder")
    (parsed,) = server.post(SHOW, {"model": "parsed"}).json()["warnings"]
    assert parsed == f"this model asks for the parser harmony of Ollama's own; {INSTEAD}"
    for name in ("plain", "nothing", "readable"):
        assert "warnings" not in server.post(SHOW, {"model": name}).json()
    plain = [line["status"] for line in server.lines("/api/create", {"model": "mine", "from": "plain"})]
    assert not any("warning" in status for status in plain)


def test_it_is_said_at_the_end_of_a_pull_and_of_a_create_that_pulls(server: Server, start: Start, tmp_path: Path) -> None:
    mirror, second = Mirror(server.models, tmp_path), start(tmp_path / "second")
    try:
        for name, said in (("coder", [f"warning: {SAID}", "success"]), ("plain", ["writing manifest", "success"])):
            lines = second.lines("/api/pull", {"model": f"{mirror.host}/library/{name}", "insecure": True})
            assert [line["status"] for line in lines[-2:]] == said
    finally:
        mirror.close()


def test_ndani_show_says_it_beside_the_card(server: Server) -> None:
    home = surroundings(server.home, server.port)
    for flags, begins in (((), "  Model\n"), (("--template",), "<{{ .Prompt }}>")):
        shown = run(("show", "coder", *flags), home)
        assert shown.stdout.startswith(begins)
        assert shown.stderr == f"Warning: {SAID}\n"
    assert run(("show", "plain"), home).stderr == ""


def test_a_name_that_would_steer_a_screen_is_not_repeated_as_it_is(start: Start, tmp_path: Path) -> None:
    put_echo(tmp_path / "models", "evil")
    configure(tmp_path / "models", "evil", renderer="\x1b]0;x\x07" + "y" * 500)
    (said,) = start(tmp_path / "models").post(SHOW, {"model": "evil"}).json()["warnings"]
    assert said.isprintable()
    assert len(said) < 300
