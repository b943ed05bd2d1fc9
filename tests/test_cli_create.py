"""`ndani create` at the terminal: which files a Modelfile means, what is sent, and what is said of it."""

from __future__ import annotations

import asyncio
import os
import pty
import subprocess
import threading
from hashlib import sha256
from pathlib import Path

import pytest

from cli_server import NDANI, free_port, serving, surroundings
from golden_cli import run
from ndani.background import run_in_thread
from ndani.cli.create import build_request
from ndani.errors import BadRequest, NdaniError
from ndani.store.modelfile import parse
from stores import gguf

pytestmark = pytest.mark.slow

WEIGHTS = gguf("terminal")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("create"), free_port(), NDANI_OFFLINE="1") as found:
        yield found


def put(folder: Path, **files: bytes | str) -> Path:
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_a_path_is_the_modelfiles_own_and_a_name_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path, a_gguf=WEIGHTS, b_gguf=WEIGHTS)
    (tmp_path / "more").mkdir()
    put(tmp_path / "more", a_gguf=WEIGHTS, note_txt="x")
    for value in ("a.gguf", "./a.gguf", str(tmp_path / "a.gguf"), "~/a.gguf", "more/../a.gguf"):
        body, files = build_request(parse(f"FROM {value}"), tmp_path)
        assert "from" not in body, value
        assert [path.resolve() for path in files["files"].values()] == [tmp_path / "a.gguf"]
    assert build_request(parse("FROM more"), tmp_path)[1]["files"] == {"a.gguf": tmp_path / "more" / "a.gguf"}
    assert set(build_request(parse("FROM a.gguf\nFROM more/a.gguf"), tmp_path)[1]["files"]) == {"a.gguf", "1/a.gguf"}
    body, files = build_request(parse("FROM smollm2:135m\nADAPTER b.gguf\nPARAMETER context_length 9"), tmp_path)
    assert body == {"from": "smollm2:135m", "parameters": {"num_ctx": 9}}
    assert files["adapters"] == {"b.gguf": tmp_path / "b.gguf"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("FROM ./nobody.gguf", "the file ./nobody.gguf of FROM is not there"),
        ("FROM nobody.gguf", "the file nobody.gguf of FROM is not there"),
        ("FROM ~nobody-here/x", "the path ~nobody-here/x begins with the home of somebody who is not here"),
        (f"FROM {'x' * 5000}.gguf", f"the file {'x' * 80}… of FROM is not there"),
        (f"FROM x\nADAPTER {'x' * 5000}", f"the file {'x' * 80}… of ADAPTER is not there"),
        ("FROM x\nADAPTER nobody", "the file nobody of ADAPTER is not there"),
        ("FROM x\nFROM y", "there are two FROM lines with the name of a model"),
        ("FROM x\nDRAFT y", "DRAFT is not in this version"),
        ("FROM empty", "no Modelfile or safetensors files found"),
        ("FROM tensors", "only safetensors and GGUF files can be made into models in this version"),
        ("FROM checkpoint/model.safetensors", "checkpoint/model.safetensors is one file of a model"),
        ("FROM tensors/pytorch.bin", "only safetensors and GGUF files can be made into models in this version"),
        ("FROM x\nADAPTER tensors", "only a GGUF file can be an adapter in this version"),
        ("FROM x\nADAPTER checkpoint/model.safetensors", "supplied file was not in GGUF format"),
        ("FROM old.bin", "old.bin is a GGML file, the form before GGUF"),
        ("FROM pointer.gguf", "pointer.gguf is git's stand-in for the file"),
        ("FROM plain.gguf", "supplied file was not in GGUF format: plain.gguf"),
        ("FROM states", "the weights in states lie in folders of it; give one of them: checkpoint-10, checkpoint-20"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "tensors").mkdir()
    put(tmp_path / "tensors", pytorch_bin=b"PK\x03\x04")
    for name in ("checkpoint", "states/checkpoint-10", "states/checkpoint-20"):
        (tmp_path / name).mkdir(parents=True)
        put(tmp_path / name, model_safetensors=b"x")
    put(tmp_path, old_bin=b"lmgg" + bytes(99), pointer_gguf="version https://git-lfs.github.com/spec/v1\n", plain_gguf="hello, world")
    with pytest.raises(NdaniError) as met:
        build_request(parse(text), tmp_path)
    assert str(met.value).startswith(sentence)
    assert "\n" not in str(met.value)


def test_a_file_is_what_its_first_bytes_say(tmp_path: Path) -> None:
    put(tmp_path, model_bin=WEIGHTS, model_pth=WEIGHTS, model_safetensors=WEIGHTS, lora_bin=WEIGHTS)
    for name in ("model.bin", "model.pth", "model.safetensors"):
        assert build_request(parse(f"FROM ./{name}"), tmp_path)[1]["files"] == {name: tmp_path / name}
    assert build_request(parse("FROM x\nADAPTER lora.bin"), tmp_path)[1]["adapters"] == {"lora.bin": tmp_path / "lora.bin"}
    (tmp_path / "blobs").mkdir()
    put(tmp_path / "blobs", model_bin=WEIGHTS, notes_txt="hello", more_GGUF=WEIGHTS)
    assert set(build_request(parse("FROM blobs"), tmp_path)[1]["files"]) == {"model.bin", "more.GGUF"}


def test_what_a_training_program_leaves_behind_is_not_sent(tmp_path: Path) -> None:
    folder = tmp_path / "trained"
    kept = {"config.json", "tokenizer.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    kept |= {"model.safetensors.index.json", "chat_template.jinja", "1_Pooling/config.json"}
    left = {"training_args.bin", "optimizer.pt", "rng_state.pth", "trainer_state.json", "adapter_model.safetensors", "gguf/model.gguf"}
    left |= {f"checkpoint-10/{name.rpartition('/')[2]}" for name in kept} | {"original/consolidated.00.pth", "original/config.json"}
    left |= {"onnx/model.onnx", "onnx/config.json", "runs/events.json", "1_Pooling/notes.json", "model.fp16.safetensors"}
    for name in kept | left:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    assert set(build_request(parse("FROM trained"), tmp_path)[1]["files"]) == kept


def test_what_is_too_long_for_a_path_is_a_name(tmp_path: Path) -> None:
    assert build_request(parse(f"FROM {'x' * 5000}"), tmp_path) == ({"from": "x" * 5000}, {"files": {}, "adapters": {}})


def test_without_a_modelfile_the_weights_that_lie_here_are_meant(tmp_path: Path, environment: dict[str, str]) -> None:
    nothing = run(("create", "here"), environment, folder=tmp_path)
    assert (nothing.exit, nothing.stderr.splitlines()[-1]) == (1, "Error: no Modelfile or safetensors files found")
    put(tmp_path, m_gguf=WEIGHTS)
    asked = run(("create", "here", "-f", "Modelfile"), environment, folder=tmp_path)
    assert (asked.exit, asked.stderr.splitlines()[-1]) == (1, "Error: no Modelfile or safetensors files found")
    done = run(("create", "here"), environment, folder=tmp_path)
    assert (done.exit, done.stderr.splitlines()[-1].strip()) == (0, "success")


def test_a_file_is_sent_once_with_progress_and_no_escape(tmp_path: Path, environment: dict[str, str]) -> None:
    weights = WEIGHTS + bytes(3 << 20)
    put(tmp_path, m_gguf=weights, Modelfile="FROM ./m.gguf\nSYSTEM brief\nPARAMETER mirostat 1\n")
    digest = f"sha256:{sha256(weights).hexdigest()}"
    first = run(("create", "sent"), environment, folder=tmp_path)
    assert (first.exit, first.stdout) == (0, ""), first.stderr
    lines = [line.rstrip() for line in first.stderr.splitlines()]
    assert lines[0].startswith("Warning: line 3: parameter mirostat is deprecated")
    assert lines[1] == "gathering model components"
    assert lines[-1] == "success"
    assert f"copying file {digest}: 100% of 3.1 MB" in lines
    assert f"using existing layer {digest}" in lines
    again = run(("create", "other", "--file", str(tmp_path / "Modelfile")), environment)
    assert again.exit == 0
    assert "copying" not in again.stderr
    assert "\x1b" not in again.stderr
    assert run(("show", "other", "--system"), environment).stdout == "brief"


def test_what_show_prints_can_be_made_again(tmp_path: Path, environment: dict[str, str]) -> None:
    text = 'FROM m.gguf\nTEMPLATE """{{ .Prompt }}\n"""\nSYSTEM " a "\nPARAMETER stop <x>\nLICENSE free\nMESSAGE user hi\n'
    put(tmp_path, m_gguf=WEIGHTS, Modelfile=text)
    assert run(("create", "one"), environment, folder=tmp_path).exit == 0
    shown = run(("show", "one", "--modelfile"), environment).stdout
    put(tmp_path, Modelfile=shown)
    done = run(("create", "two"), environment, folder=tmp_path)
    assert done.exit == 0, done.stderr
    assert "creating new" not in done.stderr
    rows = {line.split()[0]: line.split()[1] for line in run(("list",), environment).stdout.splitlines()[1:]}
    assert rows["one:latest"] == rows["two:latest"]


def test_what_a_model_says_of_itself_steers_no_terminal(tmp_path: Path, environment: dict[str, str]) -> None:
    put(tmp_path, m_gguf=gguf("red", template="\x1b[31mred"), Modelfile="FROM m.gguf\n")
    assert run(("create", "red"), environment, folder=tmp_path).exit == 0
    assert run(("show", "red", "--template"), environment).stdout == "\x1b[31mred"  # into a pipe to the letter
    here, there = pty.openpty()
    with os.fdopen(here, "rb", buffering=0) as screen, os.fdopen(there, "wb", buffering=0) as out:
        shown = subprocess.run([*NDANI, "show", "red", "--template"], env=environment, stdout=out, stderr=subprocess.PIPE, timeout=60)
        assert shown.returncode == 0, shown.stderr
        assert screen.read(100) == "\ufffd[31mred".encode(), shown.stderr


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("FROM one\nFILE notes.txt\n", ["Error: (line 2): FILE is not in this version of ndani"]),
        ('FROM one\nSYSTEM """open\n', ["Error: unexpected EOF"]),
        ("FROM m.gguf\nTEMPLATE {{ .X\n", ["gathering model components", "Error: template error: the template is wrong at line 1"]),
        ("FROM m.gguf\nPARAMETER top_p 9\n", ["gathering model components", 'Error: option "top_p" must be between 0 and 1']),
        ("FROM nobody\n", ["gathering model components", "Error: NDANI_OFFLINE is set"]),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_made(tmp_path: Path, environment: dict[str, str], text: str, sentences: list[str]) -> None:
    put(tmp_path, m_gguf=WEIGHTS, Modelfile=text)
    done = run(("create", "wrong"), environment, folder=tmp_path)
    said = [line.rstrip() for line in done.stderr.splitlines() if not line.startswith(("reading", "copying", "pulling"))]
    assert done.exit == 1
    assert done.stdout == ""
    assert len(said) == len(sentences)
    assert all(line.startswith(begin) for line, begin in zip(said, sentences, strict=True))
    assert "wrong" not in run(("list",), environment).stdout


def test_a_wrong_modelfile_starts_no_server(tmp_path: Path) -> None:
    put(tmp_path, Modelfile="SYSTEM x\n")
    done = run(("create", "x"), surroundings(tmp_path, free_port()), folder=tmp_path)
    assert (done.exit, done.stderr.strip()) == (1, "Error: no FROM line")
    assert not (tmp_path / ".ndani").exists()


async def test_work_that_is_cancelled_is_waited_for() -> None:
    begun, go, done = threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        go.wait(60)
        done.append("done")
        raise BadRequest("nobody is there to be told")

    task = asyncio.create_task(run_in_thread(work))
    await asyncio.to_thread(begun.wait, 60)
    for _ in range(3):  # a task group cancels again until its tasks have left
        task.cancel()
        await asyncio.sleep(0.02)
        assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["done"]
