"""The official `ollama` package, unmodified, sync and async, against a server with the real model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest

from conftest import Start
from server import Server, serving
from stores import gguf, link, put_echo

pytestmark = pytest.mark.weights

FEW = {"num_predict": 8, "temperature": 0}
HI = [{"role": "user", "content": "What is the capital of France?"}]
CAPITAL = "The capital of France is"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("client")
    link(models, folder / "models", "smollm2")
    put_echo(folder / "models", "echo")
    with serving(folder, folder / "models") as started:
        yield started


@pytest.fixture
def client(server: Server) -> Iterator[ollama.Client]:
    found = ollama.Client(host=server.url, trust_env=False)
    yield found
    found._client.close()


@pytest.fixture
async def aclient(server: Server) -> AsyncIterator[ollama.AsyncClient]:
    found = ollama.AsyncClient(host=server.url, trust_env=False)
    yield found
    await found._client.aclose()


def test_list_show_and_ps(client: ollama.Client) -> None:
    names = {model.model for model in client.list().models}
    assert names == {"smollm2:135m", "smollm2:latest", "echo:latest"}
    one = client.show("smollm2:135m")
    assert one.details is not None
    assert one.details.family == "llama"
    assert one.details.parameter_size == "134.52M"
    assert one.modelinfo is not None
    assert one.modelinfo["general.architecture"] == "llama"
    assert one.capabilities == ["completion", "tools"]
    client.generate("smollm2")
    (loaded,) = [m for m in client.ps().models if m.name == "smollm2:latest"]
    assert loaded.context_length == 4096
    assert loaded.expires_at is not None
    assert loaded.size


def test_generate_and_chat_whole(client: ollama.Client) -> None:
    answer = client.generate("smollm2", CAPITAL, options=FEW)
    assert answer.done
    assert answer.response
    assert answer.context
    assert answer.done_reason in ("stop", "length")
    assert answer.eval_count
    assert answer.total_duration
    assert "Paris" in client.generate("smollm2", CAPITAL, raw=True, options=FEW).response
    chat = client.chat("smollm2", HI, options=FEW)
    assert chat.message.role == "assistant"
    assert chat.message.content
    assert chat.prompt_eval_count


def test_generate_and_chat_streamed(client: ollama.Client) -> None:
    pieces = list(client.chat("smollm2", HI, options=FEW, stream=True))
    assert len(pieces) > 3
    assert pieces[-1].done
    assert not any(p.done for p in pieces[:-1])
    assert "".join(p.message.content or "" for p in pieces) == client.chat("smollm2", HI, options=FEW).message.content
    words = list(client.generate("smollm2", CAPITAL, options=FEW, stream=True))
    assert words[-1].done
    assert words[-1].eval_count == 8
    assert words[-1].context


def test_a_conversation_through_context(client: ollama.Client) -> None:
    first = client.generate("smollm2", "My name is Zebulon.", options=FEW)
    second = client.generate(
        "smollm2", "What is my name?", context=list(first.context or []), options={"num_predict": 20, "temperature": 0}
    )
    assert "Zebulon" in second.response


def test_pull_of_an_installed_model_has_progress_and_success(client: ollama.Client) -> None:
    steps = list(client.pull("smollm2:135m", stream=True))
    assert steps[-1].status == "success"
    assert steps[0].status == "pulling manifest"
    ends = {step.digest: step for step in steps if step.total}
    assert ends
    assert all(d and d.startswith("sha256:") and end.completed == end.total for d, end in ends.items()), "all of it is here"
    assert client.pull("smollm2:135m").status == "success"


def test_copy_and_delete(client: ollama.Client) -> None:
    assert client.copy("smollm2", "me/twin:1").status == "success"
    assert client.chat("me/twin:1", HI, options={"num_predict": 1}).done
    assert client.delete("me/twin:1").status == "success"
    assert "me/twin:1" not in {m.model for m in client.list().models}


def test_create_of_a_model_and_of_a_file(client: ollama.Client, tmp_path: Path) -> None:
    template = "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
    steps = list(client.create("me/pirate", from_="smollm2", system="You are a pirate.", template=template, stream=True))
    assert steps[-1].status == "success"
    shown = client.show("me/pirate")
    assert shown.template == template
    assert "SYSTEM You are a pirate." in (shown.modelfile or "")
    assert client.chat("me/pirate", HI, options=FEW).message.content
    (tmp_path / "m.gguf").write_bytes(gguf("client"))
    digest = client.create_blob(tmp_path / "m.gguf")
    assert client.create("me/file", files={"m.gguf": digest}, parameters={"num_ctx": 2048}).status == "success"
    assert (client.show("me/file").parameters or "").split() == ["num_ctx", "2048"]
    for name in ("me/pirate", "me/file"):
        client.delete(name)


async def test_create_asynchronously(aclient: ollama.AsyncClient, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf("asynchronous"))
    digest = await aclient.create_blob(tmp_path / "m.gguf")
    steps = [step.status async for step in await aclient.create("me/later", files={"m.gguf": digest}, stream=True)]
    assert steps[0] == "parsing GGUF"
    assert steps[-1] == "success"
    with pytest.raises(ollama.ResponseError, match="template error: the template is wrong at line 1"):
        await aclient.create("me/wrong", from_="me/later", template="{{ .Prompt")
    await aclient.delete("me/later")


ERRORS: list[tuple[Callable[[Any], Any], int, str]] = [
    (lambda c: c.chat("nobody", HI), 404, "model 'nobody' not found"),
    (lambda c: c.generate("nobody", "x"), 404, "model 'nobody' not found"),
    (lambda c: c.generate(" ", "x"), 404, "model '' not found"),
    (lambda c: c.chat(" ", HI), 400, "model is required"),
    (lambda c: c.show("nobody"), 404, "model 'nobody:latest' not found"),
    (lambda c: c.show(" "), 400, "model is required"),
    (lambda c: c.show("a/b/c/d"), 400, "invalid model name"),
    (lambda c: c.copy("nobody", "x"), 404, 'model "nobody" not found'),
    (lambda c: c.copy("smollm2", ".."), 400, 'destination ".." is invalid'),
    (lambda c: c.delete("nobody"), 404, "model 'nobody' not found"),
    (lambda c: c.pull(" "), 400, "invalid model name"),
    (lambda c: c.chat("smollm2", HI, options={"num_ctx": "x"}), 400, 'option "num_ctx" must be of type integer'),
    (lambda c: c.chat("smollm2", HI, think=True, options=FEW), 400, '"smollm2" does not support thinking'),
    (lambda c: c.chat("smollm2", HI, format={"not": {}}, options=FEW), 400, "the JSON Schema uses not"),
    (lambda c: c.chat("smollm2", HI, keep_alive="soon", options=FEW), 400, 'time: invalid duration "soon"'),
    (
        lambda c: c.generate("smollm2", "x", suffix="y", options=FEW),
        400,
        "registry.ollama.ai/library/smollm2:latest does not support insert",
    ),
    (lambda c: c.chat("gpt:cloud", HI), 403, "ollama cloud is disabled"),
    (lambda c: c.chat("echo", [{"role": "user", "content": "a @crash=1"}], options={"num_predict": 5}), 500, "an error was encountered"),
]


@pytest.mark.parametrize("number", range(len(ERRORS)))
async def test_errors_are_response_errors_with_their_status(client: ollama.Client, aclient: ollama.AsyncClient, number: int) -> None:
    call, status, begins = ERRORS[number]
    with pytest.raises(ollama.ResponseError) as met:
        call(client)
    assert (met.value.status_code, met.value.error[: len(begins)]) == (status, begins)
    with pytest.raises(ollama.ResponseError) as met:
        await call(aclient)
    assert (met.value.status_code, met.value.error[: len(begins)]) == (status, begins)


async def test_errors_of_streams_are_response_errors_before_and_after_the_first_line(
    client: ollama.Client, aclient: ollama.AsyncClient
) -> None:
    with pytest.raises(ollama.ResponseError) as met:
        list(client.chat("nobody", HI, stream=True))
    assert met.value.status_code == 404
    crash = [{"role": "user", "content": "a b @crash=2"}]
    got = []
    with pytest.raises(ollama.ResponseError, match="an error was encountered"):
        for piece in client.chat("echo", crash, stream=True, options={"num_predict": 9}):
            got.append(piece.message.content)
    assert got == ["a", " b"]
    with pytest.raises(ollama.ResponseError, match="an error was encountered"):
        async for _ in await aclient.chat("echo", crash, stream=True, options={"num_predict": 9}):
            pass


def test_a_full_queue_is_a_response_error_503(start: Start, tmp_path: Path) -> None:
    put_echo(tmp_path / "models", "echo")
    server = start(tmp_path / "models", OLLAMA_MAX_QUEUE="0", OLLAMA_NUM_PARALLEL="1")
    client = ollama.Client(host=server.url, trust_env=False)
    slow = [{"role": "user", "content": "@delay=0.05 the only slot is taken"}]
    speaking = client.chat("echo", slow, options={"num_predict": 200}, stream=True)
    next(iter(speaking))
    with pytest.raises(ollama.ResponseError) as met:
        client.chat("echo", HI, options=FEW)
    assert met.value.status_code == 503
    assert met.value.error == "server busy, please try again.  maximum pending requests exceeded"
    speaking.close()
    client._client.close()


async def test_the_async_client_does_it_all(aclient: ollama.AsyncClient) -> None:
    assert {m.model for m in (await aclient.list()).models} >= {"smollm2:135m"}
    assert (await aclient.show("smollm2")).details is not None
    assert (await aclient.chat("smollm2", HI, options=FEW)).message.content
    pieces = [p async for p in await aclient.chat("smollm2", HI, options=FEW, stream=True)]
    assert pieces[-1].done
    assert "".join(p.message.content or "" for p in pieces)
    assert (await aclient.generate("smollm2", CAPITAL, options=FEW)).response
    words = [p async for p in await aclient.generate("smollm2", "x", options=FEW, stream=True)]
    assert words[-1].done_reason
    assert (await aclient.ps()).models
    steps = [s async for s in await aclient.pull("smollm2:135m", stream=True)]
    assert steps[-1].status == "success"
    assert (await aclient.copy("smollm2", "twin")).status == "success"
    assert (await aclient.delete("twin")).status == "success"
