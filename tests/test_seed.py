"""The mission's own commands, line by line and letter for letter, with `ollama` meaning us and a registry inside the house.

The registry is a mirror of ours that has the real smollm2:135m under the names that the lines ask for.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrors import Mirror
from ndani.names import parse
from ndani.store import Store
from server import Server, serving
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


def type_in(house: Server, line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """One line, as a shell reads it."""
    bash = f'ollama() {{ {shlex.quote(sys.executable)} -m ndani "$@"; }}; {line}'
    environment = {**house.environment, "NDANI_HOST": f"127.0.0.1:{house.port}", "PATH": os.environ["PATH"]}
    return subprocess.run(
        ["bash", "-c", bash],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_model_commands(house: Server, tmp_path: Path) -> None:
    said = (DATA / "02-Modelfile").read_text(encoding="utf-8")
    # Knowledge files are another example's matter.
    (tmp_path / "Modelfile").write_text(
        "".join(line for line in said.splitlines(True) if not line.startswith(("FILE", "# Custom model k")))
    )
    done = {}
    for line in commands("01-model-commands.sh"):
        done[line.partition("#")[0].strip()] = got = type_in(house, line, tmp_path)
        assert got.returncode == 0, f"{line}\n{got.stdout}\n{got.stderr}"
        assert "Traceback" not in got.stderr, line
        assert "Error" not in got.stderr, line
    assert done["ollama pull qwen2.5:3b"].stderr.endswith("success\n")
    assert {row.split()[0] for row in done["ollama list"].stdout.splitlines()} == {"NAME", "qwen2.5:3b", "phi4:mini"}
    assert done["ollama rm phi4:mini"].stdout == "deleted 'phi4:mini'\n"
    assert done['ollama run phi4:mini "Explain quantum computing"'].stdout.strip(), "pulled again, and it answers"
    store = Store(house.models)
    assert store.find(parse("enterprise-assistant")).params["temperature"] == 0.7


def test_quantization_variants(house: Server, tmp_path: Path) -> None:
    for line in commands("07-quantization-variants.sh"):
        got = type_in(house, line, tmp_path)
        assert got.returncode == 0, f"{line}\n{got.stderr}"
        assert got.stderr.endswith("success\n"), f"{line}\n{got.stderr}"
        assert Store(house.models).find(parse(line.split()[-1])).weights.size, "under the name that was typed"
