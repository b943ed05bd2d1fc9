"""/v1/messages over HTTP, with the official `anthropic` package unmodified, on the echo engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import pytest
from anthropic.types import MessageParam, TextBlock, TextBlockParam

from conftest import Start
from server import Server
from stores import put_echo

pytestmark = pytest.mark.slow

WORDS = "one two three four"
HI: list[MessageParam] = [{"role": "user", "content": WORDS}]


def connected(server: Server) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


@pytest.fixture
def client(echo: Server) -> Iterator[anthropic.Anthropic]:
    with connected(echo) as found:
        yield found


def text_of(message: anthropic.types.Message) -> str:
    (block,) = message.content
    assert isinstance(block, TextBlock)
    return block.text


def test_an_answer(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model="echo", max_tokens=4, messages=HI)
    assert text_of(message) == WORDS
    assert (message.role, message.model, message.stop_reason, message.stop_sequence) == ("assistant", "echo", "max_tokens", None)
    assert message.id.startswith("msg_")
    assert str(message._request_id).startswith("req_")
    assert message.usage.output_tokens == 4
    assert message.usage.input_tokens > 0


def test_max_tokens(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model="echo", max_tokens=2, messages=HI)
    assert (text_of(message), message.stop_reason, message.usage.output_tokens) == ("one two", "max_tokens", 2)


def test_a_stream_folds_to_the_unstreamed_answer(client: anthropic.Anthropic) -> None:
    one = client.messages.create(model="echo", max_tokens=3, messages=HI)
    with client.messages.stream(model="echo", max_tokens=3, messages=HI) as stream:
        pieces = list(stream.text_stream)
        message = stream.get_final_message()
    assert pieces == ["one", " two", " three"]
    assert text_of(message) == text_of(one) == "one two three"
    assert (message.stop_reason, message.usage.output_tokens) == (one.stop_reason, one.usage.output_tokens)
    whole = [usage.input_tokens + (usage.cache_read_input_tokens or 0) for usage in (message.usage, one.usage)]
    assert whole[0] == whole[1]


def test_a_stream_begins_with_the_size_of_its_prompt(client: anthropic.Anthropic) -> None:
    """Clients read the size of the prompt there, and nowhere else."""
    for words in (WORDS, "new words for this test alone"):
        with client.messages.stream(model="echo", max_tokens=3, messages=[{"role": "user", "content": words}]) as stream:
            (begun,) = [event.message.usage.model_copy() for event in stream if event.type == "message_start"]
            usage = stream.get_final_message().usage
        assert begun.input_tokens > 0
        assert (begun.input_tokens, begun.cache_read_input_tokens) == (usage.input_tokens, usage.cache_read_input_tokens)


def test_the_events_of_a_stream(echo: Server) -> None:
    answer = echo.post("/v1/messages", {"model": "echo", "max_tokens": 2, "messages": HI, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    names = [frame.split("\n")[0].removeprefix("event: ") for frame in answer.text.split("\n\n")[:-1]]
    delta = "content_block_delta"
    assert names == ["message_start", "content_block_start", delta, delta, "content_block_stop", "message_delta", "message_stop"]


def test_the_prefix_cache_is_counted_apart(start: Start, tmp_path: Any) -> None:
    put_echo(tmp_path / "models", "echo")
    long: TextBlockParam = {"type": "text", "text": "word " * 200, "cache_control": {"type": "ephemeral"}}
    with connected(start(tmp_path / "models")) as client:
        first, second = [client.messages.create(model="echo", max_tokens=1, system=[long], messages=HI).usage for _ in range(2)]
    assert (first.cache_read_input_tokens, first.cache_creation_input_tokens) == (0, 0)
    assert second.cache_read_input_tokens is not None
    assert second.cache_read_input_tokens > 190
    assert first.input_tokens == second.input_tokens + second.cache_read_input_tokens


Request = Callable[[anthropic.Anthropic], object]


@pytest.mark.parametrize(
    ("request_of", "error", "kind"),
    [
        (lambda c: c.messages.create(model="nobody", max_tokens=9, messages=HI), anthropic.NotFoundError, "not_found_error"),
        (lambda c: c.messages.create(model="echo", max_tokens=0, messages=HI), anthropic.BadRequestError, "invalid_request_error"),
        (lambda c: c.messages.create(model="echo", max_tokens=9, messages=[]), anthropic.BadRequestError, "invalid_request_error"),
        (lambda c: c.messages.create(model="x:cloud", max_tokens=9, messages=HI), anthropic.PermissionDeniedError, "permission_error"),
        (lambda c: c.messages.create(model="nobody", max_tokens=9, messages=HI, stream=True), anthropic.NotFoundError, "not_found_error"),
        (lambda c: c.messages.batches.list(), anthropic.NotFoundError, "not_found_error"),
    ],
)
def test_errors_are_those_of_the_client(
    client: anthropic.Anthropic, request_of: Request, error: type[anthropic.APIStatusError], kind: str
) -> None:
    with pytest.raises(error) as refused:
        request_of(client)
    assert refused.value.type == kind
    assert isinstance(refused.value.body, dict)
    assert refused.value.body["type"] == "error"
    assert refused.value.body["request_id"] == refused.value.request_id == refused.value.response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'{"model":"echo"', 400),
        (b'{"model":"echo","max_tokens":1,"messages":5}', 400),
    ],
)
def test_a_body_that_is_none(echo: Server, body: bytes, status: int) -> None:
    answer = echo.http.post("/v1/messages", content=body)
    assert answer.status_code == status
    assert sorted(answer.json()) == ["error", "request_id", "type"]
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_method_that_is_none(echo: Server) -> None:
    answer = echo.http.get("/v1/messages")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_an_error_in_a_stream_is_its_last_event(start: Start, echo_store: Any) -> None:
    server = start(echo_store)
    crash = [{"role": "user", "content": "@crash=2 a b c d"}]
    answer = server.post("/v1/messages", {"model": "echo", "max_tokens": 9, "messages": crash, "stream": True})
    assert answer.status_code == 200
    name, data = answer.text.split("\n\n")[-2].split("\n")
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"]["type"] == "api_error"
    with connected(server) as client, pytest.raises(anthropic.APIStatusError) as refused:
        list(client.messages.create(model="echo", max_tokens=9, messages=crash, stream=True))  # type: ignore[call-overload]
    assert refused.value.type == "api_error"


def test_a_prompt_that_is_too_long_is_refused(client: anthropic.Anthropic) -> None:
    """No turn is left out silently."""
    turns: list[MessageParam] = [{"role": role, "content": "word " * 100} for role in ("user", "assistant", "user")]  # type: ignore[misc]
    with pytest.raises(anthropic.BadRequestError, match="longer than the context"):
        client.messages.create(model="echo", max_tokens=9, messages=turns, extra_body={"num_ctx": 128})


def test_keep_alive_and_num_ctx_are_honoured(start: Start, echo_store: Any) -> None:
    server = start(echo_store)
    with connected(server) as client:
        client.messages.create(model="echo", max_tokens=1, messages=HI, extra_body={"keep_alive": -1, "num_ctx": 2048})
        (resident,) = server.resident().values()
        assert resident["context_length"] == 2048
        assert resident["expires_at"] > "2200"


async def test_the_asynchronous_client(echo: Server) -> None:
    async with anthropic.AsyncAnthropic(base_url=echo.url, api_key="none", max_retries=0) as client:
        async with client.messages.stream(model="echo", max_tokens=4, messages=HI) as stream:
            assert "".join([piece async for piece in stream.text_stream]) == WORDS
        beta = await client.beta.messages.create(model="echo", max_tokens=9, messages=[{"role": "user", "content": WORDS}])
    assert beta.usage.output_tokens == 9


def test_tokens_are_counted_as_the_prompt_that_is_sent_has_them(client: anthropic.Anthropic) -> None:
    body: dict[str, Any] = {
        "model": "echo",
        "system": [{"type": "text", "text": "Be brief."}],
        "messages": [*HI, {"role": "assistant", "content": "one"}, {"role": "user", "content": [{"type": "text", "text": "and two"}]}],
    }
    counted = client.messages.count_tokens(**body).input_tokens
    usage = client.messages.create(**body, max_tokens=1).usage
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    assert client.messages.count_tokens(model="echo", messages=HI).input_tokens < counted


def test_tokens_beyond_the_context_are_counted_too(client: anthropic.Anthropic) -> None:
    long: list[MessageParam] = [{"role": "user", "content": "word " * 9000}]
    assert client.messages.count_tokens(model="echo", messages=long).input_tokens > 9000
    with pytest.raises(anthropic.NotFoundError):
        client.messages.count_tokens(model="nobody", messages=HI)
    with pytest.raises(anthropic.BadRequestError, match="messages is required"):
        client.messages.count_tokens(model="echo", messages=[])


def test_a_field_that_the_api_does_not_have_is_named(echo: Server) -> None:
    body: dict[str, Any] = {"model": "echo", "max_tokens": 1, "messages": HI, "seed": 3, "metadata": {"user_id": "u"}}
    assert echo.post("/v1/messages", body).headers["x-ndani-ignored"] == "seed"
    body["stream"] = True
    assert echo.post("/v1/messages", body).headers["x-ndani-ignored"] == "seed"


def test_the_client_lists_the_models(client: anthropic.Anthropic) -> None:
    """They come in OpenAI's form, which holds what this client needs."""
    assert {model.id for model in client.models.list()} == {"echo:latest", "other:latest"}
    assert client.models.retrieve("echo").id == "echo"
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("nobody")
