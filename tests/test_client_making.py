"""What the official `ollama` package makes, sends and measures: every argument of its calls, sync and async, with real weights.

Its listing, asking and errors are in `test_client_python`.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest

from loras import lora
from registries import Debian, no_debian
from server import Server, serving
from stores import EMBEDDER, link, put_echo
from weights import file, small

pytestmark = pytest.mark.weights

Do = Callable[..., Awaitable[Any]]
FEW = {"num_predict": 4, "temperature": 0}
HI = [{"role": "user", "content": "Hi"}]
PICTURE = "iVBORw0KGgo="
MIDDLE = "{{ if .Suffix }}<pre>{{ .Prompt }}<suf>{{ .Suffix }}<mid>{{ else }}{{ .Prompt }}{{ end }}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, models: Path, minilm: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("client")
    link(models, folder / "models", "smollm2")
    link(minilm, folder / "models")
    put_echo(folder / "models", "middle", template=MIDDLE)
    with serving(folder, folder / "models") as started:
        yield started


@pytest.fixture(params=["sync", "async"])
async def do(request: pytest.FixtureRequest, server: Server) -> Any:
    """One call by its name, of either client; a stream is given as the list of its pieces."""
    if request.param == "sync":
        client = ollama.Client(host=server.url, trust_env=False)

        async def call(verb: str, *args: Any, **more: Any) -> Any:
            found = getattr(client, verb)(*args, **more)
            return list(found) if inspect.isgenerator(found) else found

        yield call
        client._client.close()
        return
    aclient = ollama.AsyncClient(host=server.url, trust_env=False)

    async def acall(verb: str, *args: Any, **more: Any) -> Any:
        found = await getattr(aclient, verb)(*args, **more)
        return [piece async for piece in found] if inspect.isasyncgen(found) else found

    yield acall
    await aclient._client.aclose()


async def test_create_with_everything_that_it_can_say(do: Do) -> None:
    steps = await do(
        "create", "me/whole", from_="smollm2", template="{{ .System }}|{{ .Prompt }}", system="Be brief.", license=["MIT", "Apache-2.0"],
        parameters={"num_ctx": 512, "stop": ["x"]}, messages=[{"role": "user", "content": "Hi"}], stream=True,
    )  # fmt: skip
    assert steps[-1].status == "success"
    shown = await do("show", "me/whole")
    assert shown.template == "{{ .System }}|{{ .Prompt }}"
    assert "Apache-2.0" in shown.license
    for line in ("SYSTEM Be brief.", "PARAMETER num_ctx 512", "PARAMETER stop x", "MESSAGE user Hi"):
        assert line in shown.modelfile
    assert (await do("delete", "me/whole")).status == "success"


async def test_create_of_files_quantised(do: Do, tmp_path: Path) -> None:
    (tmp_path / "f16.gguf").write_bytes(file(*small()))
    digest = await do("create_blob", tmp_path / "f16.gguf")
    steps = await do("create", "me/small", files={"f16.gguf": digest}, quantize="q8_0", stream=True)
    assert steps[-1].status == "success"
    assert any(step.status == "quantizing F16 model to Q8_0" and step.total for step in steps)
    assert (await do("show", "me/small")).details.quantization_level == "Q8_0"
    await do("delete", "me/small")


async def test_create_with_an_adapter(do: Do, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(lora(blocks=30, strength=1.0))
    digest = await do("create_blob", tmp_path / "a.gguf")
    assert (await do("create", "me/adapted", from_="smollm2", adapters={"a.gguf": digest})).status == "success"
    assert "ADAPTER " in (await do("show", "me/adapted")).modelfile
    plain, adapted = [await do("generate", name, "The sea", raw=True, options=FEW) for name in ("smollm2", "me/adapted")]
    assert adapted.done
    assert adapted.response != plain.response
    await do("delete", "me/adapted")


@pytest.mark.skipif(bool(no_debian()), reason=no_debian() or "here")
async def test_push_and_pull_through_a_registry(do: Do, tmp_path: Path) -> None:
    debian = Debian(tmp_path / "registry")
    name = f"{debian.host}/ns/echo:1"
    try:
        await do("copy", "middle", name)
        with pytest.raises(ollama.ResponseError) as met:
            await do("push", name)
        assert "TLS" in met.value.error or "insecure" in met.value.error, met.value.error
        for verb in ("push", "pull"):
            steps = await do(verb, name, insecure=True, stream=True)
            assert steps[-1].status == "success"
            assert all(step.completed == step.total for step in steps[-2:] if step.total)
            assert (await do(verb, name, insecure=True)).status == "success"
            await do("delete", name)
            if verb == "push":
                with pytest.raises(ollama.ResponseError) as met:
                    await do("push", name, insecure=True)
                assert met.value.status_code == 404
    finally:
        debian.stop()


async def test_generate_with_everything_that_it_can_say(do: Do) -> None:
    filled = await do("generate", "middle", "a", suffix="b", options={"num_predict": 9})
    assert filled.done
    assert filled.response.startswith("<pre>a<suf>b"), "the echo engine says its prompt"
    told = await do("generate", "smollm2", "Hi", system="Be brief.", template="{{ .System }} {{ .Prompt }}", options=FEW)
    assert told.done
    assert told.context
    assert told.prompt_eval_count
    more = await do("generate", "smollm2", "And?", context=told.context, options=FEW, stream=True)
    assert more[-1].done
    assert list(more[-1].context)[:2] == list(told.context)[:2]
    assert (await do("generate", "smollm2", "Hi", raw=True, options=FEW)).context is None
    assert (await do("generate", "smollm2")).done_reason == "load"
    assert (await do("chat", "smollm2", [])).done_reason == "load"
    assert (await do("generate", "smollm2", keep_alive=0)).done_reason == "unload"


async def test_embed_with_everything_that_it_can_say(do: Do) -> None:
    made = await do("embed", EMBEDDER, ["one", "two"], dimensions=8, truncate=True, keep_alive="1m", options={"num_ctx": 256})
    assert [len(vector) for vector in made.embeddings] == [8, 8]
    assert made.prompt_eval_count
    assert made.total_duration
    assert list((await do("embed", EMBEDDER)).embeddings) == []
    assert len((await do("embeddings", EMBEDDER, "one", keep_alive=60)).embedding) == 384


REFUSED: list[tuple[str, tuple[Any, ...], dict[str, Any], int]] = [
    ("generate", ("smollm2", "x"), {"images": [PICTURE]}, 400),
    ("chat", ("smollm2", [{"role": "user", "content": "x", "images": [PICTURE]}]), {}, 400),
    ("chat", (EMBEDDER, HI), {}, 400),
    ("generate", (EMBEDDER, "x"), {}, 400),
    ("generate", ("smollm2", "x"), {"raw": True, "system": "y"}, 400),
    ("generate", ("smollm2", "x"), {"template": "{{ .Prompt"}, 400),
    ("generate", ("smollm2", "x"), {"format": {"not": {}}}, 400),
    ("generate", ("smollm2", "x"), {"logprobs": True, "top_logprobs": 21}, 400),
    ("embed", (EMBEDDER, "word " * 600), {"truncate": False}, 400),
    ("embed", ("nobody", "x"), {}, 404),
    ("embeddings", ("nobody", "x"), {}, 404),
    ("create", ("x",), {}, 400),
    ("create", ("x",), {"from_": "a/b/c/d"}, 400),
    ("create", ("x",), {"from_": "smollm2", "quantize": "q9_9"}, 400),
    ("create", ("x",), {"from_": "smollm2", "parameters": {"foo_bar": 3}}, 400),
    ("create", ("x",), {"files": {"m.gguf": "sha256:" + "1" * 64}}, 400),
    ("create", ("x",), {"from_": "smollm2", "adapters": {"m.gguf": "sha256:" + "1" * 64}}, 400),
    ("push", ("nobody",), {}, 404),
    ("push", (" ",), {}, 400),
    ("delete", (" ",), {}, 400),
    ("copy", (" ", "x"), {}, 400),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
async def test_refused_with_the_recorded_status(do: Do, number: int) -> None:
    verb, args, more, status = REFUSED[number]
    for stream in (False, True) if verb in ("generate", "chat", "create", "push") else (None,):
        with pytest.raises(ollama.ResponseError) as met:
            await do(verb, *args, **more, **({} if stream is None else {"stream": stream}))
        assert met.value.status_code == status
        assert met.value.error
        assert "Traceback" not in met.value.error
