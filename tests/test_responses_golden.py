"""/v1/responses as the real peers answer it, Ollama and Foundry Local: the comparer finds nothing that we do not mean."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Start
from ndani import names
from ndani.store import Store
from server import Server
from stores import REAL
from test_golden import COMPARER, GOLDEN, recorded

FOUNDRY = GOLDEN.with_name("foundry-sdk2.json")


def compare(server: Server, golden: Path, *flags: str) -> list[str]:
    command = [sys.executable, str(COMPARER), str(golden), server.url, "--only", "responses", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    return done.stdout.splitlines()


@recorded
@pytest.mark.weights
def test_as_ollama_answers_it(start: Start, tmp_path: Path, models: Path) -> None:
    # Exchanges lean on earlier ones, which make the models: a copy, and one with a template that has tools.
    weights = Store(models).find(names.parse(REAL)).weights_path
    lines = compare(start(tmp_path / "models"), GOLDEN, "--gguf", str(weights))
    assert [line for line in lines if "v1-responses" in line] == []
    assert lines[-1].startswith("4 agree, 0 do not"), lines


@recorded
@pytest.mark.weights
def test_as_foundry_local_answers_it(real: Server) -> None:
    lines = compare(real, FOUNDRY)
    assert lines[-1].startswith("2 agree, 0 do not"), lines
