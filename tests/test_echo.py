"""The echo engine over its socket, in its jail: the protocol that a client of any engine relies on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from ndani.engines import LaunchOptions
from ndani.engines.host_echo import EchoTokenizer
from ndani.runtime.folder import runtime_folder
from ndani.runtime.runner import Runner
from server import PATIENCE, stretched

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="starts a runner")]
Events = list[Any]


@contextlib.asynccontextmanager
async def running(**launch: Any) -> AsyncIterator[tuple[Runner, httpx.AsyncClient]]:
    with runtime_folder() as folder:
        runner = await Runner.spawn(LaunchOptions("echo", **launch), -1, folder)
        try:
            await asyncio.wait_for(runner.ready(), 20)
            transport = httpx.AsyncHTTPTransport(uds=runner.socket)
            async with httpx.AsyncClient(transport=transport, base_url="http://runner", timeout=60) as client:
                yield runner, client
        finally:
            await runner.stop()


async def stream(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Events:
    async with client.stream("POST", path, json={"stream": True, **body}) as reply:
        assert reply.headers["content-type"] == "text/event-stream"
        lines = [line async for line in reply.aiter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


async def busy(client: httpx.AsyncClient) -> int:
    return sum(slot["is_processing"] for slot in (await client.get("/slots")).json())


async def reached(client: httpx.AsyncClient, count: int) -> None:
    """Wait until so many slots compute; never more."""
    async with asyncio.timeout(PATIENCE):
        while (now := await busy(client)) != count:
            assert now < count
            await asyncio.sleep(0.01)


async def idle_within(client: httpx.AsyncClient, at_rest: float) -> bool:
    end = time.monotonic() + stretched(at_rest)
    while time.monotonic() < end:
        if await busy(client) == 0:
            return True
        await asyncio.sleep(0.01)
    return False


async def test_completion_as_a_stream() -> None:
    async with running() as (_, client):
        body = {"prompt": "one two three", "n_predict": 5, "return_progress": True, "return_tokens": True}
        events = await stream(client, "/completion", body)
    progress = [event["prompt_progress"] for event in events if "prompt_progress" in event]
    assert [(p["total"], p["cache"], p["processed"]) for p in progress] == [(3, 0, 0), (3, 0, 3)]
    words = [event for event in events if not event["stop"] and "prompt_progress" not in event]
    assert "".join(event["content"] for event in words) == "one two three one two"
    assert [event["tokens_predicted"] for event in words] == [1, 2, 3, 4, 5]
    assert all(len(event["tokens"]) == 1 for event in words)
    last = events[-1]
    assert (last["stop"], last["stop_type"], last["tokens_predicted"], last["tokens_evaluated"]) == (True, "limit", 5, 3)
    assert (last["timings"]["prompt_n"], last["timings"]["predicted_n"]) == (3, 5)
    assert last["timings"]["predicted_ms"] > 0


async def test_completion_at_once_and_its_ends() -> None:
    async with running() as (_, client):

        async def ask(**body: Any) -> tuple[str, str]:
            reply = (await client.post("/completion", json=body)).json()
            return reply["content"], reply["stop_type"]

        assert await ask(prompt="a b c") == ("a b c", "eos")
        assert await ask(prompt="a b c", n_predict=0) == ("a", "limit")  # as llama.cpp does
        ids = (await client.post("/tokenize", json={"content": "a b"})).json()["tokens"]
        assert await ask(prompt=ids) == ("a b", "eos")
        assert await ask(prompt="<|user|>\nfirst\n<|end|>\n<|user|>\nlast words\n<|end|>\n<|assistant|>") == ("last words", "eos")


async def test_stop_words_end_an_answer() -> None:
    async with running() as (_, client):
        reply = (await client.post("/completion", json={"prompt": "alpha beta gamma", "n_predict": 9, "stop": ["ta"]})).json()
    assert (reply["content"], reply["stop_type"], reply["stopping_word"]) == ("alpha be", "word", "ta")


async def test_chat() -> None:
    async with running() as (_, client):
        messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "say this"}]
        body = {"messages": messages, "max_tokens": 3, "stream_options": {"include_usage": True}}
        events = await stream(client, "/v1/chat/completions", body)
        whole = (await client.post("/v1/chat/completions", json={"messages": messages})).json()
    assert events[-1] == "[DONE]"
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    deltas = [event["choices"][0]["delta"].get("content") or "" for event in events[:-1] if event["choices"]]
    assert "".join(deltas) == "say this say"
    assert [event["choices"][0]["finish_reason"] for event in events[:-1] if event["choices"]][-1] == "length"
    usage = events[-2]["usage"]
    assert (events[-2]["choices"], usage["completion_tokens"], usage["total_tokens"]) == ([], 3, usage["prompt_tokens"] + 3)
    assert events[-2]["timings"]["predicted_n"] == 3
    assert whole["choices"] == [{"finish_reason": "stop", "index": 0, "message": {"role": "assistant", "content": "say this"}}]


async def test_template_and_tokens_round_trip() -> None:
    text = "short, andsomethinglonger  with  spaces\nand ünïcödé\n "
    async with running() as (_, client):
        tokens = (await client.post("/tokenize", json={"content": text})).json()["tokens"]
        again = (await client.post("/tokenize", json={"content": text})).json()["tokens"]
        back = (await client.post("/detokenize", json={"tokens": tokens})).json()["content"]
        prompt = (await client.post("/apply-template", json={"messages": [{"role": "user", "content": "hi"}]})).json()["prompt"]
        health = await client.get("/health")
    assert tokens == again
    assert back == text
    assert max(tokens) < 2**53
    assert prompt == "<|user|>\nhi\n<|end|>\n<|assistant|>"
    assert health.json() == {"status": "ok"}


def test_ids_are_the_same_in_every_process() -> None:
    assert EchoTokenizer().encode("one twotwotwo") == EchoTokenizer().encode("one twotwotwo")
    assert EchoTokenizer().decode(EchoTokenizer().encode("one two")) == "one two"


async def test_slots_are_a_limit_and_the_rest_waits() -> None:
    async with running(slots=2) as (_, client):
        tasks = [asyncio.create_task(stream(client, "/completion", {"prompt": "@delay=0.1 w", "n_predict": 4})) for _ in range(4)]
        await reached(client, 2)
        answers = await asyncio.gather(*tasks)
        assert all(answer[-1]["tokens_predicted"] == 4 for answer in answers)
        assert await idle_within(client, 0.5)


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("prompt", ["@delay=0.2 word", "@hang word", "@prefill=5 word"])
async def test_a_client_that_leaves_frees_the_slot(prompt: str, streamed: bool) -> None:
    async with running(slots=1) as (runner, client):
        _, writer = await asyncio.open_unix_connection(runner.socket)
        body = json.dumps({"prompt": prompt, "n_predict": 1000, "stream": streamed}).encode()
        writer.write(b"POST /completion HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await reached(client, 1)
        writer.close()
        assert await idle_within(client, 0.5)


async def test_a_waiting_client_that_leaves_takes_no_slot() -> None:
    async with running(slots=1) as (runner, client):
        first = asyncio.create_task(stream(client, "/completion", {"prompt": "@delay=0.05 w", "n_predict": 8}))
        await reached(client, 1)
        _, writer = await asyncio.open_unix_connection(runner.socket)
        body = b'{"prompt": "@hang w", "stream": true}'
        writer.write(b"POST /completion HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await asyncio.sleep(0.05)
        writer.close()
        await first
        assert await idle_within(client, 0.5)


async def test_a_crash_kills_the_process_in_mid_stream() -> None:
    async with running() as (runner, client):
        seen = []
        with pytest.raises(httpx.RemoteProtocolError):
            async with client.stream("POST", "/completion", json={"prompt": "@crash=2 a b c", "stream": True, "n_predict": 9}) as reply:
                async for line in reply.aiter_lines():
                    seen += [line] if line else []
        assert len(seen) == 2
        async with asyncio.timeout(20):
            await runner.exited.wait()
        assert runner.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("path", "raw", "status", "kind"),
    [
        ("/nowhere", b"{}", 404, "not_found_error"),
        ("/completion", b"{broken", 400, "invalid_request_error"),
        ("/completion", b"[]", 400, "invalid_request_error"),
        ("/completion", b"{}", 400, "invalid_request_error"),
        ("/v1/chat/completions", b"{}", 400, "invalid_request_error"),
    ],
)
async def test_refusals(path: str, raw: bytes, status: int, kind: str) -> None:
    async with running() as (_, client):
        reply = await client.post(path, content=raw)
        assert (reply.status_code, reply.json()["error"]["type"], reply.json()["error"]["code"]) == (status, kind, status)
        assert (await client.get("/health")).status_code == 200  # on the same connection


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_prompt_longer_than_the_context(streamed: bool) -> None:
    async with running(num_ctx=8) as (_, client):
        reply = await client.post("/completion", json={"prompt": "w " * 9, "stream": streamed})
        long = (await client.post("/completion", json={"prompt": "a b c", "n_predict": 100})).json()
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["type"], error["n_prompt_tokens"], error["n_ctx"]) == ("exceed_context_size_error", 10, 8)
    assert (long["stop_type"], long["tokens_predicted"]) == ("limit", 100)


async def test_the_prefix_cache_counts() -> None:
    async with running(slots=1) as (_, client):
        await client.post("/completion", json={"prompt": "a b c d"})
        again = (await client.post("/completion", json={"prompt": "a b c x"})).json()
    assert (again["timings"]["cache_n"], again["timings"]["prompt_n"]) == (3, 1)
