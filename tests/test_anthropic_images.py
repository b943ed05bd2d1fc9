"""Images in Anthropic's messages, by the real engine and a tiny model that sees: in what the user says, and in what a tool returned."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic.types import Message

from server import serving
from vision_models import IMAGE_TOKENS, JINJA, png, projector, vision_llama

pytestmark = pytest.mark.slow

SURE = {"temperature": 0}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[anthropic.Anthropic]:
    folder = tmp_path_factory.mktemp("anthropic-images")
    with serving(folder, folder / "models") as server:
        files = {"m.gguf": server.upload(vision_llama(folder, template=JINJA)), "mmproj.gguf": server.upload(projector())}
        assert server.ask("/api/create", {"model": "eye", "files": files}) == {"status": "success"}
        with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as found:
            yield found


def image(colour: tuple[int, int, int]) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": base64.b64encode(png(colour)).decode()}}


def turn(*images: dict[str, Any]) -> list[Any]:
    return [{"role": "user", "content": [*images, {"type": "text", "text": "what is it?"}]}]


def all_input(message: Message) -> int:
    return message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)


def test_images_change_the_answer_and_count(client: anthropic.Anthropic) -> None:
    red, green = image((200, 0, 0)), image((0, 200, 0))
    answers = [
        client.messages.create(model="eye", max_tokens=8, messages=turn(*seen), extra_body=SURE) for seen in ((), (red,), (red, green))
    ]
    assert len({answer.content[0].to_json() for answer in answers}) == 3
    sizes = [all_input(answer) for answer in answers]
    assert sizes[1] - sizes[0] >= IMAGE_TOKENS
    assert sizes[2] - sizes[1] >= IMAGE_TOKENS


def test_the_tokens_of_images_are_counted(client: anthropic.Anthropic) -> None:
    seen = turn(image((0, 0, 200)))
    for _ in range(2):  # before the model has seen one of this size, and after
        counted = client.messages.count_tokens(model="eye", messages=seen).input_tokens
        with client.messages.stream(model="eye", max_tokens=1, messages=seen) as stream:
            message = stream.get_final_message()
        assert counted == all_input(message)


def test_a_tool_may_return_an_image(client: anthropic.Anthropic) -> None:
    use = {"type": "tool_use", "id": "a", "name": "camera", "input": {}}

    def size(content: Any) -> int:
        result = {"type": "tool_result", "tool_use_id": "a", "content": content}
        turns: Any = [{"role": "user", "content": "look"}, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
        return all_input(client.messages.create(model="eye", max_tokens=1, messages=turns))

    assert size([{"type": "text", "text": "done"}, image((200, 0, 0))]) - size("done") >= IMAGE_TOKENS


def test_what_is_no_image_is_refused(client: anthropic.Anthropic) -> None:
    broken = image((0, 0, 0))
    broken["source"]["data"] = base64.b64encode(b"hello").decode()
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.messages.create(model="eye", max_tokens=1, messages=turn(broken))
    assert refused.value.type == "invalid_request_error"
