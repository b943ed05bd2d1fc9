"""The mission's own commands, line by line and letter for letter, with the shim `ollama` and a registry inside the house.

The registry is a mirror of ours that has the real smollm2:135m under the names that the lines ask for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_server import free_port
from mirrors import Mirror
from ndani.names import parse
from ndani.store import Store
from server import PATIENCE, Server, serving, until
from stores import REAL, link, shorten

DATA = Path(__file__).parent / "data"
pytestmark = pytest.mark.weights


def commands(file: str) -> list[str]:
    """The commands of an example, its placeholder filled."""
    text = (DATA / file).read_text(encoding="utf-8").replace("<model>", "phi4:mini")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Server]:
    """A server with an empty store, whose registry has what the examples ask for."""
    folder = tmp_path_factory.mktemp("seed")
    shelf = link(models, folder / "shelf")
    shorten(shelf, 12)
    store = Store(shelf)
    # The variants only as the public library spells them: they are found all the same.
    for name in ("qwen2.5:3b", "phi4:mini", "phi4-mini:3.8b-fp16", "phi4-mini:3.8b-q8_0", "phi4-mini:3.8b-q4_K_M"):
        store.copy(parse(REAL), parse(name))
    mirror = Mirror(shelf, folder)
    with serving(folder, folder / "models", NDANI_REGISTRY=f"http://{mirror.host}") as server:
        yield server
    assert mirror.close() == 0


def surroundings(house: Server, shims: Path, **more: str) -> dict[str, str]:
    """The environment of a terminal in the house, with the shims on its path."""
    path = f"{shims}{os.pathsep}{os.environ['PATH']}"
    return {**house.environment, "NDANI_HOST": f"127.0.0.1:{house.port}", "PATH": path, **more}


def type_in(house: Server, shims: Path, line: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """One line, as a shell reads it."""
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=surroundings(house, shims, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@contextlib.contextmanager
def typed_server(house: Server, shims: Path, text: str, folder: Path, **more: str) -> Iterator[Path]:
    """What starts a server, typed at a terminal that stays open; yields its log. `NDANI_HOST` goes before a host that is typed."""
    log = folder / "typed.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["bash", "-c", text],
            env=surroundings(house, shims, **more),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        until(lambda: "listening on" in log.read_text() or process.poll() is not None, "the server listens")
        assert process.poll() is None, log.read_text()
        yield log
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(PATIENCE)


@pytest.fixture(scope="module")
def shims(house: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shims."""
    folder = tmp_path_factory.mktemp("bin")
    command = [sys.executable, "-P", "-m", "ndani", "shims", "install", "--force", "--dir", str(folder)]
    subprocess.run(command, env=house.environment, check=True, capture_output=True)
    return folder


def test_model_commands(house: Server, shims: Path, tmp_path: Path) -> None:
    said = (DATA / "02-Modelfile").read_text(encoding="utf-8")
    # Knowledge files are another example's matter.
    (tmp_path / "Modelfile").write_text(
        "".join(line for line in said.splitlines(True) if not line.startswith(("FILE", "# Custom model k")))
    )
    done = {}
    for line in commands("01-model-commands.sh"):
        done[line.partition("#")[0].strip()] = got = type_in(house, shims, line, tmp_path)
        assert got.returncode == 0, f"{line}\n{got.stdout}\n{got.stderr}"
        assert "Traceback" not in got.stderr, line
        assert "Error" not in got.stderr, line
    assert done["ollama pull qwen2.5:3b"].stderr.endswith("success\n")
    assert {row.split()[0] for row in done["ollama list"].stdout.splitlines()} == {"NAME", "qwen2.5:3b", "phi4:mini"}
    assert done["ollama rm phi4:mini"].stdout == "deleted 'phi4:mini'\n"
    assert done['ollama run phi4:mini "Explain quantum computing"'].stdout.strip(), "pulled again, and it answers"
    store = Store(house.models)
    assert store.find(parse("enterprise-assistant")).params["temperature"] == 0.7


def test_quantization_variants(house: Server, shims: Path, tmp_path: Path) -> None:
    for line in commands("07-quantization-variants.sh"):
        got = type_in(house, shims, line, tmp_path)
        assert got.returncode == 0, f"{line}\n{got.stderr}"
        assert got.stderr.endswith("success\n"), f"{line}\n{got.stderr}"
        assert Store(house.models).find(parse(line.split()[-1])).weights.size, "under the name that was typed"


def test_memory_and_threads(house: Server, shims: Path, tmp_path: Path) -> None:
    serve, *runs = commands("06-memory-and-threads.sh")
    here = {"NDANI_HOST": f"127.0.0.1:{free_port()}", "NDANI_DEBUG": "1"}
    with typed_server(house, shims, serve, tmp_path, **here) as log:
        for line, how in zip(runs, ("num_thread=8 num_gpu=35", ""), strict=True):
            got = type_in(house, shims, line, tmp_path, **here)
            assert got.returncode == 0, f"{line}\n{got.stderr}"
            assert how in log.read_text()
    assert "has no effect" not in log.read_text()


def test_performance(house: Server, shims: Path, tmp_path: Path) -> None:
    here = {"NDANI_HOST": f"127.0.0.1:{free_port()}"}
    *exports, serve = commands("14-performance.sh")
    with typed_server(house, shims, "\n".join([*exports, serve]), tmp_path, **here) as log:
        shown = type_in(house, shims, "\n".join([*exports, "ollama config show"]), tmp_path, **here)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert "has no effect" not in log.read_text()
        values = {row.split()[0]: row.split()[1:] for row in shown.stdout.splitlines()}
        assert values["num_parallel"] == ["4", "OLLAMA_NUM_PARALLEL"]
        assert values["max_loaded_models"] == ["2", "OLLAMA_MAX_LOADED_MODELS"]
        assert values["flash_attention"] == ["true", "OLLAMA_FLASH_ATTENTION"]
        assert values["max_memory"] == [str(8 << 30), "OLLAMA_MAX_VRAM"]
        assert values["keep_alive"] == ["10m0s", "OLLAMA_KEEP_ALIVE"]
        done = type_in(house, shims, 'ollama run phi4:mini "Hello" && ollama ps', tmp_path, **here)
        assert done.returncode == 0, done.stderr
        assert "10 minutes from now" in done.stdout or "9 minutes from now" in done.stdout, done.stdout
