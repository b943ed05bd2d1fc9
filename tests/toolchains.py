"""Builds the programs of `clients/` with the toolchain of their language, in a folder that is kept between runs.

A test that needs one calls `built`, which skips it with a reason where the toolchain is absent or too old.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from server import slowness

CLIENTS = Path(__file__).parent / "clients"
BUILDS = Path(__file__).parents[1] / ".cache" / "clients"
#: Asks for what is too large to be installed unasked.
FRAMEWORKS = "NDANI_TEST_FRAMEWORKS"


@dataclass(frozen=True)
class Toolchain:
    """How a folder of `clients/` is built and run. `run` is followed by a script's name, if it has several, and its arguments.

    `tool` must be of version `oldest` at least, as `version` prints it.
    """

    tool: str
    oldest: tuple[int, int]
    version: list[str]
    build: list[list[str]]
    run: list[str]
    large: bool = False


_NPM = [["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"]]
_NODE = ("node", (18, 0), ["node", "--version"], _NPM)
TOOLCHAINS = {
    "go": Toolchain("go", (1, 26), ["go", "version"], [["go", "build", "-o", "client", "."]], ["./client"]),
    "rust": Toolchain("cargo", (1, 85), ["cargo", "--version"], [["cargo", "build", "--quiet"]], ["target/debug/client"]),
    "node": Toolchain(*_NODE, ["node", "client.mjs"]),
    "java": Toolchain("java", (17, 0), ["java", "-version"], [], ["java", "Client.java"]),
    "node-sdks": Toolchain(*_NODE, ["node"]),
    "langchain4j": Toolchain(
        "mvn", (3, 8), ["mvn", "-version"], [["mvn", "-q", "-B", "package"]], ["java", "-cp", "target/classes:target/needed/*", "Client"]
    ),
    "python": Toolchain(
        sys.executable,
        (3, 11),
        [sys.executable, "--version"],
        [[sys.executable, "-m", "venv", "venv"], ["venv/bin/python", "-m", "pip", "install", "-q", "-r", "requirements.txt"]],
        ["venv/bin/python"],
        large=True,
    ),
}


def built(name: str) -> list[str]:
    """The command that runs a client in its folder of BUILDS; the test is skipped where that cannot be."""
    chain = TOOLCHAINS[name]
    if not shutil.which(chain.tool):
        pytest.skip(f"{chain.tool} is not installed")
    done = subprocess.run(chain.version, capture_output=True, text=True, timeout=60)
    match = re.search(r"(\d+)\.(\d+)", done.stdout + done.stderr)
    if not match:
        pytest.skip(f"{chain.tool} does not run here: {done.stderr.strip()[:100]}")
    if (int(match[1]), int(match[2])) < chain.oldest:
        pytest.skip(f"{chain.tool} is older than {chain.oldest[0]}.{chain.oldest[1]}")
    folder, mark = BUILDS / name, BUILDS / f"{name}.built"
    sources = sorted(path for path in (CLIENTS / name).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    # What is interpreted needs no new build when a script changes.
    compiled = [path for path in sources if path.suffix not in (".py", ".mjs")]
    state = hashlib.sha256(b"".join(path.read_bytes() for path in compiled)).hexdigest()
    fresh = mark.exists() and mark.read_text() == state
    if chain.large and not fresh and os.environ.get(FRAMEWORKS) != "1":
        pytest.skip(f"large packages are installed only with {FRAMEWORKS}=1")
    shutil.copytree(CLIENTS / name, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    if not fresh:
        for command in chain.build:
            made = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=600 * slowness())
            assert made.returncode == 0, made.stdout[-1000:] + made.stderr[-2000:]
        mark.write_text(state)
    return chain.run


def environment(**more: str) -> dict[str, str]:
    """This shell's, without settings of ndani or Ollama, and with loopback reached without a proxy."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OLLAMA_", "NDANI_"))}
    return {**kept, "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost", **more}
