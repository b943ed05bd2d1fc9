"""`create` with `quantize`, and of a model in parts: over HTTP and at the terminal, to its end and broken off."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from conftest import Start
from golden_cli import run
from ndani import names
from ndani.store import Store, layout
from ndani.store.layout import digest_of
from server import Server, serving, until
from stores import REAL
from test_quantise import OLLAMAS_Q8_0
from weights import file, numbers, small, split, types_of, unpack

pytestmark = pytest.mark.slow

CREATE = "/api/create"
#: A model of a few megabytes, and one that keeps two threads busy for some seconds in the slowest kind.
QUICK, LONG = file(*small(rows=600)), 60_000


def put_blob(server: Server, content: bytes) -> str:
    """A blob of the server's store, put there behind its back, which takes no time; its digest."""
    return Store(server.models).blobs.put(content)


def blobs(server: Server) -> set[str]:
    return {path.name for path in (server.models / "blobs").iterdir()}


def workers(server: Server) -> list[psutil.Process]:
    """Processes of this server that make weights."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [p for p in psutil.Process(server.pid).children() if "ndani.convert.worker_main" in p.cmdline()]
    return []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("quantise") / "models"
    with serving(store.parent, store, NDANI_OFFLINE="1") as started:
        yield started


@pytest.fixture(scope="module")
def long(server: Server) -> str:
    """The digest of weights that take their time."""
    return put_blob(server, file(*small(rows=LONG)))


def test_a_file_becomes_a_quantised_model_with_every_step(server: Server) -> None:
    digest = put_blob(server, QUICK)
    lines = server.lines(CREATE, {"model": "made", "files": {"m.gguf": digest}, "quantize": "q4_k_M", "system": "brief"})
    statuses = list(dict.fromkeys(line["status"] for line in lines))
    layers = {layer.media_type: layer for layer in Store(server.models).find(names.parse("made")).layers}
    model, system = layers[layout.MODEL], layers[layout.SYSTEM]
    assert statuses == [
        "parsing GGUF", "quantizing F16 model to Q4_K_M", "verifying conversion", f"creating new layer {model.digest}",
        f"creating new layer {system.digest}", "writing manifest", "success",
    ]  # fmt: skip
    work = [line for line in lines if line["status"].startswith("quantizing")]
    assert {line["digest"] for line in work} == {digest}
    assert work[-1]["completed"] == work[-1]["total"]
    shown = server.post("/api/show", {"model": "made"}).json()
    assert shown["details"]["quantization_level"] == "Q4_K_M"
    assert shown["model_info"]["general.file_type"] == 15
    assert types_of(server.models / "blobs" / model.digest.replace(":", "-"))["blk.1.ffn_down.weight"] == "Q6_K"
    again = server.lines(CREATE, {"model": "other", "files": {"m.gguf": digest}, "quantization": "Q4_K"})
    assert f"using existing layer {model.digest}" in [line["status"] for line in again]


def test_a_models_own_weights_are_quantised_and_the_rest_stays(server: Server) -> None:
    digest = put_blob(server, QUICK)
    server.ask(CREATE, {"model": "base", "files": {"m.gguf": digest}, "system": "brief", "template": "{{ .Prompt }}"})
    assert server.ask(CREATE, {"model": "less", "from": "base", "quantize": "Q8_0"}) == {"status": "success"}
    less, base = (Store(server.models).find(names.parse(name)) for name in ("less", "base"))
    assert [layer.digest for layer in less.layers[1:]] == [layer.digest for layer in base.layers[1:]]
    assert less.weights.digest != base.weights.digest
    assert less.config.file_type == "Q8_0"
    assert less.config.model_type == base.config.model_type == "477K"
    # What is of its kind already is taken as it is.
    server.ask(CREATE, {"model": "same", "from": "base", "quantize": "f16"})
    assert Store(server.models).find(names.parse("same")).weights.digest == base.weights.digest


def test_parts_are_joined_and_quantised(server: Server) -> None:
    keys, tensors = small(rows=600)
    parts = split(keys, tensors, 3)
    files = {name: put_blob(server, content) for name, content in reversed(parts.items())}
    lines = server.lines(CREATE, {"model": "joined", "files": files})
    statuses = list(dict.fromkeys(line["status"] for line in lines))
    assert statuses[:3] == ["parsing GGUF", "joining 3 parts", "verifying conversion"]
    assert statuses[-1] == "success"
    assert Store(server.models).find(names.parse("joined")).weights.digest == digest_of(QUICK)
    server.ask(CREATE, {"model": "both", "files": files, "quantize": "q8_0"})
    server.ask(CREATE, {"model": "one", "files": {"m.gguf": digest_of(QUICK)}, "quantize": "q8_0"})
    both, one = (Store(server.models).find(names.parse(name)).weights.digest for name in ("both", "one"))
    assert both == one


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"quantize": "q9_9"}, "unsupported quantization type Q9_9 - supported types are F32, F16, BF16, Q4_0"),
        ({"quantize": "iq1_s"}, "IQ1_S has so few bits that it needs an importance matrix"),
        (
            {"quantize": "q4_0", "from": "already"},
            "quantization is only supported for F16, BF16 and F32 models, and already:late",
        ),
        ({"parts": (0, 2)}, "small-00001-of-00003.gguf is one of 3 parts of a model, and part 2 (…-00002-of-00003.gguf) is missing"),
        ({"parts": (0, 1, 2), "whole": True}, "z.gguf is a second model"),
        ({"quantize": "q8_0", "nan": True}, "the tensor token_embd.weight cannot be quantized: it holds numbers that are not finite"),
        ({"quantize": "q8_0", "cut": True}, "m.gguf is not a usable GGUF file: the tensor blk.1.ffn_down.weight is cut off"),
    ],
)
def test_what_cannot_be_made_is_one_sentence_and_nothing_stays(server: Server, more: dict[str, Any], sentence: str) -> None:
    server.ask(CREATE, {"model": "already", "files": {"m.gguf": put_blob(server, QUICK)}, "quantize": "q5_0"})
    body: dict[str, Any] = {"model": "wrong", **{key: more[key] for key in ("quantize", "from") if key in more}}
    keys, tensors = small(rows=600)
    if "parts" in more:
        parts = list(split(keys, tensors, 3).items())
        body["files"] = {parts[number][0]: put_blob(server, parts[number][1]) for number in more["parts"]}
        body["files"] |= {"z.gguf": digest_of(QUICK)} if "whole" in more else {}
    elif "from" not in more:
        if "nan" in more:
            tensors[0] = (tensors[0][0], b"\xff\x7f" + tensors[0][1][2:])
        content = file(keys, tensors)
        body["files"] = {"m.gguf": put_blob(server, content[:-300] if "cut" in more else content)}
    before = blobs(server)
    for stream in (True, False):
        answer = server.post(CREATE, body | {"stream": stream})
        if stream and answer.status_code == 200:  # found in the middle of the work
            said = [json.loads(line) for line in answer.text.splitlines()][-1]
        else:
            assert answer.status_code == 400, answer.text
            said = answer.json()
        assert list(said) == ["error"]
        assert said["error"].startswith(sentence)
        assert str(server.models) not in said["error"]
    assert blobs(server) == before
    assert "wrong:latest" not in [model["name"] for model in server.http.get("/api/tags").json()["models"]]


def test_weights_that_no_name_came_of_are_removed(server: Server) -> None:
    folder = server.models / "manifests" / names.DEFAULT_HOST / names.DEFAULT_NAMESPACE
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "blocked").write_text("a file where a folder should be")
    body = {"model": "blocked", "files": {"m.gguf": put_blob(server, QUICK)}, "quantize": "q5_1"}
    lines = server.lines(CREATE, body)
    assert "error" in lines[-1], lines
    made = next(line["status"] for line in lines if line.get("status", "").startswith("creating new layer"))
    assert made.split()[-1].replace(":", "-") not in blobs(server)
    (folder / "blocked").unlink()
    assert server.lines(CREATE, body)[-1] == {"status": "success"}
    assert made.split()[-1].replace(":", "-") in blobs(server)


def test_a_client_that_leaves_ends_the_work(server: Server, long: str) -> None:
    before = blobs(server)
    with server.streaming(CREATE, {"model": "left", "files": {"m.gguf": long}, "quantize": "iq4_xs"}) as lines:
        until(lambda: next(lines)["status"].startswith("quantizing"), "the work begins")
        (worker,) = workers(server)
        assert len(blobs(server) - before) == 1
    until(lambda: not worker.is_running() and blobs(server) == before, "the work is ended, and nothing of it stays")


def test_a_maker_that_is_killed_is_said(server: Server, long: str) -> None:
    before = blobs(server)
    with server.streaming(CREATE, {"model": "shot", "files": {"m.gguf": long}, "quantize": "iq4_xs"}) as lines:
        until(lambda: next(lines)["status"].startswith("quantizing"), "the work begins")
        workers(server)[0].kill()
        *_, last = lines
    assert last["error"].startswith("the process that makes the weights was killed")
    assert blobs(server) == before


def test_a_server_that_is_stopped_ends_the_work(start: Start, tmp_path: Path) -> None:
    server = start(tmp_path / "models")
    digest = put_blob(server, file(*small(rows=LONG)))
    with server.streaming(CREATE, {"model": "late", "files": {"m.gguf": digest}, "quantize": "iq4_xs"}) as lines:
        until(lambda: next(lines)["status"].startswith("quantizing"), "the work begins")
        (worker,) = workers(server)
        server.process.send_signal(signal.SIGTERM)
        *_, last = lines
    assert last["error"].startswith("the server is stopping")
    assert server.process.wait(60) == 0
    assert not worker.is_running()
    assert blobs(server) == {digest.replace(":", "-")}


def test_a_disk_without_room_is_said_before_the_work(start: Start, tmp_path: Path) -> None:
    server = start(tmp_path / "models")
    digest = put_blob(server, file(*small(rows=3000)))
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    answer = server.post(CREATE, {"model": "big", "files": {"m.gguf": digest}, "quantize": "q8_0", "stream": False})
    assert answer.status_code == 500, answer.text
    assert answer.json()["error"].startswith("no room in the model store "), answer.text
    assert blobs(server) == {digest.replace(":", "-")}


def test_a_small_disk_is_one_sentence_and_keeps_no_half_of_a_file(start: Start) -> None:
    if os.geteuid():
        pytest.skip("needs root, to mount a small disk")
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, check=False).returncode:
            pytest.skip("this machine lets nobody mount a small disk")
        try:
            server = start(Path(folder) / "models")
            digest = put_blob(server, file(*small(rows=3500)))
            answer = server.post(CREATE, {"model": "big", "files": {"m.gguf": digest}, "quantize": "f32", "stream": False})
            sentence = answer.json()["error"]
            assert answer.status_code == 500, sentence
            assert sentence.startswith("no room in the model store ")
            assert "MB are needed" in sentence
            assert blobs(server) == {digest.replace(":", "-")}
            assert server.ask(CREATE, {"model": "small", "files": {"m.gguf": digest}, "quantize": "q4_0"}) == {"status": "success"}
            server.close()
        finally:
            subprocess.run(["umount", folder], check=True)


@pytest.mark.weights
def test_a_real_model_is_the_one_that_ollama_makes_and_answers(start: Start, tmp_path: Path, models: Path) -> None:
    server = start(tmp_path / "models")
    unpack(Store(models).find(names.parse(REAL)).weights_path, tmp_path / "f16.gguf")
    digest = put_blob(server, (tmp_path / "f16.gguf").read_bytes())
    server.ask(CREATE, {"model": "f16", "files": {"f16.gguf": digest}})
    done = run(("create", "q8", "-q", "q8_0"), at(server), folder=modelfile(tmp_path, "FROM f16\n"))
    assert done.exit == 0
    assert "quantizing F16 model to Q8_0: 100% of 269 MB" in [line.rstrip() for line in done.stderr.splitlines()]
    assert Store(server.models).find(names.parse("q8")).weights.digest == f"sha256:{OLLAMAS_Q8_0}"
    assert ["quantization", "Q8_0"] in [line.split() for line in run(("show", "q8"), at(server)).stdout.splitlines()]
    answer = server.ask("/api/generate", {"model": "q8", "prompt": "Hi", "options": {"num_predict": 4, "temperature": 0}})
    assert answer["eval_count"] == 4
    assert answer["response"]


def modelfile(folder: Path, text: str) -> Path:
    (folder / "Modelfile").write_text(text)
    return folder


def at(server: Server) -> dict[str, str]:
    return server.environment | {"NDANI_HOST": server.url}


def test_at_the_terminal_it_is_a_bar_and_ctrl_c_ends_it(server: Server, long: str, tmp_path: Path) -> None:
    server.ask(CREATE, {"model": "long", "files": {"m.gguf": long}})
    modelfile(tmp_path, "FROM long\n")
    before = blobs(server)
    screen, theirs = pty.openpty()
    command = [sys.executable, "-m", "ndani", "create", "ended", "-q", "iq4_xs"]
    environment = at(server) | {"TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs) as child:
        os.close(theirs)
        shown = seen(screen, "quantizing F16 model to IQ4_XS")
        until(lambda: workers(server), "the work begins")
        child.send_signal(signal.SIGINT)
        shown += seen(screen, "ended was not made; what was sent stays for the next `ndani create ended`")
        with contextlib.suppress(OSError):
            while more := os.read(screen, 65536):
                shown += more.decode(errors="replace")
        assert child.wait(60) == -signal.SIGINT, shown
    os.close(screen)
    assert "Traceback" not in shown
    assert "━" in shown
    until(lambda: not workers(server) and blobs(server) == before, "nothing of it stays")


def seen(screen: int, words: str) -> str:
    """What a terminal shows until it has shown these words."""
    shown, deadline = "", time.monotonic() + 60
    while words not in shown:
        assert time.monotonic() < deadline, shown
        shown += os.read(screen, 65536).decode(errors="replace")
    return shown


def test_numbers_of_a_test_are_numbers() -> None:
    assert len(numbers(100_000)) == 200_000
    assert numbers(5) == numbers(5) != numbers(5, 2)
