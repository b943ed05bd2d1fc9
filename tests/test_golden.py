"""What the real Ollama answered, request by request, against ours: the comparer finds nothing that we do not mean."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, Start
from ndani import names
from ndani.store import Store
from server import Server
from stores import REAL
from weights import unpack

SHARED = ROOT.parent / "shared"
COMPARER, GOLDEN = SHARED / "tools" / "golden-compare", SHARED / "golden" / "ollama.json"

recorded = pytest.mark.skipif(
    not (COMPARER.exists() and GOLDEN.exists()), reason="the recordings of the real Ollama are not beside this repository"
)


def compare(server: Server, *flags: str) -> tuple[int, list[str]]:
    """How many exchanges agree, and a line for each shortfall."""
    command = [sys.executable, str(COMPARER), str(GOLDEN), server.url, *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    *short, last = done.stdout.rstrip("\n").split("\n")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert "agree" in last, done.stdout + done.stderr
    return int(last.split()[0]), short


@recorded
@pytest.mark.weights
def test_the_recorded_exchanges_agree(start: Start, tmp_path: Path, models: Path, checkpoint: Path) -> None:
    weights = Store(models).find(names.parse(REAL)).weights_path
    unpack(weights, tmp_path / "f16.gguf")
    files = ("--gguf", str(weights), "--f16", str(tmp_path / "f16.gguf"), "--minilm", str(checkpoint))
    agree, short = compare(start(tmp_path / "models"), *files)
    assert not short
    assert agree >= 157
