"""Completion, in the shells themselves: what Tab makes of a line that is begun."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_server import NDANI, free_port, serving, surroundings
from golden_cli import run
from ndani.cli import commands
from server import until
from stores import put_echo
from terminal import PATIENCE, terminal

pytestmark = pytest.mark.slow

Home = dict[str, str]

#: What is typed, and what the line is after Tab (where one word is possible).
LINES = {
    "ndani verif": "ndani verify",
    "ndani show other:ta": "ndani show other:tag",
    "ndani cp uniq": "ndani cp unique:latest",
    "ndani show --modelf": "ndani show --modelfile",
    "ndani completion zs": "ndani completion zsh",
    "ndani config sh": "ndani config show",
    "ndani run --nowordwrap uniq": "ndani run --nowordwrap unique:latest",
    "ndani create x -f ./Model": "ndani create x -f ./Modelfile.mine",
    "ndani create x --file Model": "ndani create x --file Modelfile.mine",
    "ndani serve --log-file Model": "ndani serve --log-file Modelfile.mine",
    "ndani serve --models fold": "ndani serve --models folder/",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A server with models, and an environment in which shells find `ndani`."""
    folder = tmp_path_factory.mktemp("completion")
    for name in ("other:tag", "unique"):
        put_echo(folder / "models", name)
    (folder / "Modelfile.mine").touch()
    (folder / "folder.txt").touch()
    (folder / "folder").mkdir()
    with serving(folder, free_port()) as environment:
        yield {**environment, "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}", "PS1": "$ "}


def needs(shell: str):
    return pytest.mark.skipif(not shutil.which(shell), reason=f"no {shell} here")


INTERACTIVE = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source <(ndani completion bash)"),
    "zsh": (["zsh", "-f", "-i"], "autoload -U compinit && compinit -u -D && source <(ndani completion zsh)"),
}


@pytest.mark.parametrize("shell", [pytest.param(name, marks=needs(name)) for name in INTERACTIVE])
def test_tab_in_an_interactive_shell(home: Home, shell: str) -> None:
    argv, setup = INTERACTIVE[shell]
    with terminal(argv, home, "pty") as screen:
        screen.type(f"cd; {setup}; echo rea''dy\r")
        until(lambda: "ready" in screen.lines(), "the shell has the script", pause=0.05)
        for begun, whole in LINES.items():
            screen.type(begun)
            screen.press("Tab")
            try:
                until(lambda whole=whole: screen.lines()[-1].endswith(whole), whole, pause=0.05)
            except AssertionError:
                raise AssertionError(f"{begun} became:\n" + "\n".join(screen.lines()[-5:])) from None
            screen.press("C-u")
            screen.type("echo don''e\r")
            until(lambda: screen.lines()[-2:][0] == "done", "the next line", pause=0.05)


@needs("fish")
def test_fish(home: Home) -> None:
    asked = "; ".join(f"complete -C '{begun}'" for begun in LINES)
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"ndani completion fish | source; {asked}"],
        env=home, capture_output=True, text=True, timeout=PATIENCE, check=False, cwd=home["HOME"],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [whole.split()[-1] for whole in LINES.values()]


def words(environment: Home, line: str, shell: str = "bash") -> list[str]:
    """What is offered at the end of a line."""
    done = run((), {**environment, "_NDANI_COMPLETE": f"{shell}_complete", "COMP_LINE": line})
    assert (done.exit, done.stderr) == (0, ""), done
    return [word.partition(",")[2] for word in done.stdout.split()]


def test_every_command_is_offered(home: Home) -> None:
    assert words(home, "ndani ") == list(commands())
    assert words(home, "ndani s") == ["serve", "show", "stop", "shims"]


def test_models_stand_where_models_do(home: Home) -> None:
    models = ["other:tag", "unique:latest"]
    assert words(home, "ndani rm other:tag ") == models
    assert words(home, "ndani list ") == models
    for line in ("ndani run unique:latest ", "ndani cp unique ", "ndani serve ", "ndani stop "):
        assert words(home, line) == [], line
    assert run(("run", "unique"), home).exit == 0
    assert words(home, "ndani stop ") == ["unique:latest"], "what runs can be stopped"


def test_without_a_server_the_store_is_read(tmp_path: Path) -> None:
    put_echo(tmp_path / "models", "mine")
    assert words(surroundings(tmp_path, free_port()), "ndani show ") == ["mine:latest"]
    assert not (tmp_path / ".ndani").exists(), "no server was started for it"


@pytest.mark.parametrize("more", [{"NDANI_MAX_QUEUE": "many"}, {"NDANI_MODELS": "/proc/1/mem"}, {"_NDANI_COMPLETE": "cmd_complete"}])
def test_what_goes_wrong_is_silent(tmp_path: Path, more: Home) -> None:
    environment = surroundings(tmp_path, free_port()) | {"_NDANI_COMPLETE": "bash_complete", "COMP_LINE": "ndani show "} | more
    done = subprocess.run(NDANI, env=environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_an_unknown_shell_is_one_sentence(tmp_path: Path) -> None:
    done = run(("completion", "tcsh"), surroundings(tmp_path, free_port()))
    assert (done.exit, done.stdout, done.stderr) == (1, "", 'Error: there is no completion for "tcsh"; give one of bash, zsh, fish\n')
