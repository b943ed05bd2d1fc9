"""The official `anthropic` package, unmodified, with real weights: answers, streams, tools, thinking, forms, and counted tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import anthropic
import pytest
from anthropic.types import Message, MessageParam, TextBlock, ThinkingBlock, ToolUseBlock
from pydantic import BaseModel, Field

from server import Server, serving
from stores import link
from test_answer_features import CALLING, THINKING

pytestmark = pytest.mark.weights

#: The newest of these packages has no argument for this; the API still has the field.
SURE = {"temperature": 0}

HI: list[MessageParam] = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: list[MessageParam] = [{"role": "user", "content": "What is the weather in Nairobi?"}]
TOOLS: Any = [
    {
        "name": name,
        "description": f"The {name} of a city",
        "input_schema": {"type": "object", "required": ["city"], "properties": {"city": {"type": "string", "maxLength": 20}}},
    }
    for name in ("weather", "time")
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Server]:
    """The real model, and two of its weights with templates that think and call."""
    folder = tmp_path_factory.mktemp("anthropic")
    with serving(folder, link(models, folder / "models", "smollm2")) as started:
        for name, template in (("thinky", THINKING), ("tooly", CALLING)):
            started.ask("/api/create", {"model": name, "from": "smollm2", "template": template})
        yield started


@pytest.fixture
def client(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as found:
        yield found


def all_input(message: Message) -> int:
    """The tokens of the prompt: those that were read, and those in the prefix cache."""
    return message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)


def text_of(message: Message) -> str:
    (block,) = message.content
    assert isinstance(block, TextBlock)
    return block.text


def call_of(message: Message) -> ToolUseBlock:
    (call,) = [block for block in message.content if isinstance(block, ToolUseBlock)]
    return call


def test_an_answer_and_its_stream(client: anthropic.Anthropic) -> None:
    one = client.messages.create(model="smollm2", max_tokens=12, extra_body=SURE, messages=HI)
    with client.messages.stream(model="smollm2", max_tokens=12, extra_body=SURE, messages=HI) as stream:
        pieces = list(stream.text_stream)
        message = stream.get_final_message()
    assert len(pieces) > 1
    assert "".join(pieces) == text_of(message) == text_of(one)
    assert (message.stop_reason, message.usage.output_tokens) == (one.stop_reason, one.usage.output_tokens)
    assert all_input(message) == all_input(one)
    assert message.usage.cache_read_input_tokens  # the second time, most of the prompt is there already


def test_an_answer_ends_at_a_stop_sequence(client: anthropic.Anthropic) -> None:
    whole = text_of(client.messages.create(model="smollm2", max_tokens=12, extra_body=SURE, messages=HI))
    stop = whole[len(whole) // 2 :][:3]
    message = client.messages.create(model="smollm2", max_tokens=12, extra_body=SURE, messages=HI, stop_sequences=["xyz", stop])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert text_of(message) == whole[: whole.index(stop)]


def test_an_answer_goes_on_from_the_assistants_words(client: anthropic.Anthropic) -> None:
    begun: list[MessageParam] = [*HI, {"role": "assistant", "content": "The capital of France is"}]
    assert "Paris" in text_of(client.messages.create(model="smollm2", max_tokens=5, extra_body=SURE, messages=begun))


def test_an_answer_ends_with_its_context(client: anthropic.Anthropic) -> None:
    story: list[MessageParam] = [{"role": "user", "content": "Tell me a long story about a fox."}]
    message = client.messages.create(model="smollm2", max_tokens=500, messages=story, extra_body=SURE | {"num_ctx": 64})
    assert message.stop_reason == "model_context_window_exceeded"
    assert all_input(message) + message.usage.output_tokens == 64


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "time"}, {"type": "tool", "name": "weather"}])
def test_a_tool_is_called_and_its_result_read(client: anthropic.Anthropic, choice: Any) -> None:
    asked: dict[str, Any] = {"model": "tooly", "max_tokens": 100, "tools": TOOLS, "extra_body": SURE}
    one = client.messages.create(**asked, messages=WEATHER, tool_choice=choice)
    call = call_of(one)
    assert one.stop_reason == "tool_use"
    assert call.name in ([choice["name"]] if "name" in choice else ["weather", "time"])
    assert list(call.input) == ["city"]  # type: ignore[call-overload]
    with client.messages.stream(**asked, messages=WEATHER, tool_choice=choice) as stream:
        streamed = stream.get_final_message()
    assert (call_of(streamed).name, call_of(streamed).input, streamed.stop_reason) == (call.name, call.input, "tool_use")
    assert (
        all_input(streamed)
        == all_input(one)
        == client.messages.count_tokens(model="tooly", tools=TOOLS, messages=WEATHER, tool_choice=choice).input_tokens
    )
    result: Any = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "23 degrees"}]}
    after = client.messages.create(**asked, messages=[*WEATHER, one.to_param(), result], tool_choice={"type": "none"})
    assert isinstance(after.content[0], TextBlock)


def test_no_tool_is_called_where_none_may_be(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model="tooly", max_tokens=30, tools=TOOLS, messages=WEATHER, tool_choice={"type": "none"})
    assert {block.type for block in message.content} == {"text"}


def test_the_models_own_chat_template_with_tools(client: anthropic.Anthropic) -> None:
    """The engine itself renders the prompt and reads the answer."""
    asked: dict[str, Any] = {"model": "smollm2:135m", "tools": TOOLS, "messages": WEATHER}
    message = client.messages.create(**asked, max_tokens=30, extra_body=SURE)
    assert all_input(message) == client.messages.count_tokens(**asked).input_tokens
    bare = client.messages.count_tokens(model="smollm2:135m", messages=WEATHER).input_tokens
    assert bare < all_input(message)


@pytest.mark.parametrize("display", ["summarized", "omitted"])
def test_thinking_keeps_to_its_budget(client: anthropic.Anthropic, display: Literal["summarized", "omitted"]) -> None:
    thinking: Any = {"type": "enabled", "budget_tokens": 10, "display": display}
    asked: dict[str, Any] = {"model": "thinky", "messages": WEATHER, "thinking": thinking}
    one = client.messages.create(**asked, max_tokens=20, extra_body=SURE)
    thought, text = one.content
    assert isinstance(thought, ThinkingBlock)
    assert isinstance(text, TextBlock)
    assert bool(thought.thinking) == (display == "summarized")
    assert one.usage.output_tokens == 20
    with client.messages.stream(**asked, max_tokens=20, extra_body=SURE) as stream:
        streamed = stream.get_final_message()
    assert streamed.content[1].text == text.text
    assert streamed.content[0] == thought
    assert all_input(streamed) == all_input(one) == client.messages.count_tokens(**asked).input_tokens


def test_a_model_that_cannot_think_does_not(client: anthropic.Anthropic) -> None:
    thinking: Any = {"type": "enabled", "budget_tokens": 10}
    message = client.messages.create(model="smollm2", max_tokens=20, extra_body=SURE, messages=HI, thinking=thinking)
    assert [block.type for block in message.content] == ["text"]


def test_a_model_that_thinks_does_so_only_when_asked(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model="thinky", max_tokens=20, extra_body=SURE, messages=HI)
    assert [block.type for block in message.content] == ["text"]


class Person(BaseModel):
    name: str = Field(max_length=12)
    age: int


def test_the_form_of_an_answer(client: anthropic.Anthropic) -> None:
    ask: list[MessageParam] = [{"role": "user", "content": "Ann is 12 years old."}]
    schema = {
        "type": "object",
        "required": ["name", "age"],
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    }
    for model in ("smollm2", "thinky"):
        message = client.messages.create(
            model=model,
            max_tokens=120,
            messages=ask,
            thinking={"type": "enabled", "budget_tokens": 20},
            output_config={"format": {"type": "json_schema", "schema": schema}},
        )
        text = message.content[-1]
        assert isinstance(text, TextBlock)
        assert set(json.loads(text.text)) == {"name", "age"}
        assert message.stop_reason == "end_turn"
    parsed = client.messages.parse(model="smollm2", max_tokens=120, extra_body=SURE, messages=ask, output_format=Person)
    assert isinstance(parsed.parsed_output, Person)


@pytest.mark.parametrize("system", [None, "Be brief.", [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}]])
def test_counted_tokens_are_those_of_the_answer(client: anthropic.Anthropic, system: Any) -> None:
    turns: list[MessageParam] = [*HI, {"role": "assistant", "content": "Paris. Ça va — 你好 🦊"}, {"role": "user", "content": "Why?"}]
    asked: dict[str, Any] = {"messages": turns} | ({"system": system} if system else {})
    for model in ("smollm2", "smollm2:135m", "tooly"):
        counted = client.messages.count_tokens(model=model, **asked).input_tokens
        assert counted == all_input(client.messages.create(model=model, max_tokens=1, **asked))


def test_a_user_of_another_dialect_gets_the_same_prompt(server: Server, client: anthropic.Anthropic) -> None:
    native = server.ask("/api/chat", {"model": "smollm2", "messages": HI, "options": {"num_predict": 1}})
    assert native["prompt_eval_count"] == client.messages.count_tokens(model="smollm2", messages=HI).input_tokens


def test_a_model_without_eyes_refuses_an_image(client: anthropic.Anthropic) -> None:
    picture: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
    with pytest.raises(anthropic.BadRequestError, match="image"):
        client.messages.create(model="smollm2", max_tokens=4, messages=[{"role": "user", "content": [picture]}])
    with pytest.raises(anthropic.BadRequestError, match="image"):
        client.messages.count_tokens(model="smollm2", messages=[{"role": "user", "content": [picture]}])
