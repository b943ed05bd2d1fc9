"""The mission's Node.js program, unchanged, with axios and express as published: it asks at Ollama's own address for `phi4:mini`.

Its two ports are fixed, so it runs with its server in a network of its own, where both are free.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from server import slowness
from stores import link
from toolchains import BUILDS, built, environment

PROGRAM = "04-node-express.js"

#: What runs in the new network: loopback, the server, the program, and a user of the program.
SCRIPT = """
ip link set lo up
"$PYTHON" -m ndani serve 2>serve.log &
server=$!
(cd "$FOLDER" && exec node 04-node-express.cjs) >program.log 2>&1 &
program=$!
for try in $(seq 600); do
  curl -sf http://localhost:11434/api/version >/dev/null && curl -s http://localhost:3000 >/dev/null && break
  sleep 0.2
done
curl -sS -X POST http://localhost:3000/api/chat -H 'content-type: application/json' -d "$ASKED"
kill $program $server
wait
"""


@pytest.mark.weights
@pytest.mark.slow
def test_the_program_answers(tmp_path: Path, models: Path) -> None:
    for tool in ("unshare", "ip", "curl"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    alone = ["unshare", "--user", "--map-root-user", "--net"]
    if subprocess.run([*alone, "ip", "link", "set", "lo", "up"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody make a network of its own")
    built("node-sdks")
    # The folder's other scripts are modules, and this one is not: its name must say so.
    shutil.copy(Path(__file__).parent / "data" / PROGRAM, BUILDS / "node-sdks" / "04-node-express.cjs")
    link(models, tmp_path / "models", "phi4:mini")
    own = {
        "PYTHON": sys.executable,
        "FOLDER": str(BUILDS / "node-sdks"),
        "ASKED": json.dumps({"message": "What is the capital of France?"}),
        "HOME": str(tmp_path),
        "NDANI_MODELS": str(tmp_path / "models"),
    }
    done = subprocess.run(
        [*alone, "bash", "-c", SCRIPT],
        cwd=tmp_path,
        env=environment(**own),
        capture_output=True,
        text=True,
        timeout=300 * slowness(),
    )
    logs = "\n".join((tmp_path / name).read_text() for name in ("serve.log", "program.log") if os.path.exists(tmp_path / name))
    assert done.returncode == 0, done.stderr + logs
    answer = json.loads(done.stdout)
    assert list(answer) == ["response"], logs
    assert answer["response"].strip()
