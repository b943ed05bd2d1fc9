"""Blobs and create over HTTP: uploads that are cut off or lie, requests that are wrong, and models that come back the same."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import AsyncIterator, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from conftest import Start
from ndani import names
from ndani.errors import BadRequest
from ndani.store import Store, layout
from ndani.store.layout import digest_of
from ndani.store.modelfile import parse, to_request
from ndani.store.upload import receive
from server import Server, serving, until
from stores import gguf, put_echo
from test_malformed import judge

WEIGHTS = gguf("sent")
CREATE = "/api/create"
NEVER = f"sha256:{'1' * 64}"


def blob(content: bytes) -> str:
    return f"/api/blobs/{digest_of(content)}"


def files_of(server: Server) -> set[str]:
    folder = server.models / "blobs"
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


# ---------------------------------------------------------------- malformed


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("create") / "models"
    put_echo(store, "echo")
    with serving(store.parent, store, NDANI_OFFLINE="1") as started:
        for content in (WEIGHTS, WEIGHTS[:60], b"no weights", gguf("part", **{"split.count": 2})):
            assert started.http.post(blob(content), content=content).status_code == 201
        yield started


def from_model(**more: Any) -> dict[str, Any]:
    return {"model": "made", "from": "echo"} | more


def from_file(**more: Any) -> dict[str, Any]:
    return {"model": "made", "files": {"m.gguf": digest_of(WEIGHTS)}} | more


#: Body (bytes as they are, else as JSON), status, and how the sentence begins.
TABLE: list[tuple[Any, int, str]] = [
    (b"", 400, "missing request body"),
    (b"{", 400, "unexpected EOF"),
    (b"FROM echo", 400, "invalid JSON: "),
    (b"[1]", 400, "the request body must be a JSON object"),
    ({}, 400, "invalid model name"),
    (from_model(model=""), 400, "invalid model name"),
    (from_model(model="../made"), 400, "invalid model name"),
    (from_model(model=["made"]), 400, "model must be a string"),
    (from_model(model="a b"), 400, "invalid model name"),
    ({"model": "made"}, 400, "neither 'from' or 'files' was specified"),
    ({"model": "made", "files": {}}, 400, "neither 'from' or 'files' was specified"),
    ({"model": "made", "system": "no base"}, 400, "neither 'from' or 'files' was specified"),
    (from_model(**{"from": "/etc/passwd"}), 400, "invalid model name"),
    (from_model(**{"from": "../echo"}), 400, "invalid model name"),
    (from_model(**{"from": 3}), 400, "from must be a string"),
    (from_model(**{"from": "gpt:cloud"}), 403, "ollama cloud is disabled"),
    (from_file(files="m.gguf"), 400, "files must be an object"),
    (from_file(files={"m.gguf": 1}), 400, "files must be an object of digests by file name"),
    (from_file(files={"m.gguf": "sha256:12"}), 400, "invalid digest format"),
    (from_file(files={"m.gguf": f"md5:{'1' * 64}"}), 400, "invalid digest format"),
    (from_file(files={"m.gguf": f"sha256:../{'1' * 61}"}), 400, "invalid digest format"),
    (from_file(files={"m.gguf": NEVER}), 400, "the file m.gguf (sha256:1"),
    (from_file(files={"../m.gguf": NEVER}), 400, "file path must be relative"),
    (from_file(files={"/m.gguf": NEVER}), 400, "file path must be relative"),
    (from_file(files={"": NEVER}), 400, "file path must be relative"),
    (from_file(files={"m.gguf": digest_of(b"no weights")}), 400, "supplied file was not in GGUF format: m.gguf"),
    (from_file(files={"m.gguf": digest_of(WEIGHTS[:60])}), 400, "m.gguf is not a usable GGUF file"),
    (from_file(files={"m.gguf": digest_of(gguf("part", **{"split.count": 2}))}), 400, "m.gguf is one of 2 parts of a model"),
    (from_file(files={"a.gguf": digest_of(WEIGHTS), "b.gguf": digest_of(WEIGHTS)}), 400, "b.gguf is a second model"),
    (from_file(**{"from": "echo"}), 400, "m.gguf and echo:latest are both models"),
    (from_file(files={"model.safetensors": digest_of(b"no weights")}), 400, "there is no config.json beside the weights"),
    (from_model(adapters={"a.gguf": digest_of(WEIGHTS)}), 400, "a.gguf is not an adapter"),
    (from_model(adapters={"a.gguf": NEVER, "b.gguf": NEVER}), 400, "only one adapter is currently supported"),
    (from_model(adapters=[NEVER]), 400, "adapters must be an object"),
    (from_model(draft_files={"d.gguf": NEVER}), 400, "DRAFT is not in this version"),
    (from_model(template="{{ .Prompt"), 400, "template error: the template is wrong at line 1, column 1: "),
    (from_model(template="a\n{{ if }}x{{ end }}"), 400, "template error: the template is wrong at line 2, column "),
    (from_model(template="{{ end }}"), 400, "template error: the template is wrong at line 1, column "),
    (from_model(template="{{ range .Messages }}"), 400, "template error: the template is wrong at line 1, column "),
    (from_model(template="{{ nobody .Prompt }}"), 400, "template error: the template is wrong at line 1, column "),
    (from_model(template=["x"]), 400, "template must be a string"),
    (from_model(system={"a": 1}), 400, "system must be a string"),
    (from_model(license=5), 400, "license must be a string or an array of strings"),
    (from_model(license=["MIT", 5]), 400, "license must be a string or an array of strings"),
    (from_model(parameters=["seed"]), 400, "parameters must be an object"),
    (from_model(parameters={"num_ctx": "many"}), 400, 'option "num_ctx" must be of type integer'),
    (from_model(parameters={"num_ctx": 2.5}), 400, 'option "num_ctx" must be of type integer'),
    (from_model(parameters={"foo_bar": 3}), 400, "unknown parameter 'foo_bar'"),
    (from_model(parameters={"stop": "<x>"}), 400, 'option "stop" must be of type array'),
    (from_model(parameters={"stop": [1]}), 400, 'option "stop" must be of an array of strings'),
    (from_model(parameters={"temperature": True}), 400, 'option "temperature" must be of type float32'),
    (from_model(parameters={"temperature": -1}), 400, 'option "temperature" must be between'),
    (from_model(parameters={"top_p": 7}), 400, 'option "top_p" must be between'),
    (from_model(messages="hi"), 400, "messages must be an array"),
    (from_model(messages=["hi"]), 400, "messages[0] must be an object"),
    (from_model(messages=[{"role": "user", "content": 1}]), 400, "messages[0].content must be a string"),
    (from_model(messages=[{"role": "robot", "content": "x"}]), 400, "messages[0].role must be one of system, user, assistant"),
    (from_model(messages=[{"role": "user", "content": "x", "images": ["aGk="]}]), 400, "messages of a model hold text alone"),
    (from_model(requires="soon"), 400, "requires must be a valid semver"),
    (from_model(renderer="qwen3-coder"), 400, "RENDERER is not in this version"),
    (from_model(parser="qwen3"), 400, "PARSER is not in this version"),
    (from_model(quantize="q9_9"), 400, "unsupported quantization type Q9_9 - supported types are F32, F16, BF16, "),
    (from_model(quantization="q2_k_s"), 400, "Q2_K_S has so few bits that it needs an importance matrix"),
    (from_model(quantize=4), 400, "quantize must be a string"),
    (from_model(draft_quantize="q8_0"), 400, "draft_quantize requires a DRAFT model"),
    (from_model(remote_host="https://ollama.com"), 400, "remote_host is not in this version"),
    (from_model(stream="no"), 400, "stream must be true or false"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(TABLE)))
def test_a_wrong_request_is_one_sentence_and_makes_nothing(server: Server, number: int) -> None:
    body, status, begins = TABLE[number]
    before = files_of(server)
    for stream in (True, False):
        sent = body if isinstance(body, bytes) else json.dumps({"stream": stream} | body).encode()
        answer = server.http.post(CREATE, content=sent)
        assert answer.status_code == status, answer.text
        assert list(answer.json()) == ["error"]
        assert answer.headers["content-type"] == "application/json; charset=utf-8"
        judge(answer.json()["error"], begins)
    assert [model["name"] for model in server.http.get("/api/tags").json()["models"]] == ["echo:latest"]
    assert files_of(server) == before


@pytest.mark.parametrize(
    "digest", ["x", "sha256:", f"sha256:{'g' * 64}", f"md5:{'1' * 64}", f"sha256:{'1' * 65}", "sha256:..%2f..%2fx", f"sha512-{'1' * 64}"]
)
def test_a_digest_that_is_none_is_refused_and_nothing_read(server: Server, digest: str) -> None:
    before = files_of(server)
    answer = server.http.post(f"/api/blobs/{digest}", content=b"x")
    assert (answer.status_code, answer.text) in [(400, '{"error":"invalid digest format"}'), (404, "404 page not found")]
    assert server.http.head(f"/api/blobs/{digest}").status_code == answer.status_code
    assert files_of(server) == before


# ---------------------------------------------------------------- uploads


def test_a_blob_is_there_once_it_is_sent_under_either_spelling(start: Start, tmp_path: Path) -> None:
    server, content = start(tmp_path / "models"), b"some bytes" * 300_000
    assert server.http.head(blob(content)).status_code == 404
    assert server.http.post(blob(content), content=content).status_code == 201
    dashed = blob(content).replace("sha256:", "sha256-")
    assert server.http.post(dashed, content=b"not read").status_code == 200
    assert server.http.head(blob(content)).status_code == server.http.head(dashed).status_code == 200
    assert (server.models / "blobs" / digest_of(content).replace(":", "-")).read_bytes() == content
    assert server.http.post(blob(b""), content=b"").status_code == 201


def test_other_bytes_are_refused_with_both_digests_and_nothing_stays(start: Start, tmp_path: Path) -> None:
    server = start(tmp_path / "models")
    answer = server.http.post(f"/api/blobs/{NEVER}", content=b"not these bytes")
    assert answer.status_code == 400
    assert answer.json() == {"error": f'digest mismatch, expected "{NEVER}", got "{digest_of(b"not these bytes")}"'}
    assert files_of(server) == set()
    assert server.http.head(f"/api/blobs/{NEVER}").status_code == 404


def test_an_upload_has_no_limit_of_size_and_costs_no_memory_chunked_or_not(start: Start, tmp_path: Path) -> None:
    server = start(tmp_path / "models", NDANI_MAX_BODY="1000")
    before = server.rss()
    for salt in (b"a", b"b"):
        piece, count = salt * (1 << 20), 64
        digest = sha256(piece * count).hexdigest()
        chunked = salt == b"a"
        headers = {} if chunked else {"content-length": str(count << 20)}
        answer = server.http.post(f"/api/blobs/sha256:{digest}", content=iter([piece] * count), headers=headers)
        assert answer.status_code == 201, answer.text
        assert server.rss() - before < 32 << 20
    # Everything else still has it, what only looks like an upload too.
    for path in ("/api/chat", CREATE, "/api/blobsy"):
        assert server.http.post(path, content=b"x" * 2000).status_code in (404, 413)


def cut_off(server: Server, content: bytes, sent: int) -> Any:
    line = server.connect()
    head = f"POST {blob(content)} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    line.sendall(head.encode() + content[:sent])
    until(lambda: any((server.models / "blobs").glob(".*")), "the upload has begun")
    return line


def test_a_client_that_leaves_in_the_middle_leaves_nothing(start: Start, tmp_path: Path) -> None:
    server, content = start(tmp_path / "models"), b"x" * (5 << 20)
    cut_off(server, content, 3 << 20).close()
    until(lambda: not files_of(server), "nothing of the upload is left")
    assert "status=499" in until(lambda: server.log if "/api/blobs/{digest}" in server.log else "", "the journal has it")
    assert server.http.head(blob(content)).status_code == 404
    assert server.http.post(blob(content), content=content).status_code == 201


def test_a_server_killed_in_the_middle_of_an_upload_takes_it_whole_the_next_time(start: Start, tmp_path: Path) -> None:
    server, content = start(tmp_path / "models"), gguf("killed") + b"x" * (5 << 20)
    cut_off(server, content, 3 << 20)
    server.kill()
    left = files_of(server)
    assert len(left) == 1
    assert left.pop().startswith("."), "what is left has no digest for a name"
    again = start(tmp_path / "models")
    assert again.http.head(blob(content)).status_code == 404
    assert again.post(CREATE, from_file(files={"m.gguf": digest_of(content)}) | {"stream": False}).status_code == 400
    assert again.http.post(blob(content), content=content).status_code == 201
    assert again.ask(CREATE, from_file(files={"m.gguf": digest_of(content)})) == {"status": "success"}


async def test_two_who_send_the_same_at_once_both_succeed(start: Start, tmp_path: Path) -> None:
    server, content = start(tmp_path / "models"), b"z" * (3 << 20)

    async def slowly() -> AsyncIterator[bytes]:
        for at in range(0, len(content), 1 << 18):
            await asyncio.sleep(0.01)
            yield content[at : at + (1 << 18)]

    async with httpx.AsyncClient(base_url=server.url, trust_env=False) as client:
        got = await asyncio.gather(*(client.post(blob(content), content=slowly()) for _ in range(3)))
    assert {answer.status_code for answer in got} <= {200, 201}
    assert files_of(server) == {digest_of(content).replace(":", "-")}


def test_a_full_disk_is_one_sentence_and_nothing_stays(start: Start, tmp_path: Path) -> None:
    server, content = start(tmp_path / "models"), b"y" * (6 << 20)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (2 << 20, resource.RLIM_INFINITY))
    answer = server.http.post(blob(content), content=content)
    assert answer.status_code == 500, answer.text
    assert answer.json()["error"].startswith("no room in the model store "), answer.text
    assert files_of(server) == set()
    assert server.http.get("/").status_code == 200


def test_a_disk_without_room_is_said_before_a_byte_is_read(start: Start, tmp_path: Path) -> None:
    server = start(tmp_path / "models")
    with server.connect() as line:
        line.sendall(f"POST /api/blobs/{NEVER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {10**18}\r\n\r\n".encode())
        said = line.recv(65536)
        while b"}" not in said:
            said += line.recv(65536)
    assert said.startswith(b"HTTP/1.1 500 ")
    assert b"no room in the model store" in said
    until(lambda: not files_of(server), "nothing of the upload is left")


async def test_what_fails_while_it_arrives_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")

    async def breaking() -> AsyncIterator[bytes]:
        yield b"x" * (2 << 20)
        raise BadRequest("gone")

    with pytest.raises(BadRequest, match="gone"):
        await receive(store, NEVER, 0, breaking())
    assert list(store.layout.blobs.iterdir()) == []


# ---------------------------------------------------------------- what is made


def test_a_model_of_a_file_and_one_of_that(start: Start, tmp_path: Path) -> None:
    server = start(tmp_path / "models")
    assert server.http.post(blob(WEIGHTS), content=WEIGHTS).status_code == 201
    body = from_file(template="{{ .Prompt }}", license="MIT", parameters={"num_ctx": 2048})
    steps = [line["status"] for line in server.lines(CREATE, body)]
    assert steps[:2] == ["parsing GGUF", f"using existing layer {digest_of(WEIGHTS)}"]
    assert steps[-2:] == ["writing manifest", "success"]
    assert server.ask(CREATE, from_model(model="next", system="brief", **{"from": "MADE"})) == {"status": "success"}
    shown = server.post("/api/show", {"model": "next"}).json()
    assert (shown["system"], shown["template"], shown["license"], shown["details"]["parent_model"]) == (
        "brief", "{{ .Prompt }}", "MIT", "made:latest",
    )  # fmt: skip
    assert server.ask(CREATE, from_model(model="next", parameters={"mirostat": 1}, **{"from": "next"})) == {"status": "success"}
    warned = [line["status"] for line in server.lines(CREATE, from_model(model="next", parameters={"mirostat": 1}, **{"from": "next"}))]
    assert [step for step in warned if step.startswith("warning: ")] == [
        "warning: parameter mirostat is deprecated: nothing obeys it, and it is left out"
    ]


def test_what_show_prints_makes_the_same_model_again(start: Start, tmp_path: Path) -> None:
    put_echo(tmp_path / "models", "echo", WEIGHTS)
    server = start(tmp_path / "models")
    server.ask(
        CREATE,
        from_model(
            model="first", template='{{ .System }}\n"{{ .Prompt }}" ', system="\nbrief\n", license=["one", "two\nlines"], requires="0.5.0",
            parameters={"num_ctx": 1024, "num_thread": 2, "temperature": 0.25, "stop": ["<a>", " b "]},
            messages=[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello\nyou"}],
        ),
    )  # fmt: skip
    read = parse(server.post("/api/show", {"model": "first"}).json()["modelfile"])
    files = {"m.gguf": digest_of(Path(read.froms[0]).read_bytes())}
    server.ask(CREATE, {"model": "second", "files": files} | to_request(read))
    layers = [{(layer.media_type, layer.digest) for layer in Store(server.models).find(names.parse(n)).layers} for n in ("first", "second")]
    assert layers[0] == layers[1]
    assert len(layers[0]) == 7


def test_parameters_of_a_modelfile_reach_the_runner(start: Start, tmp_path: Path) -> None:
    put_echo(tmp_path / "models", "echo")
    server = start(tmp_path / "models")
    body = to_request(parse("FROM echo\nPARAMETER context_length 1024\nPARAMETER num_thread 1\nPARAMETER num_predict 2"))
    assert body["parameters"] == {"num_ctx": 1024, "num_thread": 1, "num_predict": 2}
    server.ask(CREATE, from_model() | body)
    answer = server.ask("/api/generate", {"model": "made", "prompt": "a b c d e f"})
    assert answer["eval_count"] == 2
    assert server.resident()["made:latest"]["context_length"] == 1024
    # As another model has the same weights, the parameter is this name's alone.
    assert server.ask("/api/generate", {"model": "echo", "prompt": "a b", "options": {"num_predict": 3}})["eval_count"] == 3


def test_a_name_made_anew_answers_as_its_new_self_at_once(start: Start, tmp_path: Path) -> None:
    put_echo(tmp_path / "models", "echo")
    server = start(tmp_path / "models")
    for words in ("one", "two"):
        server.ask(CREATE, from_model(template=f"{words} {{{{ .Prompt }}}}"))
        shown = server.ask("/api/generate", {"model": "made", "prompt": "x", "_debug_render_only": True})
        assert shown["_debug_info"] == {"rendered_template": f"{words} x"}
    assert [layer.media_type for layer in Store(server.models).find(names.parse("made")).layers] == [layout.MODEL, layout.TEMPLATE]


def test_an_unknown_base_is_pulled_and_offline_that_is_refused(start: Start, tmp_path: Path) -> None:
    server = start(tmp_path / "models", NDANI_OFFLINE="1")
    answer = server.post(CREATE, from_model(stream=False, **{"from": "smollm2:135m"}))
    assert answer.status_code == 403
    assert "NDANI_OFFLINE" in answer.json()["error"]
    *begun, last = server.lines(CREATE, from_model(**{"from": "smollm2:135m"}))
    assert begun[0] == {"status": "pulling manifest"}
    assert "success" not in str(begun)
    assert "NDANI_OFFLINE" in last["error"]
    assert server.http.get("/api/tags").json() == {"models": []}
