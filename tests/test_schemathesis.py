"""No request that the description of the routes allows, or forbids, makes a fault; a short run of `schemathesis_run`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import schemathesis_run
from conftest import Start
from stores import put_echo

SECONDS = 40


@pytest.mark.slow
def test_every_answer_has_its_described_shape(start: Start, tmp_path: Path) -> None:
    if schemathesis_run.program() is None:
        pytest.skip("schemathesis is not installed: pip install schemathesis, or name its program in SCHEMATHESIS")
    for name in ("echo", "other"):
        put_echo(tmp_path / "models", name)
    server = start(tmp_path / "models", NDANI_OFFLINE="1")
    done = schemathesis_run.run(server, tmp_path, SECONDS, "--phases", "fuzzing")
    assert done.returncode == 0, done.stdout
    found = re.search(r"(\d+) generated", done.stdout)
    assert found is not None
    assert int(found[1]) > 100, done.stdout
    assert server.health()["counts"]["failures"] == 0
    assert "fault of its own" not in server.log
