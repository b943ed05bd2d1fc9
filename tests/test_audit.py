"""Nothing is imported, decoded or opened for the first time inside a jail: children with a list of what they reach for."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

import gguf_files
from audit import audited
from checkpoints import read_safetensors, sources, write_safetensors
from ndani import names
from ndani.convert import SourceFile, Task
from ndani.convert.supervisor import Supervisor
from ndani.engines import LaunchOptions
from ndani.engines.client import RunnerClient
from ndani.engines.stream import Coalescer
from ndani.errors import BadRequest, LoadFailed, NdaniError
from ndani.runtime.folder import runtime_folder
from ndani.runtime.runner import Runner
from ndani.store import Store
from ndani.types import Message
from server import slowness
from spoils import Spoil, letters, rewrite, wordpiece
from steps import following
from stores import REAL
from weights import file, small

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="the jail whose inside is looked at is Linux's")]


async def convert(folder: Path, kind: str = "") -> str:
    """Have a folder's files made into one in a process of its own; what was wrong with them, or nothing."""
    checkpoint = (folder / "config.json").exists()
    with contextlib.ExitStack() as held:
        given = tuple(SourceFile(name, held.enter_context(path.open("rb")).fileno()) for name, path in sources(folder).items())
        out = held.enter_context((folder.parent / "made.gguf").open("w+b"))
        try:
            async with following(Supervisor(True).make, Task(given, out.fileno(), kind, 2, checkpoint)) as steps:
                async for _ in steps:
                    pass
        except BadRequest as error:
            return str(error)
    return ""


def recoded(name: str, codec: str) -> Spoil:
    return lambda folder: (folder / name).write_bytes((folder / name).read_text().encode(codec))


def filled(number: int) -> Spoil:
    """Every half of every number of one tensor, as F16."""

    def spoil(folder: Path) -> None:
        weights = read_safetensors(folder / "model.safetensors")
        name = next(name for name, numbers in weights.items() if numbers.ndim == 2)
        weights[name] = np.full(weights[name].shape, number, np.uint16).view(np.float16)
        write_safetensors(folder / "model.safetensors", weights)

    return spoil


def nothing(_: Path) -> None:
    pass


CONVERTED: list[tuple[str, Spoil, str]] = [
    ("llama", nothing, ""),
    ("pieces", nothing, ""),
    ("bert", nothing, ""),
    ("bert", wordpiece(letters()), ""),
    *(("llama", recoded(name, "utf-8-sig"), "") for name in ("config.json", "tokenizer.json")),
    *(("bert", recoded(name, "utf-8-sig"), "") for name in ("vocab.txt", "modules.json", "1_Pooling/config.json")),
    ("llama", recoded("config.json", "utf-16"), "config.json is not a JSON object"),
    ("llama", recoded("config.json", "utf-32"), "config.json is not a JSON object"),
    ("llama", recoded("tokenizer.json", "utf-16-le"), "tokenizer.json is not a JSON object"),
    ("bert", recoded("vocab.txt", "utf-16"), "vocab.txt is not UTF-8 text"),
    ("bert", recoded("modules.json", "utf-16"), "modules.json is not a JSON list"),
    ("llama", lambda folder: (folder / "chat_template.jinja").write_bytes("{{ é }}".encode("utf-16")), "chat_template.jinja is not UTF-8"),
    ("llama", rewrite("config.json", architectures=["\ud800"]), 'unsupported architecture "?"'),
    ("llama", filled(0x7C00), "the tensor "),  # infinite
    ("llama", filled(0x7C01), "the tensor "),  # no number, and one that a processor complains of
]


@pytest.mark.parametrize(("kind", "spoil", "says"), CONVERTED)
async def test_a_checkpoint(
    kind: str, spoil: Spoil, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(kind)
    spoil(folder)
    with audited(monkeypatch, tmp_path) as notes:
        said = await convert(folder)
    assert notes.read_text() == "", said
    assert said.startswith(says)
    assert bool(said) == bool(says)


@pytest.mark.parametrize("kind", ["Q4_K_M", "F32", ""])
async def test_gguf(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parts").mkdir()
    if kind:
        (tmp_path / "parts" / "m.gguf").write_bytes(file(*small(rows=512)))
    else:
        for number, part in enumerate(gguf_files.shards(gguf_files.tensors(5), 3)):
            (tmp_path / "parts" / f"m-{number}.gguf").write_bytes(part)
    with audited(monkeypatch, tmp_path) as notes:
        assert await convert(tmp_path / "parts", kind) == ""
    assert notes.read_text() == ""


async def speak(runner: Runner, text: str) -> None:
    """All that a front asks of a runner, with letters that are no ASCII, and what it refuses."""
    engine = RunnerClient(runner.socket, Coalescer())
    options = {"n_predict": 8, "temperature": 0.5, "seed": 1, "stop": ["é"], "cache_prompt": True}
    talk = (Message("system", "Überall"), Message("user", text))
    ids = await engine.tokenize(text)
    with contextlib.suppress(NdaniError):
        await engine.detokenize(tuple(ids))
    for asked in (text, ids, ""):
        with contextlib.suppress(NdaniError):
            async with aclosing(engine.complete(asked, options)) as chunks:
                async for _ in chunks:
                    pass
    with contextlib.suppress(NdaniError):
        await engine.render(talk)
    with contextlib.suppress(NdaniError):
        await engine.embed([text])


async def interrupt(runner: Runner) -> None:
    """What no front of ours says."""
    for line in (b"POST /completion HTTP/1.1\r\nContent-Length: 3\r\n\r\n\xff\xfe{", b"\x16\x03\x01\r\n\r\n"):
        reader, writer = await asyncio.open_unix_connection(runner.socket)
        writer.write(line)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reader.read(100), 1)
        writer.close()


async def test_the_echo_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with audited(monkeypatch, tmp_path) as notes, runtime_folder() as folder:
        runner = await Runner.spawn(LaunchOptions("echo"), -1, folder)
        await asyncio.wait_for(runner.ready(), 60 * slowness())
        await speak(runner, "naïve 東京 @delay=0.001 \U0001fa77 and so on")
        assert notes.read_text() == ""
        await runner.stop()
    assert notes.read_text() == ""


@pytest.mark.weights
async def test_the_real_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: Path) -> None:
    weights = Store(models).find(names.parse(REAL)).weights_path
    with audited(monkeypatch, tmp_path) as notes, runtime_folder() as folder:
        with weights.open("rb") as held:
            runner = await Runner.spawn(LaunchOptions("llama", slots=1, num_ctx=256), held.fileno(), folder)
            await asyncio.wait_for(runner.ready(), 120 * slowness())
        await speak(runner, "naïve 東京 \U0001fa77 and so on")
        await interrupt(runner)
        await runner.stop()
    assert notes.read_text() == ""


async def test_a_runner_whose_weights_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "none").write_bytes(b"GGUF and then something else")
    with audited(monkeypatch, tmp_path) as notes, runtime_folder() as folder, (tmp_path / "none").open("rb") as held:
        runner = await Runner.spawn(LaunchOptions("llama", slots=1, num_ctx=256), held.fileno(), folder)
        with pytest.raises(LoadFailed):
            await asyncio.wait_for(runner.ready(), 60 * slowness())
    assert notes.read_text() == ""


#: What each line reaches for is named in the list.
LATE = {
    "b'x'.decode('utf-8-sig')": "import encodings.utf_8_sig",
    "import tabnanny": "import tabnanny",
    "open('/etc/hosts')": "open /etc/hosts",
}


@pytest.mark.parametrize("line", LATE)
def test_it_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(f"from ndani import jail\nimport cProfile\njail.enter(jail.Policy(''))\n{line}\n")
    with audited(monkeypatch, tmp_path) as notes:
        subprocess.run([sys.executable, "-I", "-m", program], stderr=subprocess.DEVNULL, timeout=60)
    assert LATE[line] in notes.read_text()
    assert "cProfile" not in notes.read_text()
