"""The official `openai` package, unmodified, against a server with real models."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pydantic
import pytest

from server import Server, serving
from stores import EMBEDDER, link
from test_answer_features import CALLING, THINKING

pytestmark = pytest.mark.weights

HI: Any = [{"role": "user", "content": "What is the capital of France?"}]
FEW: Any = {"model": "smollm2", "messages": HI, "max_tokens": 8, "temperature": 0}

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather", "description": "The weather of a city.", "strict": True,
        "parameters": {
            "type": "object", "properties": {"city": {"type": "string", "enum": ["Nairobi", "Paris"]}},
            "required": ["city"], "additionalProperties": False,
        },
    },
}  # fmt: skip
TIME: Any = {
    "type": "function",
    "function": {"name": "get_time", "parameters": {"type": "object", "properties": {"zone": {"type": "integer"}}}},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, models: Path, minilm: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("openai")
    link(models, folder / "models", "smollm2")
    link(minilm, folder / "models")
    with serving(folder, folder / "models") as started:
        for name, template in (("thinky", THINKING), ("tooly", CALLING)):
            started.ask("/api/create", {"model": name, "from": "smollm2", "template": template})
        yield started


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture
async def aclient(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**FEW)
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8
    assert client.chat.completions.create(**FEW).choices == answer.choices
    again = client.chat.completions.create(**FEW)
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens


def test_a_stream_is_the_answer_in_pieces(client: openai.OpenAI) -> None:
    asked = FEW | {"max_tokens": 100, "extra_body": {"regex": "([a-z]{2,6} ){5}"}}  # so that it ends by itself
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].finish_reason == "stop"
    with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
        texts = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert len(texts) > 3
    assert "".join(texts) == final.choices[0].message.content == whole.choices[0].message.content
    assert final.usage is not None
    assert whole.usage is not None
    assert final.usage.completion_tokens == whole.usage.completion_tokens
    chunks = list(client.chat.completions.create(**FEW, stream=True))
    assert len(chunks) == 9
    assert chunks[-1].choices[0].finish_reason == "length"


async def test_asynchronously(aclient: openai.AsyncOpenAI, client: openai.OpenAI) -> None:
    texts = [chunk.choices[0].delta.content or "" async for chunk in await aclient.chat.completions.create(**FEW, stream=True)]
    assert "".join(texts) == client.chat.completions.create(**FEW).choices[0].message.content


def test_several_choices_differ_and_a_seed_repeats_them(client: openai.OpenAI) -> None:
    asked = FEW | {"n": 3, "seed": 5, "temperature": 1.5, "max_tokens": 12}
    one, other = (client.chat.completions.create(**asked) for _ in range(2))
    texts = [choice.message.content for choice in one.choices]
    assert len(set(texts)) == 3
    assert [choice.message.content for choice in other.choices] == texts
    assert one.usage is not None
    assert one.usage.completion_tokens <= 36


def test_logprobs(client: openai.OpenAI) -> None:
    (choice,) = client.chat.completions.create(**FEW, logprobs=True, top_logprobs=3).choices
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert "".join(item.token for item in choice.logprobs.content) == choice.message.content
    for item in choice.logprobs.content:
        assert item.logprob <= 0
        assert len(item.top_logprobs) == 3
        assert bytes(item.bytes or []).decode() == item.token
        assert item.top_logprobs[0].token == item.token  # the temperature is 0
    chunks = client.chat.completions.create(**FEW, logprobs=True, top_logprobs=3, stream=True)
    streamed = [part for chunk in chunks for piece in chunk.choices if piece.logprobs for part in piece.logprobs.content or []]
    assert [part.token for part in streamed] == [item.token for item in choice.logprobs.content]


def test_stop_and_bias(client: openai.OpenAI, server: Server) -> None:
    free = client.chat.completions.create(**FEW, logprobs=True).choices[0]
    assert free.message.content
    word = free.message.content.split()[2]
    stopped = client.chat.completions.create(**FEW, stop=[word]).choices[0]
    assert stopped.finish_reason == "stop"
    assert word not in (stopped.message.content or "")
    one = {"model": "smollm2", "prompt": HI[0]["content"], "options": {"num_predict": 1, "temperature": 0}}
    first = server.ask("/api/generate", one)["context"][-1]
    forbidden = client.chat.completions.create(**FEW, logit_bias={str(first): -100}, logprobs=True).choices[0]
    assert free.logprobs
    assert forbidden.logprobs
    assert (forbidden.logprobs.content or ())[0].token != (free.logprobs.content or ())[0].token
    certain = client.chat.completions.create(**FEW | {"temperature": 1}, logit_bias={str(first): 100}).choices[0]
    assert certain.message.content == (free.logprobs.content or ())[0].token * 8


class Person(pydantic.BaseModel):
    name: str
    age: int
    mood: Literal["glad", "sad"]


def test_a_structured_output_is_a_pydantic_model(client: openai.OpenAI) -> None:
    asked: Any = [{"role": "user", "content": "Ann is 12 years old and glad."}]
    answer = client.chat.completions.parse(model="smollm2", messages=asked, response_format=Person, max_tokens=80, temperature=0)
    person = answer.choices[0].message.parsed
    assert person is not None
    assert person.mood in ("glad", "sad")


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json_schema", "json_schema": {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}},
        {"type": "json_object"},
    ],
)
def test_a_bare_schema_and_any_object(client: openai.OpenAI, response_format: Any) -> None:
    asked = FEW | {"messages": [{"role": "user", "content": "Ann is 12. Her age as JSON:"}], "max_tokens": 120}
    answer = client.chat.completions.create(**asked, response_format=response_format)
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_a_regular_expression_and_a_grammar(client: openai.OpenAI) -> None:
    for more in ({"regex": "(red|blue)-[0-9]{3}"}, {"grammar": 'root ::= ("red" | "blue") "-" [0-9] [0-9] [0-9]'}):
        text = client.chat.completions.create(**FEW, extra_body=more).choices[0].message.content
        assert re.fullmatch("(red|blue)-[0-9]{3}", text or "")


def test_a_schema_that_cannot_be_obeyed(client: openai.OpenAI) -> None:
    wrong: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "properties": {"a": {"not": {}}}}}}
    with pytest.raises(openai.BadRequestError, match="not"):
        client.chat.completions.create(**FEW, response_format=wrong)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_call_that_must_be_made(client: openai.OpenAI, choice: Any) -> None:
    asked: Any = {
        "model": "tooly", "messages": [{"role": "user", "content": "What is the weather in Nairobi?"}], "temperature": 0,
        "tools": [WEATHER, TIME], "tool_choice": choice, "max_tokens": 100,
    }  # fmt: skip
    answer = client.chat.completions.create(**asked).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content is None
    (call,) = answer.message.tool_calls or ()
    assert call.type == "function"
    assert call.function.name in (("get_weather",) if isinstance(choice, dict) else ("get_weather", "get_time"))
    arguments = json.loads(call.function.arguments)
    assert call.function.name != "get_weather" or arguments["city"] in ("Nairobi", "Paris")
    with client.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls"
    (piece,) = streamed.message.tool_calls or ()
    assert (piece.function.name, piece.function.arguments) == (call.function.name, call.function.arguments)
    # And the conversation goes on with the tool's result.
    turns = [
        *asked["messages"],
        answer.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    last = client.chat.completions.create(**(asked | {"messages": turns, "tool_choice": "none", "max_tokens": 8})).choices[0]
    assert last.message.tool_calls is None
    assert last.message.content


def test_reasoning(client: openai.OpenAI) -> None:
    asked = FEW | {"model": "thinky", "max_tokens": 24}
    for more in ({}, {"reasoning_effort": "low"}, {"extra_body": {"think": True}}):
        answer = client.chat.completions.create(**asked, **more)
        thought = (answer.choices[0].message.model_extra or {})["reasoning"]
        assert thought
        assert answer.usage is not None
        assert answer.usage.completion_tokens_details is not None
        assert 0 < (answer.usage.completion_tokens_details.reasoning_tokens or 0) <= answer.usage.completion_tokens
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)]
    assert "".join((delta.model_extra or {}).get("reasoning", "") for delta in deltas) == thought
    quiet = client.chat.completions.create(**asked, reasoning_effort="none").choices[0].message
    assert quiet.content
    assert not quiet.model_extra
    turns: Any = [
        *HI,
        {"role": "assistant", "content": "Paris.", "reasoning": "France, so Paris."},
        {"role": "user", "content": "And of Kenya?"},
    ]
    assert client.chat.completions.create(**asked | {"messages": turns}).choices
    with pytest.raises(openai.BadRequestError, match="does not support thinking"):
        client.chat.completions.create(**FEW, reasoning_effort="high")
    text = client.completions.create(model="thinky", prompt="Say hello.", max_tokens=8, temperature=0).choices[0].text
    assert text


def test_completions(client: openai.OpenAI) -> None:
    asked: Any = {"model": "smollm2", "prompt": "Say hello.", "max_tokens": 6, "temperature": 0, "logprobs": 2}
    (choice,) = client.completions.create(**asked).choices
    assert choice.finish_reason == "length"
    assert choice.logprobs is not None
    assert "".join(choice.logprobs.tokens or ()) == choice.text
    assert all(len(top) == 2 for top in choice.logprobs.top_logprobs or ())
    assert "".join(piece.choices[0].text for piece in client.completions.create(**asked, stream=True)) == choice.text
    assert len(client.completions.create(**asked | {"prompt": ["One", "Two"], "n": 2, "temperature": 1}).choices) == 4


def test_embeddings(client: openai.OpenAI) -> None:
    packed = client.embeddings.create(model=EMBEDDER, input=["hello", "world"])  # the package asks for base64
    plain = client.embeddings.create(model=EMBEDDER, input=["hello", "world"], encoding_format="float")
    assert [one.index for one in packed.data] == [0, 1]
    assert packed.usage.prompt_tokens == packed.usage.total_tokens == 6
    for one, other in zip(packed.data, plain.data, strict=True):
        assert len(one.embedding) == 384
        assert one.embedding == pytest.approx(other.embedding, abs=1e-7)
    short = client.embeddings.create(model=EMBEDDER, input="hello", dimensions=64).data[0].embedding
    assert len(short) == 64
    assert sum(number * number for number in short) == pytest.approx(1, abs=1e-5)
    assert len(client.embeddings.create(model=EMBEDDER, input="").data) == 1


def test_models(client: openai.OpenAI) -> None:
    assert {"smollm2:135m", "smollm2:latest", "tooly:latest", f"{EMBEDDER}:latest"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("smollm2").owned_by == "library"


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="model 'nope' not found"):
        client.chat.completions.create(**FEW | {"model": "nope"})
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")
    with pytest.raises(openai.BadRequestError, match="does not support chat"):
        client.chat.completions.create(**FEW | {"model": EMBEDDER})
    with pytest.raises(openai.BadRequestError, match="store is not supported"):
        client.chat.completions.create(**FEW, store=True)
    with pytest.raises(openai.BadRequestError, match="transcription is not supported"):
        client.audio.transcriptions.create(file=("a.wav", b"x" * 2000), model="whisper-1")
