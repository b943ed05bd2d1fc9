"""Images in OpenAI's chats, by the real engine and a tiny model that sees."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from server import Server, serving
from vision_models import IMAGE_TOKENS, JINJA, png, projector, vision_llama

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("openai-images")
    with serving(folder, folder / "models") as started:
        weights, eye = started.upload(vision_llama(folder, template=JINJA)), started.upload(projector())
        for name, files in (("eye", {"m.gguf": weights, "mmproj.gguf": eye}), ("blind", {"m.gguf": weights})):
            assert started.ask("/api/create", {"model": name, "files": files}) == {"status": "success"}
        yield started


def body(*colours: tuple[int, int, int], model: str = "eye", **more: Any) -> dict[str, Any]:
    urls = [f"data:image/png;base64,{base64.b64encode(png(colour)).decode()}" for colour in colours]
    parts = [{"type": "text", "text": "what is it?"}, *({"type": "image_url", "image_url": {"url": url}} for url in urls)]
    return {"model": model, "messages": [{"role": "user", "content": parts}], "temperature": 0, "seed": 1, "max_tokens": 8} | more


def whole(server: Server, asked: dict[str, Any]) -> dict[str, Any]:
    answer = server.post(CHAT, asked)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_images_change_the_answer_and_count(server: Server) -> None:
    none, red, both = (whole(server, body(*colours)) for colours in ((), ((200, 0, 0),), ((200, 0, 0), (0, 200, 0))))
    assert len({answer["choices"][0]["message"]["content"] for answer in (none, red, both)}) == 3
    prompts = [answer["usage"]["prompt_tokens"] for answer in (none, red, both)]
    assert prompts[1] - prompts[0] >= IMAGE_TOKENS
    assert prompts[2] - prompts[1] >= IMAGE_TOKENS


def test_what_is_not_an_image_for_this_model_is_refused(server: Server) -> None:
    blind = server.post(CHAT, body((200, 0, 0), model="blind"))
    assert blind.status_code == 400
    native = {"model": "blind", "messages": [{"role": "user", "content": "x", "images": [base64.b64encode(png()).decode()]}]}
    assert blind.json()["error"]["message"] == server.post("/api/chat", native).json()["error"]
    broken = body()
    broken["messages"][0]["content"].append({"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}})
    answer = server.post(CHAT, broken)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
