"""Adapters (LoRA) over real weights: they change the answer, a zero one does not, and each has a runner of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import Start
from golden_cli import run
from loras import lora
from ndani import names
from ndani.store import Store, layout
from server import Server, until
from stores import REAL

CREATE, GENERATE = "/api/create", "/api/generate"
STILL = {"temperature": 0, "seed": 1, "num_predict": 8, "num_ctx": 256}

pytestmark = pytest.mark.weights


def adapted(server: Server, name: str, content: bytes, **more: Any) -> Any:
    return server.post(CREATE, {"model": name, "from": REAL, "adapters": {"lora.gguf": server.upload(content)}, "stream": False} | more)


def ids(server: Server, model: str) -> list[int]:
    """The tokens of an answer that leaves nothing to chance."""
    answer = server.ask(GENERATE, {"model": model, "prompt": "Name three colours.", "options": STILL})
    return list(answer["context"][answer["prompt_eval_count"] :])


def test_adapters_change_answers_have_runners_of_their_own_and_are_let_go(start: Start, real_store: Path, tmp_path: Path) -> None:
    server = start(real_store, OLLAMA_NUM_PARALLEL="1", OLLAMA_CONTEXT_LENGTH="256")
    (tmp_path / "style.gguf").write_bytes(lora())
    (tmp_path / "Modelfile").write_text(f"FROM {REAL}\nADAPTER ./style.gguf\n")
    made = run(("create", "styled"), server.environment | {"NDANI_HOST": f"127.0.0.1:{server.port}"}, folder=tmp_path)
    assert made.exit == 0, made.stderr
    assert adapted(server, "zero", lora(strength=0)).json() == {"status": "success"}
    plain, styled = ids(server, REAL), ids(server, "styled")
    assert ids(server, "zero") == plain != styled
    assert len(plain) > 3
    assert len(server.runners()) == len(server.resident()) == 3, "no two of them share a runner"
    shown = server.post("/api/show", {"model": "styled"}).json()
    assert f"ADAPTER {Store(real_store).find(names.parse('styled')).adapter}" in shown["modelfile"]

    server.post("/api/copy", {"source": "styled", "destination": "twin"})
    assert ids(server, "twin") == styled
    assert len(server.runners()) == 3, "the same adapter has the same runner"
    assert server.http.request("DELETE", "/api/delete", json={"model": "twin"}).status_code == 200
    assert "styled:latest" in server.resident(), "the other name still has it"
    server.post(GENERATE, {"model": "styled", "keep_alive": 0})
    until(lambda: set(server.resident()) == {REAL, "zero:latest"}, "it alone is unloaded", at_rest=20)
    assert adapted(server, "styled", lora(strength=0)).status_code == 200
    assert ids(server, "styled") == plain, "a name made anew answers as its new self"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lora(general__architecture="qwen2"), "lora.gguf was made for a model of the kind qwen2, and this one is llama"),
        (lora(inside=64), "lora.gguf was made for a model of another size: its tensors do not fit this one; use its own base"),
        (lora(blocks=31), "lora.gguf was made for another model: this one has no tensor of the name that it changes; use its own base"),
        (lora(adapter__type="ia3"), "lora.gguf is an adapter of the kind ia3; ADAPTER takes a LoRA in GGUF format"),
        (lora(general__type="model"), "lora.gguf is not an adapter; ADAPTER takes a LoRA in GGUF format"),
        (lora()[:400], "lora.gguf is not a usable GGUF file: it ends too early; send the whole file again"),
    ],
)
def test_an_adapter_for_something_else_is_one_sentence(real: Server, content: bytes, sentence: str) -> None:
    answer = adapted(real, "wrong", content)
    assert (answer.status_code, answer.json()) == (400, {"error": sentence})


def test_an_adapter_that_the_engine_refuses_is_one_sentence_and_harms_nobody(start: Start, real_store: Path) -> None:
    """Its head is right and its numbers are not there: only the engine finds that out."""
    store, whole = Store(real_store), lora()
    entry = store.find(names.parse(REAL))
    manifest, half = json.loads(entry.path.read_bytes()), whole[: len(whole) // 2]
    manifest["layers"].append({"mediaType": layout.ADAPTER, "digest": store.blobs.put(half), "size": len(half)})
    store.commit(names.parse("cut"), json.dumps(manifest).encode())
    server = start(real_store, OLLAMA_NUM_PARALLEL="1")
    answer = server.post(GENERATE, {"model": "cut", "prompt": "x"})
    assert answer.status_code == 500
    assert answer.json()["error"].startswith("the engine could not load this model with its adapter: ")
    assert "/" not in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    assert server.process.poll() is None
    assert not server.runners()
