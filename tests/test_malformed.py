"""Malformed bodies, names and options over every route: the exact status, one clear sentence, and a server that stays up."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server import Server, serving
from stores import gguf, put_echo

SECRET = "SECRET-WORDS"
CHAT, GENERATE, SHOW, COPY, DELETE, PULL, PUSH = (f"/api/{verb}" for verb in ("chat", "generate", "show", "copy", "delete", "pull", "push"))
EMBED, EMBEDDINGS, CREATE = (f"/api/{verb}" for verb in ("embed", "embeddings", "create"))
HI = [{"role": "user", "content": SECRET}]
DEEP = b"[" * 100_000 + b"]" * 100_000


def chat_body(**more: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": HI, "stream": False, "options": {"num_predict": 1}} | more


def generate_body(**more: Any) -> dict[str, Any]:
    return {"model": "echo", "prompt": SECRET, "stream": False, "options": {"num_predict": 1}} | more


def option(**said: Any) -> dict[str, Any]:
    return chat_body(options=said)


CROOKED = "the model crooked:latest has a template that cannot be used (the template is wrong at line 2, column "

TOOLS = [{"type": "function", "function": {"name": "f"}}]
NAMELESS = {"role": "assistant", "tool_calls": [{"function": {}}]}

#: Path, body (bytes as they are, else as JSON), status, and how the sentence begins. The method is POST, or DELETE for deletions.
TABLE: list[tuple[str, Any, int, str]] = [
    # Bytes that are no JSON object.
    *[(path, b"", 400, "missing request body") for path in (CHAT, GENERATE, SHOW, COPY, DELETE, PULL, PUSH)],
    (CHAT, b"   \n", 400, "missing request body"),
    *[(path, b"x" + SECRET.encode(), 400, "invalid JSON: ") for path in (CHAT, GENERATE, SHOW, COPY, DELETE, PULL, PUSH)],
    (CHAT, b'{"model": "echo"', 400, "unexpected EOF"),
    (CHAT, b'{"model": "echo", "messages": [{"role": "user", "content": "SECRET-WORDS', 400, "unexpected EOF"),
    (CHAT, b"[]", 400, "the request body must be a JSON object"),
    (GENERATE, b'"SECRET-WORDS"', 400, "the request body must be a JSON object"),
    (SHOW, b"1", 400, "the request body must be a JSON object"),
    (CHAT, b"{'model': 'echo'}", 400, "invalid JSON: "),
    (CHAT, b'{"model": "echo",}', 400, "invalid JSON: "),
    (CHAT, b'{"model": NaN}', 400, "invalid JSON: "),
    (CHAT, b'{"model": "\xff\xfe"}', 400, "invalid model name"),
    (CHAT, b'{"model": "\xed\xa0\x80"}', 400, "invalid model name"),
    (CHAT, b"\xff\xfe{\x00}\x00", 400, "invalid JSON: "),
    (CHAT, b'{"model": "\\ud800"}', 400, "invalid model name"),
    (CHAT, b'{"model": "echo", "messages": "\\ud83d"', 400, "unexpected EOF"),
    (CHAT, b"\x1f\x8b\x08\x00" + b"\x00" * 50, 400, "invalid JSON: "),
    (CHAT, DEEP, 400, "invalid JSON: "),
    (CHAT, b'{"messages": ' + DEEP + b"}", 400, "invalid JSON: "),
    (CHAT, b'{"model": "echo", "options": {"seed": ' + b"9" * 5000 + b"}}", 400, "invalid JSON: "),
    (CHAT, b'{"model": "echo", "options": {"temperature": 1e999}}', 400, "invalid JSON: "),
    # Names.
    (CHAT, {}, 400, "model is required"),
    (CHAT, None, 400, "model is required"),
    (CHAT, chat_body(model=""), 400, "model is required"),
    (CHAT, chat_body(model="  "), 400, "model is required"),
    (GENERATE, {}, 404, "model '' not found"),
    (SHOW, {}, 400, "model is required"),
    (DELETE, {}, 400, "model is required"),
    (PULL, {}, 400, "invalid model name"),
    # A name that would have to be mended: a scheme belongs in front of a host, and a blank to no name.
    *[(path, {"model": "http://echo", "stream": False}, 400, "invalid model name")
      for path in (CHAT, GENERATE, SHOW, EMBED, EMBEDDINGS, CREATE, PULL, PUSH)],
    (CREATE, {"model": "x", "from": "http://echo"}, 400, "invalid model name"),
    (COPY, {"source": "http://echo", "destination": "x"}, 400, 'source "http://echo" is invalid'),
    (COPY, {"source": "echo", "destination": "https://library/x"}, 400, 'destination "https://library/x" is invalid'),
    (COPY, {"source": " echo", "destination": "x"}, 400, 'source " echo" is invalid'),
    (COPY, {"source": "echo", "destination": "x "}, 400, 'destination "x " is invalid'),
    *[(path, {"model": " echo", "from": "echo"}, 400, "invalid model name") for path in (CREATE, PUSH)],
    *[(DELETE, {"model": name}, 400, f'name "{name}" is invalid') for name in
      ("http://echo", "https://registry.ollama.ai/library/echo", " echo", "echo ", "//echo", "/echo", "echo:", " ")],
    (CHAT, chat_body(model="gpt:Cloud"), 403, "ollama cloud is disabled: remote model is unavailable"),
    (CHAT, chat_body(model=7), 400, "model must be a string"),
    (GENERATE, generate_body(model=["echo"]), 400, "model must be a string"),
    (SHOW, {"name": {}}, 400, "name must be a string"),
    (DELETE, {"model": True}, 400, "model must be a string"),
    (PUSH, {}, 400, "model is required"),
    (PUSH, {"model": 1.5}, 400, "model must be a string"),
    (PUSH, {"model": "../x"}, 400, "invalid model name"),
    (PUSH, {"model": "nope", "stream": False}, 404, "model 'nope' not found"),
    (PUSH, {"model": "127.0.0.1:9/x/y", "insecure": True}, 404, "model '127.0.0.1:9/x/y' not found"),
    (PUSH, {"model": "echo", "insecure": 1}, 400, "insecure must be true or false"),
    (PULL, {"model": 1.5}, 400, "model must be a string"),
    *[(CHAT, chat_body(model=name), 400, "invalid model name")
      for name in ("../../etc/passwd", "..", "a/b/c/d", "/etc/passwd", "a\0b", "x" * 400)],
    *[(GENERATE, generate_body(model=name), 400, "invalid model name")
      for name in ("..\\..\\x", "echo:", ":x", "e cho", "écho", "a:b:c", "~root")],
    *[(SHOW, {"model": name}, 400, "invalid model name") for name in ("a/../b", "e\r\nX-Injected: 1", "h" * 351 + "/a/b")],
    *[(PULL, {"model": name}, 400, "invalid model name") for name in ("../x", "file:///etc/passwd", "x" * 400, "a\0")],
    (DELETE, {"model": "../echo"}, 400, 'name "../echo" is invalid'),
    (COPY, {"source": "echo", "destination": "../x"}, 400, 'destination "../x" is invalid'),
    (COPY, {"source": "a\0b", "destination": "x"}, 400, "source "),
    (COPY, {"source": "echo"}, 400, 'destination "" is invalid'),
    (COPY, {"destination": "x"}, 400, 'source "" is invalid'),
    (COPY, {"source": "echo", "destination": 5}, 400, "destination must be a string"),
    (COPY, {"source": [], "destination": "x"}, 400, "source must be a string"),
    (COPY, {"source": "nobody", "destination": "x"}, 404, 'model "nobody" not found'),
    (CHAT, chat_body(model="nobody"), 404, "model 'nobody' not found"),
    (CHAT, chat_body(model="nobody", stream=True), 404, "model 'nobody' not found"),
    (GENERATE, generate_body(model="nobody:1"), 404, "model 'nobody:1' not found"),
    (SHOW, {"model": "nobody"}, 404, "model 'nobody:latest' not found"),
    (DELETE, {"model": "nobody"}, 404, "model 'nobody' not found"),
    (CHAT, chat_body(model="gpt:cloud"), 403, "ollama cloud is disabled: remote model is unavailable"),
    (SHOW, {"model": "gpt:20b-cloud"}, 403, "ollama cloud is disabled: remote model details are unavailable"),
    # Wrong types of every field.
    (CHAT, chat_body(messages="hi"), 400, "messages must be an array"),
    (CHAT, chat_body(messages={"role": "user"}), 400, "messages must be an array"),
    (CHAT, chat_body(messages=["hi"]), 400, "messages[0] must be an object"),
    (CHAT, chat_body(messages=[*HI, None]), 400, "messages[1] must be an object"),
    (CHAT, chat_body(messages=[{"role": 1, "content": "x"}]), 400, "messages[0].role must be a string"),
    (CHAT, chat_body(messages=[{"role": ["user"], "content": "x"}]), 400, "messages[0].role must be a string"),
    (CHAT, chat_body(messages=[{"role": "user", "content": "x", "images": "aGk="}]), 400, "messages[0].images must be an array"),
    (CHAT, chat_body(messages=[*HI, {"role": "user", "tool_calls": {"a": 1}}]), 400, "messages[1].tool_calls must be an array"),
    (CHAT, chat_body(messages=[{"role": "user", "content": 5}]), 400, "messages[0].content must be a string"),
    (CHAT, chat_body(messages=[{"role": "user", "content": [{"type": "text", "text": SECRET}]}]), 400,
     "messages[0].content must be a string"),
    (CHAT, chat_body(stream="yes"), 400, "stream must be true or false"),
    (CHAT, chat_body(stream=1), 400, "stream must be true or false"),
    (PULL, {"model": "echo", "stream": "no"}, 400, "stream must be true or false"),
    (GENERATE, generate_body(prompt=["SECRET-WORDS"]), 400, "prompt must be a string"),
    (GENERATE, generate_body(prompt={"a": 1}), 400, "prompt must be a string"),
    (GENERATE, generate_body(system=5), 400, "system must be a string"),
    (GENERATE, generate_body(raw="true"), 400, "raw must be true or false"),
    (GENERATE, generate_body(truncate=0), 400, "truncate must be true or false"),
    (CHAT, chat_body(shift=None, truncate="x"), 400, "truncate must be true or false"),
    (CHAT, chat_body(shift=[]), 400, "shift must be true or false"),
    (SHOW, {"model": "echo", "verbose": "x"}, 400, "verbose must be true or false"),
    (GENERATE, generate_body(context="1,2"), 400, "context must be an array of token ids"),
    (GENERATE, generate_body(context=[1, -2]), 400, "context must be an array of token ids"),
    (GENERATE, generate_body(context=[1.5]), 400, "context must be an array of token ids"),
    (GENERATE, generate_body(context=[True]), 400, "context must be an array of token ids"),
    (GENERATE, generate_body(context=[2**63]), 400, "context must be an array of token ids"),
    (GENERATE, generate_body(raw=True, system="x"), 400, "raw mode does not support template, system, or context"),
    (GENERATE, generate_body(raw=True, context=[1]), 400, "raw mode does not support template, system, or context"),
    # keep_alive.
    (CHAT, chat_body(keep_alive="soon"), 400, 'time: invalid duration "soon"'),
    (CHAT, chat_body(keep_alive="5 minutes"), 400, "time: invalid duration"),
    (CHAT, chat_body(keep_alive=""), 400, "time: invalid duration"),
    (CHAT, chat_body(keep_alive=True), 400, "keep_alive must be a number of seconds or a duration"),
    (GENERATE, generate_body(keep_alive=[5]), 400, "keep_alive must be a number of seconds or a duration"),
    (GENERATE, generate_body(keep_alive={}), 400, "keep_alive must be a number of seconds or a duration"),
    # Options.
    (CHAT, chat_body(options=[]), 400, "options must be an object"),
    (CHAT, chat_body(options="x"), 400, "options must be an object"),
    (CHAT, option(num_ctx="4096"), 400, 'option "num_ctx" must be of type integer'),
    (CHAT, option(num_ctx=-1), 400, 'option "num_ctx" must be between 0 and'),
    (CHAT, option(num_ctx=1e300), 400, 'option "num_ctx" must be between 0 and'),
    (CHAT, option(num_predict="x"), 400, 'option "num_predict" must be of type integer'),
    (CHAT, option(num_predict=2**40), 400, 'option "num_predict" must be between'),
    (CHAT, option(seed="x"), 400, 'option "seed" must be of type integer'),
    (CHAT, option(top_k=[]), 400, 'option "top_k" must be of type integer'),
    (CHAT, option(num_batch=0), 400, 'option "num_batch" must be between 1 and'),
    (CHAT, option(num_thread=10**6), 400, 'option "num_thread" must be between -1 and 512'),
    (CHAT, option(num_thread={}), 400, 'option "num_thread" must be of type integer'),
    (CHAT, option(num_gpu=True), 400, 'option "num_gpu" must be of type integer'),
    (CHAT, option(temperature="hot"), 400, 'option "temperature" must be of type float32'),
    (CHAT, option(temperature=-1), 400, 'option "temperature" must be between'),
    (CHAT, option(top_p=2), 400, 'option "top_p" must be between 0 and 1'),
    (CHAT, option(repeat_penalty=0), 400, 'option "repeat_penalty" must be between'),
    (CHAT, option(use_mmap="yes"), 400, 'option "use_mmap" must be of type boolean'),
    (CHAT, option(stop="x"), 400, 'option "stop" must be of type array'),
    (CHAT, option(stop=[1]), 400, 'option "stop" must be of an array of strings'),
    # What a later version brings.
    (CHAT, chat_body(tools={}), 400, "tools must be an array"),
    (CHAT, chat_body(tools=TOOLS), 400, "registry.ollama.ai/library/echo:latest does not support tools"),
    (CHAT, chat_body(think=True), 400, '"echo" does not support thinking'),
    (CHAT, chat_body(think="high"), 400, '"echo" does not support thinking'),
    (CHAT, chat_body(think="hard"), 400, "invalid think value"),
    (GENERATE, generate_body(think=3), 400, "think must be a boolean or string"),
    (CHAT, chat_body(format="json"), 400, "format is not in this version"),
    (GENERATE, generate_body(format={"type": "object"}), 400, "format is not in this version"),
    (CHAT, chat_body(format=7), 400, "invalid format"),
    (CHAT, chat_body(regex="a", grammar="b"), 400, "format, grammar and regex exclude each other"),
    (CHAT, chat_body(regex=7), 400, "regex must be a string"),
    (CHAT, chat_body(tools=[{"type": "function"}]), 400, "tools[0].function must be an object with a name"),
    (CHAT, chat_body(tools=[{"type": "other"}]), 400, "tools[0].type must be function"),
    (CHAT, chat_body(tool_choice="must"), 400, "tool_choice must be auto, none, required"),
    (GENERATE, generate_body(images=["%"]), 400, "images[0] must be base64"),
    (GENERATE, generate_body(images="aGk="), 400, "images must be an array"),
    (GENERATE, generate_body(images=["aGk="]), 400, '"echo" does not support images'),
    (CHAT, chat_body(messages=[{"role": "user", "content": "x", "images": ["aGk="]}]), 400, '"echo" does not support images'),
    (CHAT, chat_body(messages=[NAMELESS]), 400, "messages[0].tool_calls[0].function must have a name"),
    (GENERATE, generate_body(suffix="x"), 400, "registry.ollama.ai/library/echo:latest does not support insert"),
    (GENERATE, generate_body(suffix="x", template="{{ .Prompt }}"), 400, "registry.ollama.ai/library/echo:latest does not support insert"),
    (GENERATE, generate_body(suffix=1), 400, "suffix must be a string"),
    (GENERATE, generate_body(template="{{ .Prompt"), 400, "the template is wrong at line 1, column 1: this action is not closed"),
    (GENERATE, generate_body(template="{{ range .Messages }}{{ .Role"), 400,
     "the template is wrong at line 1, column 22: this action is not closed"),
    (GENERATE, generate_body(template="{{ nobody }}"), 400, "the template is wrong at line 1, column "),
    (GENERATE, generate_body(template="{{ index .Messages 9 }}"), 400, "the template is wrong at line 1, column "),
    (GENERATE, generate_body(template=5), 400, "template must be a string"),
    (GENERATE, generate_body(raw=True, template="x"), 400, "raw mode does not support template, system, or context"),
    (GENERATE, generate_body(model="crooked"), 400, CROOKED),
    (CHAT, chat_body(model="crooked"), 400, CROOKED),
    (CHAT, chat_body(logprobs=True), 400, "logprobs are not in this version"),
    (CHAT, chat_body(logprobs="x"), 400, "logprobs must be true or false"),
    (CHAT, chat_body(top_logprobs=3), 400, "logprobs are not in this version"),
    (CHAT, chat_body(top_logprobs=21), 400, "top_logprobs must be between 0 and 20"),
    (CHAT, chat_body(top_logprobs=-1), 400, "top_logprobs must be between 0 and 20"),
    (GENERATE, generate_body(_debug_render_only="yes"), 400, "_debug_render_only must be true or false"),
    (SHOW, {"model": "echo", "system": 1}, 400, "system must be a string"),
    (SHOW, {"model": "echo", "template": ["x"]}, 400, "template must be a string"),
    (SHOW, {"model": "echo", "options": 5}, 400, "options must be an object"),
    (PULL, {"model": "echo", "insecure": "x"}, 400, "insecure must be true or false"),
    # A model that the store cannot give.
    (CHAT, chat_body(model="embeds"), 400, '"embeds" does not support chat'),
    (GENERATE, generate_body(model="embeds"), 400, '"embeds" does not support generate'),
    (CHAT, chat_body(model="hot"), 400,
     'the model hot:latest has a PARAMETER that is wrong (option "temperature" must be of type float32)'),
    (GENERATE, generate_body(model="hot"), 400, "the model hot:latest has a PARAMETER that is wrong"),
    (CHAT, chat_body(model="sees"), 400, "models with a projector are not in this version"),
    (PULL, {"model": "127.0.0.1:9/x/y", "stream": False}, 500, "pull model manifest: Get \"https://127.0.0.1:9/v2/x/y/"),
]  # fmt: skip

#: Words that show a machine's inside: traces, paths, the engine's own JSON.
INSIDE = re.compile(r"Traceback|File \"|Error\(|0x[0-9a-f]{6}|/(usr|home|root|tmp|work|var|etc)/(?!passwd)|\.py\b|msgspec|\{\"")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("malformed") / "models"
    put_echo(store, "echo")
    put_echo(store, "embeds", gguf("embeds", **{"llama.pooling_type": 1}))
    put_echo(store, "hot", params={"temperature": "hot"})
    put_echo(store, "crooked", template="{{ .System }}\n{{ end }}")
    put_echo(store, "sees", projector="bytes of a projector")
    with serving(store.parent, store) as started:
        yield started


def send_raw(server: Server, path: str, body: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return server.http.request("DELETE" if path == DELETE else "POST", path, content=content)


def judge(said: str, begins: str) -> None:
    """One clear sentence that shows nothing of a prompt or of this machine."""
    assert said.startswith(begins)
    assert said.strip()
    assert "\n" not in said
    assert len(said) < 600
    assert SECRET not in said
    assert not INSIDE.search(said)
    assert not re.search(r"[.!?] +[A-Z]", said), "one sentence, not two"


@pytest.mark.parametrize(("path", "body", "status", "begins"), TABLE, ids=[f"{n}-{row[0][5:]}" for n, row in enumerate(TABLE)])
def test_the_right_status_and_one_clear_sentence(server: Server, path: str, body: Any, status: int, begins: str) -> None:
    answer = send_raw(server, path, body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert list(answer.json()) == ["error"]
    judge(answer.json()["error"], begins)


def test_the_table_is_long_enough() -> None:
    assert len(TABLE) >= 50
    assert {row[0] for row in TABLE} >= {CHAT, GENERATE, SHOW, COPY, DELETE, PULL, PUSH}


@pytest.mark.parametrize("path", [CHAT, GENERATE, SHOW, COPY, DELETE, PULL, PUSH])
def test_the_wrong_method_is_405_in_plain_words(server: Server, path: str) -> None:
    for method in ("GET", "PUT", "PATCH"):
        answer = server.http.request(method, path)
        assert (answer.status_code, answer.text, answer.headers["content-type"]) == (
            405,
            "405 method not allowed",
            "text/plain; charset=utf-8",
        )
        assert answer.headers["allow"] == ("DELETE" if path == DELETE else "POST")
    assert server.post("/api/tags").status_code == server.http.delete("/").status_code == 405


@pytest.mark.parametrize(
    "path", ["/nope", "/api", "/api/nope", "/api/chat/x", "//api/nope", "/API/chat", "/api/%2e%2e/tags", "/api/tags%00", "/%ff"]
)
def test_an_unknown_path_is_404_in_plain_words(server: Server, path: str) -> None:
    answer = server.http.post(path, json={})
    assert (answer.status_code, answer.text) == (404, "404 page not found")


#: What looks wrong and is fine, and what is wrong in a way that only costs the client its own wish.
FINE: list[tuple[str, Any]] = [
    (GENERATE, b'{"model":"echo","prompt":"x","stream":false,"options":{"num_predict":1},"unknown":{"a":[1]}}'),
    (GENERATE, b'\n {"model":"echo","prompt":"x","stream":false,"options":{"num_predict":1}}\n\n'),
    (CHAT, chat_body(keep_alive=1e300)),
    (CHAT, chat_body(keep_alive="9" * 400)),
    (CHAT, chat_body(keep_alive="1000000h")),
    (CHAT, chat_body(keep_alive=10**18)),
    (CHAT, chat_body(keep_alive=-(10**300))),
    (CHAT, chat_body(messages=[{"ROLE": "USER", "Content": None}])),
    (CHAT, chat_body(messages=[{}])),
    *[(CHAT, chat_body(messages=[{"role": role, "content": "x"}])) for role in ("SECRET-WORDS", "developer", "document 2", "", None)],
    (CHAT, chat_body(messages=[{"role": "user", "content": "\0\ud83d\ude00\u202e"}])),
    (GENERATE, generate_body(prompt="\0" * 1000)),
    (CHAT, option(num_predict=1, num_ctx=0)),
    (CHAT, option(num_predict=1, num_keep=2**31 - 1)),
    (CHAT, option(num_predict=1, stop=[""] * 1000)),
    (CHAT, option(num_predict=1, seed=2**64 - 1)),
    (CHAT, option(num_predict=1.9, top_k=2.5)),
]


@pytest.mark.parametrize("number", range(len(FINE)))
def test_what_is_only_odd_is_answered_and_the_listing_still_works(server: Server, number: int) -> None:
    answer = send_raw(server, *FINE[number])
    assert answer.status_code == 200, answer.text
    listing = server.http.get("/api/ps")
    assert listing.status_code == 200, listing.text
    assert re.match(r"\d{4}-\d\d-\d\dT", listing.json()["models"][0]["expires_at"])


#: Bytes that are no HTTP, or not quite.
RAW = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100,
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 2_000_000 + b"\r\n\r\n",
    b"\0" * 5000,
]


@pytest.mark.parametrize("number", range(len(RAW)))
def test_bytes_that_are_no_request_cost_one_connection(server: Server, number: int) -> None:
    with server.connect() as line:
        line.settimeout(60)
        try:
            line.sendall(RAW[number])
            received = line.recv(65536)
        except (ConnectionResetError, BrokenPipeError):
            received = b""
    assert not received or received.startswith(b"HTTP/1.1 4") or number == 2, received[:200]
    assert b"Traceback" not in received
    assert server.http.get("/").status_code == 200


def test_after_all_of_them_the_server_answers_and_met_no_fault_of_its_own(server: Server) -> None:
    assert server.process.poll() is None
    assert server.ask(CHAT, chat_body(messages=[{"role": "user", "content": "still here"}]))["message"]["content"] == "still"
    assert "fault of its own" not in server.log
    assert "Traceback" not in server.log
    assert SECRET not in server.log
    assert [m["name"] for m in server.http.get("/api/tags").json()["models"]].count("echo:latest") == 1
