"""OpenAI's routes over a real server with the echo engine: answers, streams, several choices, errors, models."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from conftest import Start
from openai_streams import events, folded_chat, folded_completion
from server import Server, until
from stores import put_echo

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def chat_body(*contents: str, **more: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": c} for c in contents or ("one two",)], "max_tokens": 4} | more


def completion_body(**more: Any) -> dict[str, Any]:
    return {"model": "echo", "prompt": "one two", "max_tokens": 4} | more


def whole(server: Server, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = server.post(path, body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    return dict(answer.json())


def streamed(server: Server, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = server.post(path, body | {"stream": True})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["transfer-encoding"] == "chunked"
    return events(answer.text)


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    assert answer.headers["content-type"].startswith("application/json"), answer.text
    error = answer.json()["error"]
    assert set(answer.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] is error["code"] is None
    return answer.status_code, error["type"], error["message"]


def test_a_chat(echo: Server) -> None:
    one = whole(echo, CHAT, chat_body(model="Echo:latest"))
    assert one["id"].startswith("chatcmpl-")
    assert (one["object"], one["model"]) == ("chat.completion", "Echo:latest")
    message = {"role": "assistant", "content": "one two one two", "refusal": None}
    assert one["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}]
    usage = one["usage"]
    assert usage["completion_tokens"] == 4
    assert usage["total_tokens"] == usage["prompt_tokens"] + 4
    assert usage["prompt_tokens"] > usage["prompt_tokens_details"]["cached_tokens"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 0}
    assert one["id"] != whole(echo, CHAT, chat_body())["id"]


def test_one_token_to_a_chunk(echo: Server) -> None:
    chunks = streamed(echo, CHAT, chat_body())
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["one", " two", " one", " two", None]
    assert "usage" not in chunks[-1]


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("tokens", [0, 1, 4])
def test_a_streamed_chat_folds_to_the_unstreamed_one(echo: Server, n: int, tokens: int) -> None:
    body = chat_body(max_tokens=tokens, n=n)
    folded = folded_chat(streamed(echo, CHAT, body | {"stream_options": {"include_usage": True}}))
    unstreamed = whole(echo, CHAT, body)
    for one in (folded, unstreamed):
        del one["usage"]["prompt_tokens_details"]  # what is in the cache changes
    assert folded == {key: value for key, value in unstreamed.items() if key not in ("id", "created")}
    assert len(folded["choices"]) == n
    assert folded["usage"]["completion_tokens"] == n * tokens


def test_completions(echo: Server) -> None:
    one = whole(echo, COMPLETIONS, completion_body())
    assert one["id"].startswith("cmpl-")
    assert one["object"] == "text_completion"
    assert one["choices"] == [{"text": "one two one two", "index": 0, "logprobs": None, "finish_reason": "length"}]
    several = completion_body(prompt=["one two", "red"], n=2, echo=True)
    texts = [choice["text"] for choice in whole(echo, COMPLETIONS, several)["choices"]]
    assert texts == ["one twoone two one two"] * 2 + ["redred red red red"] * 2
    stopped = whole(echo, COMPLETIONS, completion_body(prompt="one two three", max_tokens=9, stop="three"))
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert stopped["choices"][0]["text"].strip() == "one two"


@pytest.mark.parametrize("more", [{}, {"echo": True}, {"n": 3}, {"prompt": ["one two", "red"], "echo": True}])
def test_a_streamed_completion_folds_to_the_unstreamed_one(echo: Server, more: dict[str, Any]) -> None:
    body = completion_body(**more)
    folded = folded_completion(streamed(echo, COMPLETIONS, body | {"stream_options": {"include_usage": True}}))
    unstreamed = whole(echo, COMPLETIONS, body)
    for one in (folded, unstreamed):
        del one["usage"]["prompt_tokens_details"]
    assert folded == {key: value for key, value in unstreamed.items() if key not in ("id", "created")}


def test_ignored_fields_are_named_in_a_header(echo: Server) -> None:
    for body in (chat_body(frobnicate=1), chat_body(frobnicate=1, n=2), chat_body(frobnicate=1, stream=True, n=2)):
        assert echo.post(CHAT, body).headers["x-ndani-ignored"] == "frobnicate"
    assert "x-ndani-ignored" not in echo.post(CHAT, chat_body(user="me")).headers


def test_models(echo: Server) -> None:
    listed = echo.http.get("/v1/models").json()
    assert listed["object"] == "list"
    assert {model["id"] for model in listed["data"]} == {"echo:latest", "other:latest"}
    assert all(
        model | {"id": "", "created": 0} == {"id": "", "object": "model", "created": 0, "owned_by": "library"} for model in listed["data"]
    )
    one = echo.http.get("/v1/models/echo").json()
    assert one | {"created": 0} == {"id": "echo", "object": "model", "created": 0, "owned_by": "library"}
    assert refusal(echo.http.get("/v1/models/nope")) == (404, "invalid_request_error", "model 'nope:latest' not found")
    assert refusal(echo.http.get("/v1/models/a b"))[0] == 400


def test_no_models_are_an_empty_list_and_a_namespace_owns_its_models(start: Start, tmp_path: Path) -> None:
    server = start(tmp_path / "models")
    assert server.http.get("/v1/models").json() == {"object": "list", "data": []}
    put_echo(tmp_path / "models", "ns/tooly:v1")
    (one,) = server.http.get("/v1/models").json()["data"]
    assert (one["id"], one["owned_by"]) == ("ns/tooly:v1", "ns")
    assert server.http.get("/v1/models/ns/tooly:v1").json()["id"] == "ns/tooly:v1"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS])
def test_bodies_that_are_none(echo: Server, path: str) -> None:
    for content, sentence in (
        (b"", "missing request body"),
        (b'{"model":', "unexpected EOF"),
        (b"[]", "must be a JSON object"),
        (b"x", "invalid JSON"),
    ):
        status, kind, message = refusal(echo.http.post(path, content=content))
        assert (status, kind) == (400, "invalid_request_error")
        assert sentence in message
    status, kind, message = refusal(echo.post(path, {"model": 5}))
    assert (status, message) == (400, "model must be a string")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_errors_before_the_first_byte_have_their_status(echo: Server, stream: bool, n: int) -> None:
    more = {"stream": stream, "n": n}
    assert refusal(echo.post(CHAT, chat_body(model="nope", **more))) == (404, "not_found_error", "model 'nope' not found")
    assert refusal(echo.post(COMPLETIONS, completion_body(model="nope", **more)))[0] == 404
    assert refusal(echo.post(CHAT, chat_body(functions=[{"name": "f"}], **more)))[:2] == (400, "invalid_request_error")
    incapable = "registry.ollama.ai/library/echo:latest does not support tools"
    assert refusal(echo.post(CHAT, chat_body(tools=[TOOL], **more))) == (400, "invalid_request_error", incapable)
    assert refusal(echo.post(CHAT, chat_body(reasoning_effort="high", **more)))[2] == '"echo" does not support thinking'
    too_long = refusal(echo.post(CHAT, chat_body("word " * 2000, num_ctx=64, **more)))
    assert too_long[:2] == (400, "invalid_request_error")
    assert "longer than the context length" in too_long[2]


def test_a_prompt_is_shortened_only_where_that_is_asked_for(echo: Server) -> None:
    turns = [{"role": "user", "content": "word " * 40}, {"role": "assistant", "content": "ok"}, {"role": "user", "content": "red"}]
    body = chat_body(num_ctx=64) | {"messages": turns * 4}
    assert echo.post(CHAT, body).status_code == 400
    assert whole(echo, CHAT, body | {"truncate": True})["choices"][0]["message"]["content"].startswith("red")


def test_embeddings_that_fail(echo: Server) -> None:
    assert refusal(echo.post(EMBEDDINGS, {"input": "x"})) == (404, "not_found_error", "model '' not found")
    assert refusal(echo.post(EMBEDDINGS, {"model": "nope", "input": "x"}))[0] == 404
    assert refusal(echo.post(EMBEDDINGS, {"model": "echo", "input": "x"})) == (
        400, "invalid_request_error", '"echo:latest" does not support embeddings',
    )  # fmt: skip


def test_paths_and_methods_that_are_none(echo: Server) -> None:
    assert refusal(echo.http.get("/v1/nope"))[:2] == (404, "not_found_error")
    answer = echo.http.get(CHAT)
    assert refusal(answer)[:2] == (405, "api_error")
    assert answer.headers["allow"] == "POST"


def test_transcriptions_are_refused_after_the_file_was_read(echo: Server) -> None:
    answer = echo.http.post("/v1/audio/transcriptions", files={"file": ("a.wav", b"x" * 3_000_000)}, data={"model": "whisper-1"})
    status, kind, sentence = refusal(answer)
    assert (status, kind) == (400, "invalid_request_error")
    assert sentence.startswith("transcription is not supported")


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_that_fails_ends_in_an_error_event(start: Start, echo_store: Path, n: int) -> None:
    server = start(echo_store)
    answer = server.post(CHAT, chat_body("@crash=3 secret words", max_tokens=100, n=n, stream=True))
    *pieces, last, rest = answer.text.split("\n\n")
    assert answer.status_code == 200
    assert pieces
    assert rest == ""
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["type"] == "api_error"
    assert "secret" not in error["message"]
    assert refusal(server.post(CHAT, chat_body("@crash=3 secret words", max_tokens=100, n=n)))[:2] == (500, "api_error")


def test_a_client_that_leaves_cancels_every_choice(start: Start, echo_store: Path) -> None:
    server = start(echo_store)
    for stream in (True, False):
        with contextlib.closing(server.connect()) as line:
            content = json.dumps(chat_body("@delay=0.01 word", max_tokens=10_000, n=3, stream=stream)).encode()
            line.sendall(b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(content), content))
            until(lambda: server.busy() == 3, "all choices compute")
        until(lambda: server.busy() == 0, "no choice computes any more", at_rest=1.0)
    assert whole(server, CHAT, chat_body())["choices"][0]["message"]["content"] == "one two one two"
