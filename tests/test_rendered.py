"""What a model is really sent: its own template, rendered and counted token by token, with real weights and without."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from conftest import Start
from ndani import names
from ndani.store import Store
from ndani.store.modelfile import parse, to_request
from server import Server, UnixHTTP, until
from stores import EMBEDDER, REAL, link, put_echo, shorten

CREATE, GENERATE, CHAT = "/api/create", "/api/generate", "/api/chat"

#: Published examples, letter for letter as their users bring them.
DATA = Path(__file__).parent / "data"
#: `FILE` lines, which this version refuses, are taken out.
ASSISTANT = "".join(line for line in (DATA / "02-Modelfile").read_text().splitlines(True) if not line.startswith("FILE "))
RULES = (
    "\nYou are an enterprise assistant for Contoso Corporation.\n"
    "Always maintain a professional tone and prioritize security best practices.\n"
    "Never share confidential information without proper authentication.\n"
)
#: One that has no FROM, for whoever sends it adds that.
WRITER = (DATA / "08-Modelfile-template").read_text()
CALLS = DATA / "05-curl.sh"
HABITS = (
    "\nYou are a specialized enterprise assistant focused on technical documentation and code analysis.\n"
    "Provide concise, accurate responses with practical examples.\n"
)


def tokens(server: Server, text: str) -> list[int]:
    """Token ids of a text, from the one runner itself, behind the server's back."""
    path = next(iter(server.sockets.glob("ndani-*/*/*.sock")))
    with contextlib.closing(UnixHTTP(str(path))) as line:
        line.request("POST", "/tokenize", json.dumps({"content": text, "add_special": True, "parse_special": True}))
        return [int(token) for token in json.loads(line.getresponse().read())["tokens"]]


def tokens_given(server: Server, model: str, prompt: str) -> tuple[list[int], dict[str, Any]]:
    """The ids that the engine was really given for a prompt, and the end of the answer."""
    answer = server.ask(GENERATE, {"model": model, "prompt": prompt, "options": {"num_predict": 1, "temperature": 0}})
    assert "truncated" not in answer
    return answer["context"][: answer["prompt_eval_count"]], answer


@pytest.mark.weights
def test_the_assistant_is_sent_its_system_prompt_token_by_token(start: Start, real_store: Any) -> None:
    Store(real_store).copy(names.parse("smollm2:135m"), names.parse("qwen2.5:3b"))
    server = start(real_store)
    read = parse(ASSISTANT)
    server.ask(CREATE, {"model": "enterprise-assistant", "from": read.froms[0]} | to_request(read))
    question = "What may I send by mail?"
    want = f"<|im_start|>system\n{RULES.strip()}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    shown = server.rendered(GENERATE, model="enterprise-assistant", prompt=question)
    # The weights' own chat template may keep or trim the blank lines around a system prompt.
    assert shown in (want, want.replace(RULES.strip(), RULES))
    ids, told = tokens_given(server, "enterprise-assistant", question)
    assert ids == tokens(server, shown)
    assert told["prompt_eval_count"] == len(ids) > 50
    assert server.resident()["enterprise-assistant:latest"]["context_length"] == 4096


@pytest.mark.weights
def test_the_writer_is_sent_its_own_template_token_by_token(start: Start, real_store: Any) -> None:
    server = start(real_store)
    read = parse("FROM smollm2:135m\n" + WRITER)
    assert server.post(CREATE, {"model": "writer"} | to_request(read)).status_code == 400, "without a base there is nothing to make"
    server.ask(CREATE, {"model": "writer", "from": "smollm2:135m"} | to_request(read))
    want = f"{HABITS}\nUser: What is a mutex?\nAssistant: "
    assert server.rendered(GENERATE, model="writer", prompt="What is a mutex?") == want
    ids, told = tokens_given(server, "writer", "What is a mutex?")
    assert ids == tokens(server, want)
    assert told["prompt_eval_count"] == len(ids) > 30
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    # A legacy template is run once for each turn; what is said last is left open.
    assert server.rendered(CHAT, model="writer", messages=turns) == f"{HABITS}\nUser: a\nAssistant: b\nUser: c\nAssistant: "
    # `context` goes on from there; it travels as text, so the last token may join what follows it.
    more = server.ask(GENERATE, {"model": "writer", "prompt": "And?", "context": told["context"], "options": {"num_predict": 1}})
    assert more["context"][: len(ids) - 1] == ids[:-1]
    assert more["prompt_eval_count"] > len(ids)


@pytest.mark.weights
@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl here")
def test_the_published_calls_run_as_they_are(start: Start, real_store: Path, minilm: Path, tmp_path: Path) -> None:
    """Local models stand behind the names; the answers are kept short by the models, as the calls set no limit."""
    shorten(real_store, 8)
    for name in ("phi4:mini", "qwen2.5:3b"):
        Store(real_store).copy(names.parse(REAL), names.parse(name))
    link(minilm, real_store)
    Store(real_store).copy(names.parse(EMBEDDER), names.parse("nomic-embed-text"))
    server = start(real_store)
    # curl itself is told where that address is; the script stays as it was published.
    (tmp_path / ".curlrc").write_text(f"connect-to = localhost:11434:127.0.0.1:{server.port}\nsilent\n")
    done = subprocess.run(
        ["sh", str(CALLS)], capture_output=True, text=True, check=True, timeout=300, env=server.environment | {"HOME": str(tmp_path)}
    ).stdout
    generated, end = json.JSONDecoder().raw_decode(done)
    chatted, length = json.JSONDecoder().raw_decode(done[end:])
    embedded = json.loads(done[end + length :])
    bodies = [json.loads(body) for body in re.findall(r"-d '(\{.*?\n  \})'", CALLS.read_text(), re.DOTALL)]
    assert [body["model"] for body in bodies] == ["phi4:mini", "qwen2.5:3b", "nomic-embed-text"]
    server.post("/api/embed", {"model": "nomic-embed-text", "keep_alive": 0})
    until(lambda: len([*server.sockets.glob("ndani-*/*/*.sock")]) == 1, "the embedder leaves, and its tokenizer with it")
    question, system = bodies[0]["prompt"], bodies[1]["messages"][0]["content"]
    for path, body, answer, asks in ((GENERATE, bodies[0], generated, question), (CHAT, bodies[1], chatted, "What is edge computing?")):
        del body["stream"]
        shown = server.rendered(path, **body)
        assert shown.endswith(f"<|im_start|>user\n{asks}<|im_end|>\n<|im_start|>assistant\n")
        assert answer["done"]
        assert answer["model"] == body["model"]
        assert 0 < answer["eval_count"] <= 8
        assert answer["prompt_eval_count"] == len(tokens(server, shown))
        assert "truncated" not in answer
    assert generated["response"].strip()
    assert chatted["message"]["content"].strip()
    assert generated["context"][: generated["prompt_eval_count"]] == tokens(server, server.rendered(GENERATE, **bodies[0]))
    assert server.rendered(CHAT, **bodies[1]).startswith(f"<|im_start|>system\n{system}<|im_end|>\n")
    again = server.ask("/api/embed", {"model": EMBEDDER, "input": bodies[2]["prompt"]})["embeddings"][0]
    assert set(embedded) == {"embedding"}
    assert len(embedded["embedding"]) == 384
    assert embedded["embedding"] == pytest.approx(again, abs=1e-5), "the vector of that very prompt"


@pytest.mark.weights
def test_stop_words_of_a_created_model_end_its_answer(start: Start, real_store: Any) -> None:
    server = start(real_store)
    server.ask(CREATE, {"model": "short", "from": "smollm2", "parameters": {"stop": [" "], "temperature": 0, "seed": 1, "num_predict": 64}})
    answer = server.ask(CHAT, {"model": "short", "messages": [{"role": "user", "content": "Tell me a long story."}]})
    assert answer["done_reason"] == "stop"
    assert " " not in answer["message"]["content"]


# ---------------------------------------------------------------- without weights


@pytest.fixture
def server(start: Start, tmp_path: Any) -> Server:
    store = tmp_path / "models"
    put_echo(store, "echo")
    turns = "{{ range .Messages }}<{{ .Role }}>{{ .Content }}</{{ .Role }}>{{ end }}"
    put_echo(store, "turns", template=turns, system="be brief", messages=[{"role": "user", "content": "hi"}])
    more = "{{ range .Messages }}({{ .Thinking }}|{{ .ToolName }}|{{ .ToolCallID }}){{ .Content }}{{ end }}"
    put_echo(store, "more", template=more)
    put_echo(store, "middle", template="{{ if .Suffix }}<pre>{{ .Prompt }}<suf>{{ .Suffix }}<mid>{{ else }}{{ .Prompt }}{{ end }}")
    put_echo(store, "crooked", template="{{ .System }}{{ end }}")
    return start(store)


def test_a_model_renders_by_its_own_template_and_merges_neighbours(server: Server) -> None:
    assert server.rendered(GENERATE, model="turns", prompt="x") == "<system>be brief</system><user>hi\n\nx</user>"
    turns = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]
    want = "<system>be brief</system><user>hi\n\na\n\nb</user><assistant>c</assistant>"
    assert server.rendered(CHAT, model="turns", messages=turns) == want
    own = [{"role": "system", "content": "be long"}, {"role": "user", "content": "a"}]
    assert server.rendered(CHAT, model="turns", messages=own) == "<user>hi</user><system>be long</system><user>a</user>"
    assert server.post(CHAT, {"model": "turns", "messages": own, "_debug_render_only": True}).json()["message"] == {
        "role": "",
        "content": "",
    }


def test_what_a_turn_says_besides_its_text_reaches_the_template(server: Server) -> None:
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "thinking": "hm"},
        {"role": "tool", "content": "c", "tool_name": "clock", "tool_call_id": "call_1"},
    ]
    assert server.rendered(CHAT, model="more", messages=turns) == "(||)a(hm||)b(|clock|call_1)c"
    answer = server.post(CHAT, {"model": "more", "messages": [{"role": "assistant", "content": "x", "thinking": 3}]})
    assert (answer.status_code, answer.json()["error"]) == (400, "messages[0].thinking must be a string")


def test_half_an_emoji_is_read_as_no_letter(server: Server) -> None:
    """JavaScript cuts texts there, and writes what is left as an escape."""
    for escaped, read in (
        (rb"hi \ud83d", "hi \ufffd"), (rb"\ud83d x", "\ufffd x"), (rb"\uDE00", "\ufffd"), (rb"\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
        (rb"\\ud83d", r"\ud83d"), (rb"\\\ud83d", "\\\ufffd"), (rb"\ud83d\n", "\ufffd\n"),
    ):  # fmt: skip
        body = b'{"model":"echo","template":"{{ .Prompt }}","_debug_render_only":true,"prompt":"%s"}' % escaped
        answer = server.http.post(GENERATE, content=body)
        assert answer.json()["_debug_info"]["rendered_template"] == read, escaped


def test_bytes_that_are_no_utf8_are_read_as_no_letter(server: Server) -> None:
    """A Latin-1 terminal's letters, a text cut inside a letter: Go's decoder reads each stray byte as U+FFFD."""
    for sent, read in (
        (b"caf\xe9!", "caf\ufffd!"), (b"\xff\xfe", "\ufffd\ufffd"), (b"\xe2\x82", "\ufffd\ufffd"), (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),
        (b"\xf0\x9f\x98 \xf0\x9f\x98\x80", "\ufffd\ufffd\ufffd \U0001f600"), (rb"\ud83d" + b"\xff", "\ufffd\ufffd"),
        (b"\xc0\x80", "\ufffd\ufffd"),
    ):  # fmt: skip
        body = b'{"model":"echo","template":"{{ .Prompt }}","_debug_render_only":true,"no\xff":1,"prompt":"%s"}' % sent
        answer = server.http.post(GENERATE, content=body)
        assert answer.status_code == 200, sent
        assert answer.json()["_debug_info"]["rendered_template"] == read, sent


def test_a_prompt_that_is_far_too_long_is_not_blamed_on_the_template(server: Server) -> None:
    answer = server.post(GENERATE, {"model": "turns", "prompt": "x" * (9 << 20)})
    assert (answer.status_code, answer.json()["error"]) == (400, "the prompt is longer than 8,388,608 characters; shorten it")


def test_a_request_may_bring_its_template(server: Server) -> None:
    assert server.rendered(GENERATE, model="echo", prompt="x", template="[{{ .Prompt }}]") == "[x]"
    assert server.rendered(GENERATE, model="turns", prompt="x", template="{{ .System }}|{{ .Prompt }}", system="s") == "s|hi\n\nx"
    # The engine that repeats its prompt says what it was sent.
    answer = server.ask(GENERATE, {"model": "echo", "prompt": "x", "template": "left {{ .Prompt }} right", "options": {"num_predict": 3}})
    assert answer["response"] == "left x right"


def test_what_stands_after_is_for_a_template_that_mentions_it(server: Server) -> None:
    assert server.rendered(GENERATE, model="middle", prompt="a", suffix="b") == "<pre>a<suf>b<mid>"
    assert server.rendered(GENERATE, model="middle", prompt="a") == "a"
    assert "insert" in server.post("/api/show", {"model": "middle"}).json()["capabilities"]
    answer = server.post(GENERATE, {"model": "turns", "prompt": "a", "suffix": "b"})
    assert (answer.status_code, answer.json()) == (400, {"error": "registry.ollama.ai/library/turns:latest does not support insert"})


def test_raw_stays_raw_and_a_crooked_template_is_in_its_way_only_where_it_is_needed(server: Server) -> None:
    assert server.rendered(GENERATE, model="turns", prompt="as it is", raw=True) == "as it is"
    assert server.rendered(GENERATE, model="crooked", prompt="as it is", raw=True) == "as it is"
    assert server.rendered(GENERATE, model="crooked", prompt="x", template="{{ .Prompt }}!") == "x!"
    answer = server.post(GENERATE, {"model": "crooked", "prompt": "x"})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("the model crooked:latest has a template that")
    assert server.ask(GENERATE, {"model": "crooked", "prompt": ""})["done_reason"] == "load"


def test_a_long_conversation_is_cut_to_fit_its_template(server: Server) -> None:
    turns = [{"role": ("user", "assistant")[n % 2], "content": f"turn{n} " + "word " * 30} for n in range(20)]
    turns.append({"role": "user", "content": "last"})
    body = {"model": "turns", "messages": turns, "options": {"num_ctx": 256, "num_predict": 1}}
    answer = server.ask(CHAT, body)
    assert answer["truncated"] > 0
    assert answer["prompt_eval_count"] < 256
    shown = server.rendered(CHAT, **body)
    assert shown.startswith("<system>be brief</system>")
    assert shown.endswith("<user>last</user>")
    assert "turn0 " not in shown
    refused = server.post(CHAT, body | {"truncate": False})
    assert refused.status_code == 400
    assert "longer than the context length" in refused.json()["error"]


def test_an_endless_template_ends_in_a_sentence_and_keeps_nobody_waiting(server: Server) -> None:
    for template in ('{{ define "t" }}{{ template "t" . }}{{ end }}{{ template "t" . }}', '{{ printf "%999999999d" 1 }}'):
        answer = server.post(GENERATE, {"model": "echo", "prompt": "x", "template": template})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"].startswith("the template is wrong at line 1"), answer.text


def test_the_catalogues_template_says_what_the_weights_own_does(start: Start, real_store: Any) -> None:
    store, name = Store(real_store), names.parse(REAL)
    manifest = json.loads(store.find(name).path.read_bytes())
    kept = [layer for layer in manifest["layers"] if not layer["mediaType"].endswith((".template", ".system"))]
    assert len(kept) == len(manifest["layers"]) - 2
    store.commit(names.parse("bare"), json.dumps(manifest | {"layers": kept}).encode())
    server = start(real_store)
    server.ask(GENERATE, {"model": REAL, "prompt": ""})
    turns = [("user", 'Name <one> & "only" colour.\n'), ("assistant", "  Red."), ("user", "And né 另一个?")]
    plain = [{"role": role, "content": content} for role, content in turns]
    for messages in (plain[:1], plain, [{"role": "system", "content": "Be brief."}, *plain]):
        ours, engines = (server.rendered(CHAT, model=model, messages=messages) for model in (REAL, "bare"))
        assert ours == engines
        assert tokens(server, ours) == tokens(server, engines)
    assert server.rendered(GENERATE, model=REAL, prompt="Hi") == server.rendered(GENERATE, model="bare", prompt="Hi")
