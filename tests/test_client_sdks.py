"""Packages that people build on, unmodified, against real weights: the SDKs of OpenAI and Anthropic, LangChain, LlamaIndex and more.

Each script of `clients/` says what it was answered, a line of `verb<TAB>JSON` each, and the same verb means the same in all of
them; what is asked of the answers stands here, once. `CLIENTS` says which verbs each has. Open WebUI is too large to be installed
here: `clients/open_webui.py` is run by hand.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import weather
from server import Server, serving, slowness
from stores import link
from toolchains import BUILDS, built, environment

pytestmark = [pytest.mark.weights, pytest.mark.slow]

Said = dict[str, list[Any]]

BASE = "chat stream"
TOOLS = "tool tool-stream tool-result"
#: By client: the folder of `clients/`, the script (or nothing), and the verbs.
CLIENTS: dict[str, tuple[str, str, str]] = {
    "ollama": ("python", "ollama_client.py", f"{BASE} {TOOLS} structured json logprobs embed refused"),
    "openai": (
        "python",
        "openai_client.py",
        f"{BASE} {TOOLS} models usage stream-usage several logprobs named required none structured structured-stream structured-tool "
        "complete complete-stream responses responses-stream responses-events responses-next responses-structured responses-tool "
        "embed embed-float dimensions refused",
    ),
    "anthropic": (
        "python",
        "anthropic_client.py",
        f"{BASE} {TOOLS} usage stream-end count named required none structured structured-own refused",
    ),
    "langchain-ollama": ("python", "langchain_ollama_client.py", f"{BASE} {TOOLS} structured json embed"),
    "langchain-openai": (
        "python",
        "langchain_openai_client.py",
        f"{BASE} {TOOLS} named structured structured-tool responses responses-stream embed",
    ),
    "llama-index": ("python", "llama_index_client.py", f"{BASE} complete complete-stream tool structured"),
    "litellm": (
        "python",
        "litellm_client.py",
        f"{BASE} tool structured embed openai-chat openai-stream openai-tool openai-structured openai-embed "
        "anthropic-chat anthropic-stream anthropic-tool",
    ),
    "llm": ("python", "llm_client.py", f"{BASE} models tool structured embed"),
    "pydantic-ai": ("python", "pydantic_ai_client.py", f"{BASE} tool tool-result structured structured-tool"),
    "node-ollama": ("node-sdks", "ollama.mjs", f"{BASE} {TOOLS} structured logprobs embed refused"),
    "node-openai": (
        "node-sdks",
        "openai.mjs",
        f"{BASE} {TOOLS} models required none structured complete responses responses-stream embed refused",
    ),
    "node-anthropic": ("node-sdks", "anthropic.mjs", f"{BASE} {TOOLS} stream-end count required structured refused"),
    "node-ai": ("node-sdks", "vercel.mjs", f"{BASE} {TOOLS} structured embed refused"),
    "node-foundry": ("node-sdks", "foundry.mjs", f"{BASE} models cached loaded unloaded"),
    "langchain4j": ("langchain4j", "", f"{BASE} {TOOLS} structured embed refused"),
}
#: What a refused call is told: status, and a part of the sentence.
REFUSED = {
    "unknown": (404, "nobody"),
    "incapable": (400, "does not support tools"),
    "unthinking": (400, "does not support thinking"),
    "impossible": (400, "$ref"),
    "range": (400, "top_logprobs"),
    "unknown-response": (404, "resp_nobody"),
    "empty": (400, "messages"),
}

_answers: dict[str, Said] = {}
#: How scripts failed, so that none is run again for its next verb.
_failures: dict[str, str] = {}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, models: Path, minilm: Path) -> Iterator[Server]:
    """The real model and the real embedder, and the models that call tools and cannot."""
    folder = tmp_path_factory.mktemp("sdks")
    link(minilm, link(models, folder / "models", "smollm2"))
    with serving(folder, folder / "models") as started:
        weather.make_models(started)
        done = subprocess.run(
            [sys.executable, "-m", "ndani", "shims", "install", "--dir", str(folder / "bin")],
            env=started.environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        yield started


@pytest.fixture
def said(client: str, server: Server) -> Said:
    """What a client was answered, by verb."""
    return answered(client, server)


def answered(client: str, server: Server) -> Said:
    """Run a client, once; what it was answered."""
    assert client not in _failures, _failures[client]
    if client not in _answers:
        folder, script, _ = CLIENTS[client]
        command = [*built(folder), *([script] if script else []), server.url]
        shims = f"{server.home.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
        ran = subprocess.run(
            command,
            cwd=BUILDS / folder,
            env=environment(PATH=shims, NDANI_HOST=f"127.0.0.1:{server.port}", HOME=str(server.home)),
            capture_output=True,
            text=True,
            timeout=300 * slowness(),
        )
        found: Said = defaultdict(list)
        for line in ran.stdout.splitlines():
            verb, tab, text = line.partition("\t")
            if tab:  # packages print lines of their own
                found[verb].append(json.loads(text))
        if ran.returncode:
            _failures[client] = f"after {list(found)}:\n{ran.stderr[-3000:]}\n{server.log[-1000:]}"
        assert client not in _failures, _failures[client]
        _answers[client] = found
    return _answers[client]


def each(*verbs: str) -> pytest.MarkDecorator:
    """Parametrizes a test with every client that has one of the verbs, and the verb."""
    pairs = [(name, verb) for name, (_, _, has) in CLIENTS.items() for verb in has.split() if verb in verbs]
    assert {verb for _, verb in pairs} == set(verbs)
    return pytest.mark.parametrize(("client", "verb"), pairs)


@each("chat", "complete", "responses", "openai-chat", "anthropic-chat")
def test_answers_and_streams_the_same(said: Said, client: str, verb: str) -> None:
    (whole,) = said[verb]
    assert whole.strip()
    streamed = "stream" if verb == "chat" else f"{verb}-stream".replace("-chat-", "-")
    for pieces in said.get(streamed, []):
        assert "".join(pieces) == whole
        assert len([piece for piece in pieces if piece]) > 3


@each("tool", "tool-stream", "openai-tool", "anthropic-tool", "responses-tool")
def test_calls_a_tool(said: Said, client: str, verb: str) -> None:
    assert said[verb] == [[{"name": "get_weather", "arguments": {"city": "Nairobi"}}]]


@each("tool-result", "responses-next")
def test_goes_on_in_words(said: Said, client: str, verb: str) -> None:
    (text,) = said[verb]
    assert text.strip()
    assert "tool_call" not in text


@each("named", "required", "none")
def test_obeys_a_choice_of_tools(said: Said, client: str, verb: str) -> None:
    (calls,) = said[verb]
    names = [call if isinstance(call, str) else call["name"] for call in calls]
    if verb == "none":
        assert names == []
    elif verb == "required":
        assert names
        assert set(names) <= {"get_weather", "get_time"}
    else:
        assert names == ["get_weather" if client == "langchain-openai" else "get_time"]


@each("structured", "structured-stream", "structured-tool", "responses-structured", "openai-structured")
def test_gives_what_a_schema_asks_for(said: Said, client: str, verb: str) -> None:
    (city,) = said[verb]
    assert set(city) == {"name", "kind", "districts"}
    assert city["kind"] in ("capital", "port", "village")
    assert isinstance(city["name"], str)
    assert all(isinstance(district, str) for district in city["districts"])


@each("json")
def test_gives_any_json_object(said: Said, client: str, verb: str) -> None:
    assert isinstance(json.loads(said[verb][0]), dict)


@each("embed", "embed-float", "openai-embed")
def test_embeds(said: Said, client: str, verb: str) -> None:
    (vectors,) = said[verb]
    assert [len(vector) for vector in vectors] == [384, 384]
    assert all(abs(sum(number**2 for number in vector) - 1) < 1e-3 for vector in vectors)


@each("logprobs")
def test_gives_log_probabilities(said: Said, client: str, verb: str) -> None:
    (tokens,) = said[verb]
    assert len(tokens) == 8
    assert all(token["logprob"] <= 0 and token["top"] == 3 for token in tokens)
    assert "".join(token["token"] for token in tokens) == said["chat"][0]


@each("refused")
def test_says_what_is_wrong(said: Said, client: str, verb: str) -> None:
    assert said[verb]
    for found in said[verb]:
        status, part = REFUSED[found["verb"]]
        assert found["status"] == status, found
        assert part in found["message"]


def test_openai_counts_lists_and_chooses(server: Server) -> None:
    said = answered("openai", server)
    (usage,), (streamed,) = said["usage"], said["stream-usage"]
    assert usage["completion_tokens"] == 8
    assert usage["total_tokens"] == usage["prompt_tokens"] + 8
    assert [part["completion_tokens"] for part in streamed] == [8]
    assert streamed[0]["prompt_tokens"] == usage["prompt_tokens"]
    assert {"smollm2:135m", "smollm2:latest", "caller:latest", "all-minilm:latest"} <= set(said["models"][0])
    assert len(said["several"][0]) == 2
    assert said["finish"] == ["tool_calls"]
    assert said["dimensions"] == [[64]]
    (events,) = said["responses-events"]
    assert events[0] == "response.created"
    assert events[-1] in ("response.completed", "response.incomplete")


def test_anthropic_counts_and_ends(server: Server) -> None:
    said = answered("anthropic", server)
    assert said["stream-end"] == ["max_tokens"]
    assert said["finish"] == ["tool_use"]
    assert said["usage"][0]["output_tokens"] == 8
    assert said["structured-own"][0]["kind"] in ("capital", "port", "village")
    assert said["count"] == [said["usage"][0]["input_tokens"] + (said["usage"][0].get("cache_read_input_tokens") or 0)]


def test_foundry_lists_loads_and_unloads(server: Server) -> None:
    said = answered("node-foundry", server)
    assert "smollm2-135m" in said["models"][0]
    assert any(name.startswith("smollm2-135m") for name in said["cached"][0])
    assert any(name.startswith("smollm2-135m") for name in said["loaded"][0])
    assert not any(name.startswith("smollm2-135m") for name in said["unloaded"][0])
