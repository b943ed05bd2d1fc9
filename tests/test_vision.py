"""Images: a tiny model with a projector through create, show, generate and chat, by the real engine in its jail."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from server import Server, serving
from stores import put_echo
from vision_models import IMAGE_TOKENS, JINJA, png, projector, vision_llama

pytestmark = pytest.mark.slow

CREATE, GENERATE, CHAT = "/api/create", "/api/generate", "/api/chat"
STILL = {"temperature": 0, "seed": 1, "num_predict": 8}
RED, GREEN = (base64.b64encode(png(colour)).decode() for colour in ((200, 30, 30), (10, 240, 10)))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the model `eye`, whose weights have a chat template, `gopher`, which has Ollama's kind, and without: `bare`."""
    folder = tmp_path_factory.mktemp("vision")
    put_echo(folder / "models", "echo")
    with serving(folder, folder / "models", OLLAMA_NUM_PARALLEL="2", NDANI_REQUIRE_JAIL="1") as started:
        eye = started.upload(projector())
        jinja = started.upload(vision_llama(folder / "jinja", template=JINJA))
        bare = started.upload(vision_llama(folder / "bare"))
        go = "{{ range .Messages }}{{ .Role }}{{ if .Images }}+{{ len .Images }}{{ end }}: {{ .Content }}\n{{ end }}assistant:"
        for name, weights, more in (("eye", jinja, {}), ("gopher", bare, {"template": go}), ("bare", bare, {})):
            made = started.post(CREATE, {"model": name, "files": {"m.gguf": weights, "mmproj.gguf": eye}, "stream": False} | more)
            assert made.json() == {"status": "success"}, made.text
        assert started.post(CREATE, {"model": "blind", "files": {"m.gguf": jinja}, "stream": False}).json() == {"status": "success"}
        yield started


def ask(server: Server, model: str, *images: str, text: str = "what is it?", **more: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": text, "images": list(images)}], "options": STILL} | more
    return server.ask(CHAT, body)


@pytest.mark.parametrize("model", ["eye", "gopher", "bare"])
def test_an_image_changes_the_answer_and_its_tokens_are_counted(server: Server, model: str) -> None:
    none, red, green, both = (ask(server, model, *images) for images in ((), (RED,), (GREEN,), (RED, GREEN)))
    texts = [answer["message"]["content"] for answer in (none, red, green, both)]
    assert len(set(texts)) == 4
    tags = 1 if model == "gopher" else 0
    plain = none["prompt_eval_count"]
    assert red["prompt_eval_count"] >= plain + IMAGE_TOKENS, tags
    assert ask(server, model, RED)["message"]["content"] == texts[1]
