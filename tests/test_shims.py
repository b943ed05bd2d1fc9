"""`ndani shims`: what is installed, what is refused, and that a shim is ndani under another name."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ndani.cli import shims
from server import Server

Type = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def typed(tmp_path: Path) -> Type:
    """Types a command in a home of its own; `path` is put before what is needed of the system."""

    def run(*words: str, path: tuple[Path, ...] = (), **more: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("NDANI_", "OLLAMA_"))}
        places = os.pathsep.join([*map(str, path), "/usr/bin", "/bin"])
        environment = {**kept, "HOME": str(tmp_path / "home"), "PATH": places, "NDANI_HOST": "127.0.0.1:1", **more}
        return subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)

    return run


def ndani(*words: str) -> tuple[str, ...]:
    return sys.executable, "-P", "-m", "ndani", *words


def program(path: Path, says: str = "real") -> Path:
    """A program of somebody else's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {says}\n")
    path.chmod(0o755)
    return path


def test_a_shim_runs_this_installation_from_any_folder() -> None:
    text = shims.script("ollama")
    first, second, third = text.splitlines()
    assert first == "#!/bin/sh"
    assert "ndani" in second
    words = shlex.split(third)
    assert words[:4] == ["exec", sys.executable, "-P", "-c"]
    assert 'program="ollama"' in words[4]
    assert words[5:] == ["$@"]


@pytest.mark.slow
def test_what_is_installed_is_ndani_under_that_name(typed: Type, tmp_path: Path, echo: Server) -> None:
    folder = tmp_path / "a folder's bin"
    done = typed(*ndani("shims", "install", "--dir", str(folder)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"installed {folder / name}" for name in shims.PROGRAMS]
    assert f'export PATH="{folder}:$PATH"' in done.stderr, "it is not on the path"
    assert "a shim of" not in done.stdout

    here = {"path": (folder,), "NDANI_HOST": f"127.0.0.1:{echo.port}"}
    assert typed("ollama", "list", **here).stdout == typed(*ndani("list"), **here).stdout != ""
    assert typed("ollama", "help", **here).stdout.replace("ollama [", "ndani [").replace("help for ollama", "help for ndani") == (
        typed(*ndani("help"), **here).stdout.replace("for ollama, f", "for ndani, f")
    )
    unknown = typed("ollama", "nope", **here)
    assert (unknown.returncode, unknown.stderr) == (1, 'Error: unknown command "nope" for "ollama"\n')
    assert re.match(r"ollama version is \d+\.\d+\.\d+\n", typed("ollama", "--version", **here).stdout)
    assert typed("foundry", "--version", **here).stdout.startswith("foundry of ndani, version ")
    assert typed("foundry-local", "--version", **here).stdout.startswith("foundry-local of ndani, version ")
    assert typed("foundry", "service", "status", **here).stdout == f"Model management service is running on {echo.url}/openai/status\n"
    assert "unknown command" in typed("foundry", "init", **here).stderr, "that is foundry-local's"

    again = typed(*ndani("shims", "install", "--dir", str(folder)), path=(folder,))
    assert (again.returncode, again.stderr) == (0, ""), "a shim may cover a shim"
    table = typed(*ndani("shims", "list"), path=(folder,)).stdout
    assert [line.split()[0] for line in table.splitlines()] == ["NAME", *shims.PROGRAMS]
    assert table.count("  ndani") == 3
    removed = typed(*ndani("shims", "remove"), path=(folder,))
    assert removed.stdout.splitlines() == [f"removed {folder / name}" for name in shims.PROGRAMS]
    assert list(folder.iterdir()) == []
    assert typed(*ndani("shims", "remove"), path=(folder,)).stdout == "no shim of ndani's is installed\n"


@pytest.mark.slow
def test_another_program_is_covered_only_by_force_and_comes_back(typed: Type, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    real = program(folder / "foundry")
    refused = typed(*ndani("shims", "install", "--dir", str(folder)))
    assert refused.returncode == 1
    assert (
        refused.stderr
        == f"Error: {real} is another program, which the shim would cover; choose another --dir, or use --force to cover it\n"
    )
    assert list(folder.iterdir()) == [real], "none of the three"

    assert typed(*ndani("shims", "install", "--dir", str(folder), "--force")).returncode == 0
    assert typed(*ndani("shims", "install", "--dir", str(folder), "--force")).returncode == 0, "a second time changes nothing"
    assert typed("foundry", "--version", path=(folder,)).stdout.startswith("foundry of ndani")
    removed = typed(*ndani("shims", "remove", "--dir", str(folder)))
    assert f"removed {real}; {real} is again what it was" in removed.stdout
    assert list(folder.iterdir()) == [real]
    assert typed("foundry", path=(folder,)).stdout == "real\n"


@pytest.mark.slow
def test_a_program_further_back_on_the_path_counts_as_covered(typed: Type, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    real = program(theirs / "ollama")
    install = ndani("shims", "install", "--dir", str(ours))
    refused = typed(*install, path=(ours, theirs))
    assert refused.returncode == 1
    assert str(real) in refused.stderr
    assert not ours.exists()
    done = typed(*install, path=(theirs, ours))
    assert done.returncode == 0, "there it covers nothing"
    assert done.stderr == f"Warning: {real} comes before {ours / 'ollama'} on the path\n"
    rows = typed(*ndani("shims", "list"), path=(theirs, ours)).stdout.splitlines()
    assert rows[1].split() == ["ollama", str(real), "another", "program"]
    assert typed(*ndani("shims", "remove", "--dir", str(ours))).returncode == 0
    assert typed(*install, "--force", path=(ours, theirs)).returncode == 0
    assert typed("ollama", path=(ours, theirs)).stdout.startswith("Small language models")
    assert real.read_text() == "#!/bin/sh\necho real\n"


@pytest.mark.slow
def test_the_default_folder_is_on_the_path_or_the_users_own(typed: Type, tmp_path: Path) -> None:
    own = tmp_path / "home" / ".local" / "bin"
    done = typed(*ndani("shims", "install"))
    assert done.stdout.splitlines()[0] == f"installed {own / 'ollama'}"
    assert typed(*ndani("shims", "remove")).stdout.count("removed ") == 3
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    for folder in (in_the_way, in_the_way / "below", Path("/proc/nowhere")):
        failed = typed(*ndani("shims", "install", "--dir", str(folder)))
        assert failed.returncode == 1
        assert failed.stderr.startswith("Error: ")
        assert failed.stderr.count("\n") == 1
        assert str(folder) in failed.stderr
