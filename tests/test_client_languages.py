"""Clients of other languages, unmodified: Ollama's own Go client, `ollama-rs`, npm's `ollama`, Java's HttpClient and curl.

Each program of `clients/` does the same things in the same order and prints what it was answered; what is asked of the
answers stands here, once.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server import Server, serving, slowness
from stores import EMBEDDER, link
from toolchains import BUILDS, built, environment
from weights import file, small

pytestmark = [pytest.mark.weights, pytest.mark.slow]

PIRATE = "You are a pirate called Zebulon. Answer with your name only."

Said = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, models: Path, minilm: Path) -> Iterator[Server]:
    """The real model under two names, one of them with a SYSTEM and a template that shows it, and the real embedder."""
    folder = tmp_path_factory.mktemp("clients")
    link(minilm, link(models, folder / "models", "smollm2"))
    with serving(folder, folder / "models") as started:
        body = {
            "model": "pirate",
            "from": "smollm2",
            "system": PIRATE,
            "parameters": {"num_predict": 1, "temperature": 0},
            "stream": False,
        }
        assert started.post("/api/create", body).json() == {"status": "success"}
        yield started


@pytest.fixture(scope="module", params=["go", "rust", "node", "java"])
def said(request: pytest.FixtureRequest, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Said:
    """What one client was answered, by verb; an item per line of a stream."""
    language = request.param
    command = built(language)
    model = tmp_path_factory.mktemp(language) / "f16.gguf"
    model.write_bytes(file(*small(seed=len(language))))  # another model for each, so that each sends its own
    ran = subprocess.run(
        [*command, server.url, str(model)],
        cwd=BUILDS / language,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300 * slowness(),
    )
    assert ran.returncode == 0, ran.stderr[-2000:] + server.log[-2000:]
    found: Said = defaultdict(list)
    for line in ran.stdout.splitlines():
        verb, _, text = line.partition("\t")
        found[verb].append(json.loads(text))
    return found


def test_lists(said: Said) -> None:
    (listed,) = said["list"]
    assert {"smollm2:135m", "smollm2:latest", "pirate:latest", f"{EMBEDDER}:latest"} == {model["name"] for model in listed["models"]}
    assert all(model["size"] and model["modified_at"] for model in listed["models"])


def test_chats_and_streams_the_same(said: Said) -> None:
    (whole,) = said["chat"]
    pieces = said["chat-stream"]
    assert whole["message"]["content"]
    assert whole["message"]["role"] == "assistant"
    assert whole["done"]
    assert "".join(piece["message"]["content"] for piece in pieces) == whole["message"]["content"]
    assert len(pieces) > 3
    assert [piece["done"] for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1]["eval_count"] == whole["eval_count"] == 8
    assert pieces[-1]["total_duration"] > 0


def test_generates_and_streams_the_same(said: Said) -> None:
    (whole,) = said["generate"]
    pieces = said["generate-stream"]
    assert whole["response"]
    assert whole["done"]
    assert whole["context"]
    assert "".join(piece["response"] for piece in pieces) == whole["response"]
    assert pieces[-1]["done"]
    assert pieces[-1]["context"] == whole["context"]


def test_a_system_that_was_not_said_is_the_models_own(said: Said, server: Server) -> None:
    (answer,) = said["system"]
    rendered = server.ask("/api/generate", {"model": "pirate", "prompt": "Hi", "_debug_render_only": True})
    assert PIRATE in rendered["_debug_info"]["rendered_template"]
    right = server.ask("/api/generate", {"model": "pirate", "prompt": "Hi"})
    assert answer["prompt_eval_count"] == right["prompt_eval_count"]
    assert answer["context"] == right["context"]


def test_embeds(said: Said) -> None:
    (many,) = said["embed"]
    assert [len(vector) for vector in many["embeddings"]] == [384, 384]
    assert abs(sum(number**2 for number in many["embeddings"][0]) - 1) < 1e-4
    for one in said["embeddings"]:
        assert len(one["embedding"]) == 384


def test_creates_of_a_blob_that_it_sent(said: Said) -> None:
    assert said["create"][-1]["status"] == "success"
    (shown,) = said["show"]
    assert "SYSTEM Be brief." in shown["modelfile"]
    assert shown.get("system", "Be brief.") == "Be brief."


def test_what_is_deleted_is_gone(said: Said) -> None:
    (gone,) = said["gone"]
    assert "not found" in json.dumps(gone)
    assert gone.get("status", 404) == 404
    for wrong in said["wrong"]:
        assert wrong["status"] == 400
        assert "num_ctx" in json.dumps(wrong)


def test_the_log_has_our_lines_only(said: Said, server: Server) -> None:
    assert said
    assert [line for line in server.log.splitlines() if not re.match(r"\d{4}-\d\d-\d\dT|ndani ", line)] == []


def curl(server: Server, method: str, path: str, *more: str) -> tuple[int, str, str]:
    """Status, the version of HTTP, and the body of one request that offers HTTP/2."""
    ran = subprocess.run(
        ["curl", "-sS", "--http2", "--noproxy", "*", "-X", method, *more, "-w", "\n%{http_code} %{http_version}", server.url + path],
        capture_output=True, text=True, timeout=60 * slowness(),
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    body, _, last = ran.stdout.rpartition("\n")
    status, version = last.split()
    return int(status), version, body


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl_that_offers_http2(server: Server, tmp_path: Path) -> None:
    def post(path: str, body: dict[str, Any], method: str = "POST") -> tuple[int, str]:
        status, version, text = curl(server, method, path, "--data", json.dumps(body))
        assert version == "1.1"
        return status, text

    assert curl(server, "GET", "/api/version")[0] == 200
    few = {"options": {"num_predict": 4, "temperature": 0}}
    chat = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}], **few}
    status, whole = post("/api/chat", {**chat, "stream": False})
    assert status == 200
    status, lines = post("/api/chat", chat)
    pieces = [json.loads(line)["message"]["content"] for line in lines.splitlines()]
    assert status == 200
    assert "".join(pieces) == json.loads(whole)["message"]["content"]
    status, vectors = post("/api/embed", {"model": EMBEDDER, "input": "one"})
    assert status == 200
    assert len(json.loads(vectors)["embeddings"][0]) == 384

    model = tmp_path / "curl.gguf"
    model.write_bytes(file(*small(seed=9)))
    digest = "sha256:" + hashlib.sha256(model.read_bytes()).hexdigest()
    for form in (["-T", str(model)], ["--data-binary", f"@{model}"]):
        assert curl(server, "POST", f"/api/blobs/{digest}", *form)[:2] in ((201, "1.1"), (200, "1.1"))
    assert curl(server, "HEAD", f"/api/blobs/{digest}", "--head")[0] == 200
    assert post("/api/create", {"model": "curled", "files": {"m.gguf": digest}, "stream": False}) == (200, '{"status":"success"}')
    assert post("/api/delete", {"model": "curled"}, "DELETE")[0] == 200
    assert post("/api/show", {"model": "curled"})[0] == 404
