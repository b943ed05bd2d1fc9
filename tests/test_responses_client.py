"""The official `openai` package, unmodified, sync and async, against /v1/responses and /v1/conversations with the real model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai.types.responses import ResponseFunctionToolCall, ResponseStreamEvent
from pydantic import BaseModel, Field

from server import Server

pytestmark = pytest.mark.weights

MODEL = "smollm2:135m"
SHORT: dict[str, Any] = {"model": MODEL, "max_output_tokens": 8, "temperature": 0}
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a city",
    "strict": True,
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False},
}
TIME: dict[str, Any] = {"type": "function", "name": "get_time", "strict": None, "parameters": {"type": "object", "properties": {}}}


@pytest.fixture
def client(real: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{real.url}/v1", api_key="none", max_retries=0) as found:
        yield found


class Person(BaseModel):
    """What the model is to say of somebody."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)
    mood: Literal["glad", "sad"]


def test_a_response(client: openai.OpenAI) -> None:
    response = client.responses.create(input="What is the capital of France?", instructions="Be brief.", metadata={"a": "b"}, **SHORT)
    assert response.output_text.startswith("The capital of France is")
    assert (response.status, response.model, response.metadata) == ("completed", MODEL, {"a": "b"})
    assert response.usage is not None
    assert response.usage.output_tokens == 8
    assert response.usage.input_tokens + 8 == response.usage.total_tokens


def test_foundry_locals_names_have_its_form(client: openai.OpenAI) -> None:
    response = client.responses.create(input="What is the capital of France?", **SHORT | {"model": "smollm2-135m-generic-cpu:1"})
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output_text
    streamed = client.responses.create(input="Hi", stream=True, **SHORT | {"model": "smollm2-135m-generic-cpu"})
    assert [event.type for event in streamed][-1] == "response.incomplete"


def test_a_stream_has_the_text_of_the_response(client: openai.OpenAI) -> None:
    whole = client.responses.create(input="Name three colours.", **SHORT)
    events: list[ResponseStreamEvent] = list(client.responses.create(input="Name three colours.", stream=True, **SHORT))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == whole.output_text
    with client.responses.stream(input="Name three colours.", **SHORT) as stream:
        assert stream.get_final_response().output_text == whole.output_text


async def test_the_async_client(real: Server) -> None:
    async with openai.AsyncOpenAI(base_url=f"{real.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.responses.create(input="Hi", stream=True, **SHORT)
        assert [event.type async for event in stream][-1] == "response.completed"


def test_a_pydantic_model_is_what_the_text_is(client: openai.OpenAI) -> None:
    request = {"model": MODEL, "input": "Ann is 12 years old and glad.", "temperature": 0, "max_output_tokens": 80}
    response = client.responses.parse(text_format=Person, **request)
    assert isinstance(response.output_parsed, Person)
    with client.responses.stream(text_format=Person, **request) as stream:
        assert stream.get_final_response().output_parsed == response.output_parsed


def test_a_json_object(client: openai.OpenAI) -> None:
    text: Any = {
        "format": {"type": "json_schema", "name": "n", "schema": {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"]}}
    }
    response = client.responses.create(input="A number.", text=text, **SHORT | {"max_output_tokens": 40})
    assert json.loads(response.output_text) == {"n": 7}
    assert response.text is not None
    assert response.text.format is not None
    assert response.text.format.type == "json_schema"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_a_tool_that_must_be_called_is(client: openai.OpenAI, choice: Any) -> None:
    tools = [WEATHER] if choice == "required" else [TIME, WEATHER]
    request: Any = {"model": MODEL, "temperature": 0, "max_output_tokens": 60, "tools": tools, "tool_choice": choice}
    question = {"role": "user", "content": "How is the weather in Nairobi?"}
    response = client.responses.create(input=[question], **request)
    (call,) = [item for item in response.output if item.type == "function_call"]
    assert isinstance(call, ResponseFunctionToolCall)
    assert call.name == "get_weather"
    assert isinstance(json.loads(call.arguments)["city"], str)
    events = list(client.responses.create(input=[question], stream=True, **request))
    assert "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta") == call.arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "It is sunny in Nairobi, 24 degrees."}
    for rest in ({"input": [question, *response.output, result]}, {"input": [result], "previous_response_id": response.id}):
        answer = client.responses.create(**rest, **request | {"tool_choice": "none"})
        assert answer.output_text
        assert [item.type for item in answer.output] == ["message"]


def test_logprobs(client: openai.OpenAI) -> None:
    response = client.responses.create(
        input="Hi", include=["message.output_text.logprobs"], top_logprobs=2, **SHORT | {"max_output_tokens": 3}
    )
    message = response.output[0]
    assert message.type == "message"
    part = message.content[0]
    assert part.type == "output_text"
    assert part.logprobs is not None
    assert "".join(token.token for token in part.logprobs) == part.text
    assert [len(token.top_logprobs) for token in part.logprobs] == [2, 2, 2]
    assert part.logprobs[0].logprob == max(top.logprob for top in part.logprobs[0].top_logprobs)


def test_a_response_is_continued_read_listed_and_deleted(client: openai.OpenAI) -> None:
    first = client.responses.create(input="My name is Wanjiku.", **SHORT)
    second = client.responses.create(input="What is my name?", previous_response_id=first.id, **SHORT | {"max_output_tokens": 12})
    assert "Wanjiku" in second.output_text
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens // 2, "the prefix cache is used"
    assert client.responses.retrieve(second.id) == second
    (item,) = client.responses.input_items.list(second.id)
    assert item.type == "message"
    assert item.content[0].text == "What is my name?"  # type: ignore[union-attr]
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match="is not here"):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError, match="is not here"):
        client.responses.create(input="And now?", previous_response_id=second.id, **SHORT)
    with pytest.raises(openai.BadRequestError, match="only a response in the background"):
        client.responses.cancel(second.id)


def test_a_conversation(client: openai.OpenAI) -> None:
    conversation = client.conversations.create(
        items=[{"type": "message", "role": "user", "content": "My name is Otieno."}], metadata={"a": "b"}
    )
    assert client.conversations.retrieve(conversation.id) == conversation
    response = client.responses.create(input="What is my name?", conversation=conversation.id, **SHORT | {"max_output_tokens": 12})
    assert "Otieno" in response.output_text
    assert response.conversation is not None
    assert response.conversation.id == conversation.id
    items = list(client.conversations.items.list(conversation.id, order="asc", limit=1))  # the client turns the pages
    assert [item.role for item in items if item.type == "message"] == ["user", "user", "assistant"]
    added = client.conversations.items.create(conversation.id, items=[{"role": "user", "content": "Thanks."}])
    assert client.conversations.items.retrieve(added.data[0].id or "", conversation_id=conversation.id) == added.data[0]
    client.conversations.items.delete(added.data[0].id or "", conversation_id=conversation.id)
    assert len(list(client.conversations.items.list(conversation.id))) == 3
    assert client.conversations.update(conversation.id, metadata={"c": "d"}).metadata == {"c": "d"}
    assert client.conversations.delete(conversation.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.conversations.retrieve(conversation.id)


def test_input_tokens_are_those_of_the_response(client: openai.OpenAI) -> None:
    counted = client.responses.input_tokens.count(model=MODEL, input="What is the capital of France?", instructions="Be brief.")
    response = client.responses.create(input="What is the capital of France?", instructions="Be brief.", **SHORT)
    assert response.usage is not None
    assert counted.input_tokens == response.usage.input_tokens


def test_refusals_are_the_clients_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="model 'nope' not found"):
        client.responses.create(input="Hi", **SHORT | {"model": "nope"})
    with pytest.raises(openai.BadRequestError, match=r"tools\[0\].type must be function"):
        client.responses.create(input="Hi", tools=[{"type": "web_search"}], **SHORT)
    with pytest.raises(openai.BadRequestError, match="does not support thinking"):
        client.responses.create(input="Hi", reasoning={"effort": "low"}, **SHORT)
