"""A hundred more wrong requests, about making and moving models: each its status and one clear sentence. No weights needed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from loras import lora
from ndani.errors import BadRequest
from ndani.store.layout import digest_of
from ndani.store.modelfile import check_grammar, parse
from server import Server, serving
from stores import gguf, put_echo
from test_malformed import judge

CREATE, PUSH, PULL, COPY, SHOW, DELETE = "/api/create", "/api/push", "/api/pull", "/api/copy", "/api/show", "/api/delete"
GENERATE, CHAT = "/api/generate", "/api/chat"
NEVER = f"sha256:{'1' * 64}"


MODEL, SECOND = gguf("whole"), gguf("second")
BLOBS = {
    "model": MODEL,
    "second": SECOND,
    "empty": b"",
    "text": b"hello",
    "magic": b"GGUF",
    "old": b"GGUF" + (1).to_bytes(4, "little") + bytes(64),
    "big": b"GGUF" + (3 << 24).to_bytes(4, "little") + bytes(64),
    "many": b"GGUF" + (3).to_bytes(4, "little") + (2**60).to_bytes(8, "little") * 2,
    "cut": MODEL[:100],
    "nameless": b"GGUF" + (3).to_bytes(4, "little") + bytes(16),
    "eyes": gguf("eyes", **{"general.type": "mmproj"}),
    "lora": lora(blocks=1),
    "lora-qwen": lora(blocks=1, general__architecture="qwen2"),
    "lora-ia3": lora(blocks=1, adapter__type="ia3"),
}


def from_file(kind: str = "model", **more: Any) -> dict[str, Any]:
    return {"model": "made", "files": {"m.gguf": digest_of(BLOBS[kind])}} | more


def over(**more: Any) -> dict[str, Any]:
    return {"model": "made", "from": "echo"} | more


def adapter(kind: str, **more: Any) -> dict[str, Any]:
    return over(adapters={"a.gguf": digest_of(BLOBS[kind])}) | more


def set_to(**parameters: Any) -> dict[str, Any]:
    return over(parameters=parameters)


TYPE, BETWEEN = 'option "{}" must be of type {}', 'option "{}" must be between {} and {}'
TEMPLATE_1 = "template error: the template is wrong at line 1, column "
TEMPLATE = "template error: the template is wrong at line {}, column {}: "

#: Route, body, status, how the sentence begins.
TABLE: list[tuple[str, Any, int, str]] = [
    # What a model is made of.
    (CREATE, over(model=None), 400, "invalid model name"),
    (CREATE, over(model={}), 400, "model must be a string"),
    (CREATE, over(model="made:"), 400, "invalid model name"),
    (CREATE, over(model=":tag"), 400, "invalid model name"),
    (CREATE, over(model="a/b/c/d/e"), 400, "invalid model name"),
    (CREATE, over(model="x" * 81), 400, "invalid model name"),
    (CREATE, over(model="-x"), 400, "invalid model name"),
    (CREATE, over(model="x\ny"), 400, "invalid model name"),
    (CREATE, over(model=f"{'h' * 256}/b/c"), 400, "invalid model name"),
    (CREATE, over(model="x:cloud"), 400, "the name x:cloud is one of Ollama's cloud"),
    (CREATE, over(model="x:8b-cloud"), 400, "the name x:8b-cloud is one of Ollama's cloud"),
    (CREATE, over(**{"from": "nobody"}), 403, "NDANI_OFFLINE is set"),
    (CREATE, over(**{"from": "made:"}), 400, "invalid model name"),
    (CREATE, over(**{"from": "echo:cloud"}), 403, "ollama cloud is disabled"),
    (CREATE, over(**{"from": ["echo"]}), 400, "from must be a string"),
    (CREATE, from_file("empty"), 400, "supplied file was not in GGUF format: m.gguf"),
    (CREATE, from_file("text"), 400, "supplied file was not in GGUF format: m.gguf"),
    (CREATE, from_file("magic"), 400, "m.gguf is not a usable GGUF file: it ends too early; send the whole file again"),
    (CREATE, from_file("old"), 400,
     "m.gguf is not a usable GGUF file: its version is 1, and 2 or 3 can be read; get it again, or convert it"),
    (CREATE, from_file("big"), 400, "m.gguf is not a usable GGUF file: its version is 50331648"),
    (CREATE, from_file("many"), 400, "m.gguf is not a usable GGUF file: it claims"),
    (CREATE, from_file("cut"), 400, "m.gguf is not a usable GGUF file: it ends too early; send the whole file again"),
    (CREATE, from_file("nameless"), 400, "m.gguf is not a usable GGUF file: it does not say its architecture; get it again, or convert it"),
    (CREATE, from_file("eyes"), 400, "there is a projector, but no model"),
    (CREATE, from_file("lora"), 400, "m.gguf is an adapter, not a model; name it with ADAPTER"),
    (CREATE, from_file(files={"a.gguf": digest_of(MODEL), "b.gguf": digest_of(SECOND)}), 400, "b.gguf is a second model"),
    (CREATE, from_file(**{"from": "echo"}), 400, "m.gguf and echo:latest are both models"),
    (CREATE, from_file(files={"a/../../m.gguf": NEVER}), 400, "file path must be relative"),
    (CREATE, from_file(files={"C:\\m.gguf": NEVER}), 400, "file path must be relative"),
    (CREATE, from_file(files={"./m.gguf": NEVER}), 400, "file path must be relative"),
    (CREATE, from_file(files={"m.gguf": None}), 400, "files must be an object of digests by file name"),
    (CREATE, from_file(files={"m.gguf": "1" * 64}), 400, "invalid digest format"),
    (CREATE, from_file(files={"m.gguf": NEVER + "1"}), 400, "invalid digest format"),
    (CREATE, from_file(files={"m.gguf": NEVER + "\n"}), 400, "invalid digest format"),
    (CREATE, from_file(files=[]), 400, "files must be an object"),
    (CREATE, from_file(files=7), 400, "files must be an object"),
    (CREATE, over(draft_files={"d.gguf": NEVER}), 400, "DRAFT is not in this version"),
    (CREATE, over(draft_files="d"), 400, "draft_files must be an object"),
    (CREATE, over(renderer="qwen3-coder"), 400, "RENDERER is not in this version"),
    (CREATE, over(parser="qwen3"), 400, "PARSER is not in this version"),
    (CREATE, over(remote_host="example.com"), 400, "remote_host is not in this version"),
    (CREATE, over(info={"a": 1}), 400, "info is not in this version"),
    (CREATE, over(info="a"), 400, "info must be an object"),
    (CREATE, over(requires="v"), 400, "requires must be a valid semver"),
    (CREATE, over(requires="1" * 101), 400, "requires must be a valid semver"),
    (CREATE, over(requires="1.x"), 400, "requires must be a valid semver"),
    (CREATE, over(requires=14), 400, "requires must be a string"),
    (CREATE, over(license={"text": "MIT"}), 400, "license must be a string or an array of strings"),
    (CREATE, over(license=["MIT", 2]), 400, "license must be a string or an array of strings"),
    (CREATE, over(system=["brief"]), 400, "system must be a string"),
    (CREATE, over(stream="no"), 400, "stream must be true or false"),
    # Adapters.
    (CREATE, adapter("model"), 400, "a.gguf is not an adapter; ADAPTER takes a LoRA in GGUF format"),
    (CREATE, adapter("lora"), 400, "a.gguf was made for another model"),
    (CREATE, adapter("lora-qwen"), 400, "a.gguf was made for a model of the kind qwen2, and this one is llama"),
    (CREATE, adapter("lora-ia3"), 400, "a.gguf is an adapter of the kind ia3"),
    (CREATE, adapter("text"), 400, "supplied file was not in GGUF format: a.gguf"),
    (CREATE, adapter("cut"), 400, "a.gguf is not a usable GGUF file"),
    (CREATE, over(adapters={"a.gguf": NEVER}), 400, "the file a.gguf (sha256:1"),
    (CREATE, over(adapters={"/a.gguf": NEVER}), 400, "file path must be relative"),
    (CREATE, over(adapters={"a.gguf": "x"}), 400, "invalid digest format"),
    (CREATE, over(adapters={"a.gguf": 1}), 400, "adapters must be an object of digests by file name"),
    (CREATE, {"model": "made", "adapters": {"a.gguf": digest_of(BLOBS["lora"])}}, 400, "neither 'from' or 'files' was specified"),
    # Messages and parameters.
    (CREATE, over(messages={}), 400, "messages must be an array"),
    (CREATE, over(messages=[[]]), 400, "messages[0] must be an object with role and content"),
    (CREATE, over(messages=[{"content": "x"}]), 400, "messages[0].role must be one of system, user, assistant"),
    (CREATE, over(messages=[{"role": "tool", "content": "x"}]), 400, "messages[0].role must be one of system, user, assistant"),
    (CREATE, over(messages=[{"role": "user", "content": ["x"]}]), 400, "messages[0].content must be a string"),
    (CREATE, over(messages=[{"role": "assistant", "tool_calls": [{}]}]), 400, "messages[0].tool_calls[0] must be"),
    (CREATE, over(parameters=[]), 400, "parameters must be an object"),
    (CREATE, over(parameters="num_ctx 5"), 400, "parameters must be an object"),
    (CREATE, set_to(num_ctx=1.5), 400, TYPE.format("num_ctx", "integer")),
    (CREATE, set_to(num_ctx=True), 400, TYPE.format("num_ctx", "integer")),
    (CREATE, set_to(num_ctx=-5), 400, BETWEEN.format("num_ctx", 0, 2147483647)),
    (CREATE, set_to(context_length="4k"), 400, TYPE.format("context_length", "integer")),
    (CREATE, set_to(num_thread=513), 400, BETWEEN.format("num_thread", -1, 512)),
    (CREATE, set_to(num_gpu="all"), 400, TYPE.format("num_gpu", "integer")),
    (CREATE, set_to(num_gpu=2**40), 400, 'option "num_gpu" must be between'),
    (CREATE, set_to(num_batch=0), 400, BETWEEN.format("num_batch", 1, 2147483647)),
    (CREATE, set_to(seed="x"), 400, TYPE.format("seed", "integer")),
    (CREATE, set_to(top_k=-2), 400, BETWEEN.format("top_k", -1, "")),
    (CREATE, set_to(top_p=1.01), 400, BETWEEN.format("top_p", 0, 1)),
    (CREATE, set_to(min_p=-0.1), 400, BETWEEN.format("min_p", 0, 1)),
    (CREATE, set_to(temperature="hot"), 400, TYPE.format("temperature", "float32")),
    (CREATE, set_to(temperature=1e39), 400, TYPE.format("temperature", "float32")),
    (CREATE, set_to(repeat_penalty=-1), 400, 'option "repeat_penalty" must be between'),
    (CREATE, set_to(use_mmap=1), 400, TYPE.format("use_mmap", "boolean")),
    (CREATE, set_to(stop="x"), 400, TYPE.format("stop", "array")),
    (CREATE, set_to(stop=["x", 1]), 400, 'option "stop" must be of an array of strings'),
    (CREATE, set_to(**{"nobody's": 1}), 400, "unknown parameter 'nobody's'"),
    (CREATE, set_to(**{"x" * 500: 1}), 400, "unknown parameter 'xxx"),
    # Templates.
    (CREATE, over(template=["x"]), 400, "template must be a string"),
    (CREATE, over(template="{{"), 400, TEMPLATE.format(1, 1)),
    (CREATE, over(template="a\n{{ .Prompt }"), 400, TEMPLATE.format(2, 1)),
    (CREATE, over(template="{{ end }}"), 400, TEMPLATE_1),
    (CREATE, over(template="{{ if .Prompt }}x"), 400, TEMPLATE_1),
    (CREATE, over(template="{{ range }}{{ end }}"), 400, TEMPLATE_1),
    (CREATE, over(template="{{ .Prompt | nobody }}"), 400, TEMPLATE_1),
    (CREATE, over(template='{{ "open }}'), 400, TEMPLATE_1),
    (CREATE, over(template="{{ $x }}"), 400, TEMPLATE_1),
    (CREATE, over(template='{{ template "x" }}'), 400, TEMPLATE_1),
    (CREATE, over(template="{{ else }}"), 400, TEMPLATE_1),
    (CREATE, over(template="{{ . .. }}"), 400, TEMPLATE_1),
    # Names that are pushed, pulled, copied, shown, removed.
    (PUSH, {}, 400, "model is required"),
    (PUSH, {"model": "nobody"}, 404, "model 'nobody' not found"),
    (PUSH, {"model": "nobody", "stream": False}, 404, "model 'nobody' not found"),
    (PUSH, {"model": "http://"}, 400, "invalid model name"),
    (PUSH, {"model": "a b"}, 400, "invalid model name"),
    (PUSH, {"model": ["echo"]}, 400, "model must be a string"),
    (PUSH, {"model": "echo", "insecure": 1}, 400, "insecure must be true or false"),
    (PUSH, {"model": "echo", "stream": False}, 403, "NDANI_OFFLINE is set"),
    (PULL, {"model": "  "}, 400, "invalid model name"),
    (PULL, {"model": "https://"}, 400, "invalid model name"),
    (PULL, {"model": "ftp://host/a/b"}, 400, "invalid model name"),
    (PULL, {"model": "a:b:c"}, 400, "invalid model name"),
    (PULL, {"model": "a/b:c:d"}, 400, "invalid model name"),
    (PULL, {"model": "ns/..:x"}, 400, "invalid model name"),
    (PULL, {"model": "nobody", "stream": False}, 403, "NDANI_OFFLINE is set"),
    (PULL, {"model": "nobody"}, 403, "NDANI_OFFLINE is set"),
    (COPY, {"source": "echo", "destination": "a/b/c/d/e"}, 400, 'destination "a/b/c/d/e" is invalid'),
    (COPY, {"source": "echo", "destination": f"{'h' * 256}/b/c"}, 400, f"destination \"{'h' * 256}/b/c\" is invalid"),
    (COPY, {"source": "echo", "destination": "x:cloud"}, 400, "the name x:cloud is one of Ollama's cloud"),
    (COPY, {"source": "echo:", "destination": "x"}, 400, 'source "echo:" is invalid'),
    (SHOW, {"model": "a b"}, 400, "invalid model name"),
    (DELETE, {"model": "a/b/c/d/e"}, 400, 'name "a/b/c/d/e" is invalid'),
    (GENERATE, {"model": "a b", "prompt": "x"}, 400, "invalid model name"),
    (CHAT, {"model": "a//b", "messages": []}, 400, "invalid model name"),
]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("making") / "models"
    put_echo(store, "echo")
    with serving(store.parent, store, NDANI_OFFLINE="1") as started:
        for content in BLOBS.values():
            assert started.http.post(f"/api/blobs/{digest_of(content)}", content=content).status_code == 201
        yield started


@pytest.mark.parametrize(("path", "body", "status", "begins"), TABLE, ids=[f"{n}-{row[0][5:]}" for n, row in enumerate(TABLE)])
def test_the_right_status_and_one_clear_sentence(server: Server, path: str, body: Any, status: int, begins: str) -> None:
    content = json.dumps(body).encode()
    answer = server.http.request("DELETE" if path == DELETE else "POST", path, content=content)
    told = json.loads(answer.text.splitlines()[-1])
    assert list(told) == ["error"], answer.text
    clear(told["error"], begins)
    if len(answer.text.splitlines()) == 1:
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/json; charset=utf-8"


def clear(said: str, begins: str) -> None:
    judge(said, begins)
    assert said == said.strip()
    assert not re.search(r"internal|exception|None|null pointer", said)


#: Digests that are none, and bytes that are not those of their digest.
DIGESTS = [
    "x",
    "sha256",
    "sha256:",
    "sha256:12",
    "sha256:" + "g" * 64,
    "sha512:" + "1" * 64,
    "1" * 64,
    NEVER + "1",
    NEVER + "%0a",
    "sha256.." + "1" * 64,
]


@pytest.mark.parametrize("digest", DIGESTS)
def test_a_digest_that_is_none(server: Server, digest: str) -> None:
    answer = server.http.post(f"/api/blobs/{digest}", content=b"x")
    assert (answer.status_code, answer.json()) == (400, {"error": "invalid digest format"})
    assert server.http.head(f"/api/blobs/{digest}").status_code == 400


def test_bytes_of_another_digest(server: Server) -> None:
    for content in (b"", b"x", b"x" * 100_000):
        answer = server.http.post(f"/api/blobs/{NEVER}", content=content)
        assert answer.status_code == 400
        clear(answer.json()["error"], f'digest mismatch, expected "{NEVER}", got "{digest_of(content)}"')
    assert server.http.head(f"/api/blobs/{NEVER}").status_code == 404


#: A Modelfile, and how the sentence about it begins.
MODELFILES: list[tuple[str | bytes, str]] = [
    ("", "no FROM line"),
    ("# nothing\n\n", "no FROM line"),
    ("SYSTEM x\n", "no FROM line"),
    ("FROM\n", "(line 1): FROM has no value"),
    ("FROM    \nSYSTEM x\n", "(line 1): FROM has no value"),
    ('FROM ""\n', "(line 1): FROM has no value"),
    ("FROM x\nBOGUS y\n", '(line 2): command must be one of "from", "license", '),
    ("FROM x\n\n\nFRM y\n", "(line 4): command must be one of"),
    ("FROM x\n<html>\n", "(line 2): command must be one of"),
    ('FROM x\nSYSTEM "open\n', "unexpected EOF"),
    ('FROM x\nSYSTEM """open\nand on\n', "unexpected EOF"),
    ('FROM x\nTEMPLATE """a"" \n', "unexpected EOF"),
    ("FROM x\nPARAMETER\n", "unexpected EOF"),
    ("FROM x\nPARAMETER num_ctx\n", "unexpected EOF"),
    ("FROM x\nPARAMETER nobody 1\n", "unknown parameter 'nobody'"),
    ("FROM x\nPARAMETER num_ctx many\n", "invalid int value [many]"),
    ("FROM x\nPARAMETER num_ctx 1.5\n", "invalid int value [1.5]"),
    ("FROM x\nPARAMETER num_ctx 99999999999999999999\n", "invalid int value [99999999999999999999]"),
    ("FROM x\nPARAMETER top_p high\n", "invalid float value [high]"),
    ("FROM x\nPARAMETER temperature 1e99\n", "invalid float value [1e99]"),
    ("FROM x\nPARAMETER temperature nan\n", "invalid float value [nan]"),
    ("FROM x\nPARAMETER use_mmap maybe\n", "invalid bool value [maybe]"),
    ("FROM x\nMESSAGE\n", "unexpected EOF"),
    ("FROM x\nMESSAGE user\n", "unexpected EOF"),
    ("FROM x\nMESSAGE robot hi\n", '(line 2): message role must be one of "system", "user", or "assistant"'),
    ("FROM x\nREQUIRES soon\n", "requires must be a valid semver"),
    ("FROM x\nADAPTER\n", "(line 2): ADAPTER has no value"),
    ("FROM x\nFILE notes.txt\n", "(line 2): FILE is not in this version"),
    (b"\xff\xfeF", "the Modelfile is not "),
    (b"FROM x\nSYSTEM \xff\xfe\n", "the Modelfile is not "),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(MODELFILES)))
def test_a_wrong_modelfile_is_one_sentence(number: int) -> None:
    text, begins = MODELFILES[number]
    content = text.encode() if isinstance(text, str) else text
    with pytest.raises(BadRequest) as met:
        check_grammar(content)
        parse(content)
    clear(str(met.value), begins)


def test_there_are_more_than_a_hundred_of_them() -> None:
    assert len(TABLE) + len(DIGESTS) + len(MODELFILES) > 150


def test_after_all_of_them_the_server_met_no_fault_of_its_own(server: Server) -> None:
    assert [m["name"] for m in server.http.get("/api/tags").json()["models"]] == ["echo:latest"], "nothing was made"
    assert server.process.poll() is None
    assert server.ask(CREATE, over(system="brief")) == {"status": "success"}
    assert "fault of its own" not in server.log
    assert "Traceback" not in server.log
