"""Images: a tiny model with a projector through create, show, generate and chat, by the real engine in its jail."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from golden_cli import run
from mirrors import Mirror
from server import Server, serving
from vision_models import GIF, IMAGE_TOKENS, JINJA, JPEG, WEBP, bmp, png, projector, vision_llama

pytestmark = pytest.mark.slow

CREATE, GENERATE, CHAT = "/api/create", "/api/generate", "/api/chat"
STILL = {"temperature": 0, "seed": 1, "num_predict": 8}
GO = "{{ range .Messages }}{{ .Role }}{{ if .Images }}+{{ len .Images }}{{ end }}: {{ .Content }}\n{{ end }}assistant:"
TOOLS = "{% if tools %}{{ tools | length }} tools {% endif %}" + JINJA
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
TOO_LONG = "the prompt is longer than the context length currently available to the model"


def encoded(image: bytes) -> str:
    return base64.b64encode(image).decode()


RED, GREEN = encoded(png((200, 30, 30))), encoded(png((10, 240, 10)))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the model `eye`, whose weights have a chat template, `gopher`, which has Ollama's kind, and without: `bare`."""
    folder = tmp_path_factory.mktemp("vision")
    with serving(folder, folder / "models", OLLAMA_NUM_PARALLEL="2", NDANI_REQUIRE_JAIL="1") as started:
        eye = started.upload(projector())
        templates = {name: started.upload(vision_llama(folder / name, template=text)) for name, text in WEIGHTS.items()}
        for name, weights, more in (
            ("eye", "jinja", {}),
            ("gopher", "bare", {"template": GO}),
            ("bare", "bare", {}),
            ("tooled", "tools", {}),
        ):
            body = {"model": name, "files": {"m.gguf": templates[weights], "mmproj.gguf": eye}, "stream": False}
            assert started.post(CREATE, body | more).json() == {"status": "success"}
        body = {"model": "blind", "files": {"m.gguf": templates["jinja"]}, "stream": False}
        assert started.post(CREATE, body).json() == {"status": "success"}
        yield started


WEIGHTS = {"jinja": JINJA, "bare": "", "tools": TOOLS}


def chat(server: Server, model: str, *images: str, text: str = "what is it?", **more: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": text, "images": list(images)}], "options": STILL} | more
    return server.ask(CHAT, body)


def generate(server: Server, *images: str, prompt: str = "what is it?", model: str = "eye", **more: Any) -> dict[str, Any]:
    return server.ask(GENERATE, {"model": model, "prompt": prompt, "images": list(images), "options": STILL} | more)


@pytest.mark.parametrize("model", ["eye", "gopher", "bare"])
def test_an_image_changes_the_answer_and_its_tokens_are_counted(server: Server, model: str) -> None:
    none, red, green, both = (chat(server, model, *images) for images in ((), (RED,), (GREEN,), (RED, GREEN)))
    texts = [answer["message"]["content"] for answer in (none, red, green, both)]
    assert len(set(texts)) == 4
    written = {"gopher": 2}.get(model, 0)  # its template writes how many there are: +1
    plain = none["prompt_eval_count"]
    assert red["prompt_eval_count"] == green["prompt_eval_count"] == plain + IMAGE_TOKENS + written
    assert both["prompt_eval_count"] == plain + 2 * IMAGE_TOKENS + written
    assert chat(server, model, RED)["message"]["content"] == texts[1]


def test_a_stream_is_the_same_answer(server: Server) -> None:
    whole = chat(server, "eye", RED)
    body = {"model": "eye", "messages": [{"role": "user", "content": "what is it?", "images": [RED]}], "options": STILL}
    lines = server.lines(CHAT, body)
    assert len(lines) > 2
    assert "".join(line["message"]["content"] for line in lines) == whole["message"]["content"]
    assert lines[-1]["prompt_eval_count"] == whole["prompt_eval_count"]


def test_generate_takes_images_and_gives_the_context_of_the_texts(server: Server) -> None:
    none, red, green = (generate(server, *images) for images in ((), (RED,), (GREEN,)))
    assert len({answer["response"] for answer in (none, red, green)}) == 3
    assert red["prompt_eval_count"] == none["prompt_eval_count"] + IMAGE_TOKENS
    ids = none["context"][: none["prompt_eval_count"]]
    assert red["context"][: len(ids)] == ids, "an image has no ids"
    assert generate(server, RED, prompt="")["eval_count"] > 0, "an image alone is a question too"
    later = generate(server, GREEN, prompt="and this?", context=red["context"])
    assert later["prompt_eval_count"] > len(red["context"]) + IMAGE_TOKENS


def test_the_prompt_shows_where_the_images_are_and_what_is_typed_stays_text(server: Server) -> None:
    said = {"model": "eye", "messages": [{"role": "user", "content": "[img-0] or [img-1]", "images": [RED]}], "_debug_render_only": True}
    info = server.post(CHAT, said).json()["_debug_info"]
    assert info == {"rendered_template": "user: [img-0][img-0] or [img-1]\nassistant:", "image_count": 1}
    placed = server.rendered(CHAT, model="gopher", messages=[{"role": "user", "content": "a [img] b [img]", "images": [RED, GREEN, RED]}])
    assert placed == "user+3: [img-2]a [img-0] b [img-1]\nassistant:"
    assert server.rendered(GENERATE, model="bare", prompt="x [img-1]", images=[RED, GREEN], raw=True) == "[img-0]x [img-1]"
    for typed in ("[img-0]", "<__media__>", "<image>"):
        count = chat(server, "eye", text=f"{typed} x")["prompt_eval_count"]
        added = chat(server, "eye", RED, text=f"{typed} x")["prompt_eval_count"] - count
        assert IMAGE_TOKENS <= added < 2 * IMAGE_TOKENS


def test_in_raw_mode_the_prompt_says_where_an_image_is(server: Server) -> None:
    answers = [generate(server, RED, prompt=prompt, raw=True)["response"] for prompt in ("user: x", "[img-0]user: x", "user: [img-0]x")]
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize(("model", "more"), [("eye", {}), ("tooled", {"tools": [TOOL]})])
def test_the_images_of_turns_that_are_left_out_are_left_out_too(server: Server, model: str, more: dict[str, Any]) -> None:
    last = {"role": "user", "content": "and this?", "images": [GREEN]}
    talk = [{"role": "user", "content": "x " * 5000, "images": [RED]}, {"role": "assistant", "content": "fine"}, last]
    fitted, alone = (server.ask(CHAT, {"model": model, "messages": messages, "options": STILL} | more) for messages in (talk, talk[1:]))
    assert fitted["message"] == alone["message"]
    assert fitted["prompt_eval_count"] == alone["prompt_eval_count"]
    assert fitted["truncated"] > 5000
    status, sentence = server.refusal(CHAT, {"model": model, "messages": [last | {"content": "x " * 5000}], "options": STILL} | more)
    assert (status, sentence.startswith(TOO_LONG)) == (400, True)
    status, sentence = server.refusal(CHAT, {"model": model, "messages": talk, "options": STILL, "truncate": False} | more)
    assert (status, sentence.startswith(TOO_LONG)) == (400, True)


def test_a_small_context_is_larger_for_images(server: Server) -> None:
    server.post(GENERATE, {"model": "gopher", "keep_alive": 0})
    assert generate(server, RED, prompt="x" * 500, model="gopher", options=STILL | {"num_ctx": 16})["eval_count"] > 0
    assert server.resident()["gopher:latest"]["context_length"] == 2048


def test_such_a_model_reads_long_texts_like_any_other_and_stops_at_the_end_of_its_context(server: Server, tmp_path: Path) -> None:
    """With a projector the engine shifts no context, so an answer ends there."""
    cut = generate(server, prompt="x " * 5000)
    assert cut["truncated"] > 0
    assert cut["eval_count"] > 0
    files = {"m.gguf": server.upload(vision_llama(tmp_path, template=JINJA, context=2048)), "p.gguf": server.upload(projector())}
    assert server.ask(CREATE, {"model": "short", "files": files}) == {"status": "success"}
    parts = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{RED}"}}]
    body = {"model": "short", "messages": [{"role": "user", "content": parts}], "seed": 1, "logit_bias": {"1": -100}}
    whole = server.post("/v1/chat/completions", body, timeout=120).json()
    assert whole["choices"][0]["finish_reason"] == "length"
    assert 2040 <= whole["usage"]["total_tokens"] <= 2048


def test_tools_and_images_together(server: Server) -> None:
    plain, red, green = (chat(server, "tooled", *images, tools=[TOOL]) for images in ((), (RED,), (GREEN,)))
    assert red["prompt_eval_count"] == plain["prompt_eval_count"] + IMAGE_TOKENS
    assert red["message"] != green["message"]


@pytest.mark.parametrize("image", [JPEG, GIF, bmp(), bmp(height=-4), png(width=1, height=1), png(width=3000, height=1)])
def test_the_formats_that_are_taken_are_decoded(server: Server, image: bytes) -> None:
    assert generate(server, encoded(image))["prompt_eval_count"] == generate(server)["prompt_eval_count"] + IMAGE_TOKENS


def test_what_is_no_image_is_one_sentence_and_harms_nobody(server: Server) -> None:
    for image, begin in (
        (WEBP, "the image is WebP; send it as PNG, JPEG, GIF or BMP"),
        (b"hello", "the image is not a PNG, JPEG, GIF or BMP file"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "the image is not a PNG, JPEG, GIF or BMP file"),
        (png()[:40], "an image cannot be read; send the whole file"),
        (JPEG[:60], "the image cannot be read: its head is damaged or cut off"),
        (png(width=9000, height=9000), "the image has 9000 x 9000 pixels"),
    ):
        status, sentence = server.refusal(GENERATE, {"model": "eye", "prompt": "x", "images": [encoded(image)]})
        assert (status, sentence[: len(begin)]) == (400, begin)
        status, streamed = server.refusal(CHAT, {"model": "eye", "messages": [{"role": "user", "content": "", "images": [encoded(image)]}]})
        assert (status, streamed) == (400, sentence)
    assert generate(server, RED)["eval_count"] > 0


@pytest.mark.parametrize("model", ["blind", "eye"])
def test_a_model_without_a_projector_refuses_images(server: Server, model: str) -> None:
    answer = server.post(GENERATE, {"model": model, "prompt": "x", "images": [RED], "stream": False, "options": STILL})
    refused = {"error": '"blind" does not support images; leave them out, or use a model with a projector'}
    assert (answer.json() == refused) is (model == "blind")
    assert answer.status_code == (400 if model == "blind" else 200)


def test_show_lists_the_projector(server: Server) -> None:
    shown = server.post("/api/show", {"model": "eye"}).json()
    assert shown["capabilities"] == ["completion", "vision"]
    assert shown["details"]["families"] == ["llama", "clip"]
    info = shown["projector_info"]
    assert (info["general.architecture"], info["clip.vision.image_size"]) == ("clip", 28)
    assert info["general.parameter_count"] > 10000
    assert shown["modelfile"].count("FROM /") == 2
    assert "projector_info" not in server.post("/api/show", {"model": "blind"}).json()
    server.post(CREATE, {"model": "later", "from": "blind", "files": {"p.gguf": server.upload(projector())}, "stream": False})
    assert server.post("/api/show", {"model": "later"}).json()["capabilities"] == ["completion", "vision"]
    again = server.ask(CREATE, {"model": "copied", "from": "eye", "system": "look"})
    assert again == {"status": "success"}
    assert generate(server, RED, model="copied")["eval_count"] > 0


def test_a_model_with_a_projector_is_pulled_whole(server: Server, tmp_path: Path) -> None:
    mirror = Mirror(server.models, tmp_path)
    try:
        name = f"{mirror.host}/library/gopher"
        assert server.ask("/api/pull", {"model": name, "insecure": True}) == {"status": "success"}
    finally:
        mirror.close()
    shown, original = (server.post("/api/show", {"model": model}).json() for model in (name, "gopher"))
    assert shown["projector_info"] == original["projector_info"]
    assert generate(server, RED, model=name)["response"] == generate(server, RED, model="gopher")["response"]


def test_a_projector_of_another_model_is_one_sentence_and_harms_nobody(server: Server, tmp_path: Path) -> None:
    files = {"m.gguf": server.upload(vision_llama(tmp_path, template=JINJA)), "p.gguf": server.upload(projector(width=96))}
    assert server.ask(CREATE, {"model": "squint", "files": files}) == {"status": "success"}
    answer = server.post(GENERATE, {"model": "squint", "prompt": "x", "images": [RED]})
    assert answer.status_code == 500
    assert answer.json()["error"].startswith(
        "the engine could not load this model with its projector: the projector was made for another model"
    )
    assert generate(server, RED)["eval_count"] > 0


def test_the_other_dialects_send_images_too(server: Server) -> None:
    url = f"data:image/png;base64,{RED}"
    parts = {"role": "user", "content": [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": url}}]}
    same = {"model": "eye", "temperature": 0, "seed": 1}
    openai = server.post("/v1/chat/completions", same | {"messages": [parts], "max_tokens": 8}).json()
    mine = chat(server, "eye", RED)
    assert openai["choices"][0]["message"]["content"] == mine["message"]["content"]
    assert openai["usage"]["prompt_tokens"] == mine["prompt_eval_count"]
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": RED}}
    anthropic = {
        "model": "eye",
        "max_tokens": 8,
        "messages": [{"role": "user", "content": [block, {"type": "text", "text": "what is it?"}]}],
    }
    usage = server.post("/v1/messages", anthropic).json()["usage"]
    assert usage["input_tokens"] + usage.get("cache_read_input_tokens", 0) == mine["prompt_eval_count"]
    counted = server.post("/v1/messages/count_tokens", {key: anthropic[key] for key in ("model", "messages")}).json()["input_tokens"]
    assert counted == mine["prompt_eval_count"]
    item = {"role": "user", "content": [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "what is it?"}]}
    response = server.post("/v1/responses", {"model": "eye", "input": [item], "max_output_tokens": 16, "store": False}).json()
    assert response["usage"]["input_tokens"] == mine["prompt_eval_count"]
    refused = server.post("/v1/chat/completions", same | {"model": "blind", "messages": [parts]})
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")


def test_the_command_line_attaches_the_images_that_a_prompt_names(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(png())
    environment = server.environment | {"NDANI_HOST": f"127.0.0.1:{server.port}"}
    assert server.ask(CREATE, {"model": "still", "from": "eye", "parameters": STILL}) == {"status": "success"}
    red = generate(server, RED, model="still")["response"]
    for words in (("what is it? './a b.png'",), ("what", "is", "it?", "./a\\ b.png"), ("what is it?", f'"{tmp_path}/a b.png"')):
        done = run(("run", "still", *words), environment, folder=tmp_path)
        assert (done.exit, done.stdout.rstrip("\n")) == (0, red.rstrip("\n")), done.stderr
        assert "Added image '" in done.stderr
    blind = run(("run", "blind", "what is it? './a b.png'"), environment, folder=tmp_path)
    assert (blind.exit, "Added image" in blind.stderr) == (0, False)
    piped = subprocess.run(
        (sys.executable, "-m", "ndani", "run", "still"), input=b"what is it? ./a.png", env=os.environ | environment, capture_output=True,
        timeout=60, cwd=tmp_path, check=True,
    )  # fmt: skip
    assert b"Added image" not in piped.stderr


def test_no_image_is_in_a_log(server: Server) -> None:
    generate(server, RED)
    assert RED[:40] not in server.log
    assert json.dumps(RED)[:40] not in server.log
