"""What the web service of Foundry Local's SDK 2.2.1 answered, request by request, against ours; and where ours does better."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from server import Server, serving
from stores import link

SHARED = ROOT.parent / "shared"
COMPARER, GOLDEN = SHARED / "tools" / "golden-compare", SHARED / "golden" / "foundry-sdk2.json"
OWN = "smollm2-135m-generic-cpu:1"

pytestmark = [pytest.mark.weights, pytest.mark.slow]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Server]:
    """A server as `foundry service start` starts it, with the real model loaded."""
    folder = tmp_path_factory.mktemp("service")
    with serving(folder, link(models, folder / "models"), NDANI_FOUNDRY_ERRORS="1") as server:
        assert server.http.get(f"/models/load/{OWN}").json() == {"status": "loaded"}
        yield server


def chat(server: Server, **more: Any) -> dict[str, Any]:
    body = {"model": OWN, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8, "temperature": 0, **more}
    answer = server.post("/v1/chat/completions", body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.skipif(not (COMPARER.exists() and GOLDEN.exists()), reason="the recordings of the real service are not beside this repository")
def test_the_recorded_exchanges_agree(service: Server) -> None:
    done = subprocess.run([sys.executable, str(COMPARER), str(GOLDEN), service.url], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("19 agree, 0 do not"), done.stdout


def test_an_unknown_model_has_the_type_of_error_that_was_asked_for(service: Server, real: Server) -> None:
    body = {"model": "nope", "messages": [{"role": "user", "content": "Say hello."}]}
    for server, kind in ((service, "invalid_request_error"), (real, "not_found_error")):
        answer = server.post("/v1/chat/completions", body)
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, kind)


def test_a_full_id_loads_and_unloads(service: Server) -> None:
    """load-id, load-back, unload, unload-again."""
    service.http.get(f"/models/load/{OWN}")
    states = [service.http.get(f"/models/{verb}/{OWN}") for verb in ("unload", "unload", "load", "load")]
    assert [state.status_code for state in states] == [200] * 4
    assert [state.json()["status"] for state in states] == ["unloaded", "not_loaded", "loaded", "already_loaded"]


def test_an_alias_is_a_model_name(service: Server) -> None:
    """chat-alias: every form of the name has the same answer, which calls the model what the client called it."""
    said = set()
    for form in ("smollm2-135m", "smollm2-135m-generic-cpu", OWN, "smollm2:135m"):
        answer = chat(service, model=form)
        assert answer["model"] == form
        said.add(answer["choices"][0]["message"]["content"])
        assert service.http.get(f"/v1/models/{form}").json()["id"] == form
    assert len(said) == 1


def test_a_raw_schema_is_obeyed(service: Server) -> None:
    """chat-schema-raw: the document is valid and complete, and so it is with OpenAI's wrapper around the schema."""
    schema = {
        "type": "object",
        "properties": {"greeting": {"type": "string", "maxLength": 20}},
        "required": ["greeting"],
        "additionalProperties": False,
    }
    for form in (schema, {"name": "greeting", "strict": True, "schema": schema}):
        answer = chat(service, max_tokens=40, response_format={"type": "json_schema", "json_schema": form})
        document = json.loads(answer["choices"][0]["message"]["content"])
        assert list(document) == ["greeting"]
        assert len(document["greeting"]) <= 20


def test_penalties_are_honoured(service: Server) -> None:
    """chat-penalty."""
    question = {"messages": [{"role": "user", "content": "Write: ha ha ha ha ha ha ha ha"}], "max_tokens": 24}
    plain, bent = chat(service, **question), chat(service, **question, frequency_penalty=2.0, presence_penalty=2.0)
    assert plain["choices"][0]["message"]["content"] != bent["choices"][0]["message"]["content"]


def test_a_chat_model_embeds(service: Server) -> None:
    """embeddings-chat-model."""
    answer = service.post("/v1/embeddings", {"model": OWN, "input": "x"})
    assert answer.status_code == 200, answer.text
    [vector] = answer.json()["data"]
    assert len(vector["embedding"]) == 576
    assert answer.json()["usage"]["prompt_tokens"] > 0


def test_a_stored_response_is_fetched_and_deleted(service: Server) -> None:
    """responses-stored."""
    body = {"model": "smollm2-135m", "input": "Say hello.", "max_output_tokens": 5, "temperature": 0, "store": True}
    made = service.post("/v1/responses", body).json()
    again = service.http.get(f"/v1/responses/{made['id']}")
    assert again.status_code == 200, again.text
    assert again.json()["output"] == made["output"]
    assert service.http.delete(f"/v1/responses/{made['id']}").status_code == 200
    assert service.http.get(f"/v1/responses/{made['id']}").status_code == 404


def test_a_wrong_method_and_an_unknown_route(service: Server) -> None:
    """wrong-method, unknown-route: without a library's banner."""
    wrong = service.http.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    unknown = service.http.get("/nope")
    assert unknown.status_code == 404
    assert "oatpp" not in wrong.text + unknown.text


def test_tokens_are_those_of_the_answer(service: Server) -> None:
    """The count is the `prompt_tokens` that a chat is charged."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Count these tokens, please."}]
    counted = service.post("/v1/chat/completions/tokenizer/encode/count", {"model": OWN, "messages": messages}).json()
    assert counted == {"tokenCount": chat(service, messages=messages)["usage"]["prompt_tokens"]}
