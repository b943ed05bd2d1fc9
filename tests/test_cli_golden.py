"""Every recorded run of Ollama's command line, against a real `ndani serve` with a real model (see golden_cli.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli_server import free_port, serving, weights_store
from golden_cli import LATER, Result, Row, masked, plan, prepare, run, shortfalls

ROWS = plan()
NOW = [row for row in ROWS if not row.why_not]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder with the recorded Modelfiles, where the commands are run."""
    return tmp_path_factory.mktemp("modelfiles")


@pytest.fixture(scope="module")
def environment(tmp_path_factory, folder: Path, checkpoint: Path):
    """A server with the recorded models, and the environment in which `ndani` finds it."""
    with serving(tmp_path_factory.mktemp("golden"), free_port(), store=weights_store()) as found:
        prepare(found, folder, checkpoint)
        yield found


@pytest.mark.weights
@pytest.mark.parametrize("row", NOW, ids=lambda row: row.title)
def test_agrees_with_the_recorded_run(row: Row, environment: dict[str, str], folder: Path) -> None:
    # In order: `stop` and `ps` lean on the `run` rows before them.
    assert shortfalls(row, run(row.argv, environment, row.stdin, folder=folder)) == []


def test_the_comparer_agrees_with_the_recording_itself() -> None:
    for row in ROWS:
        assert shortfalls(row, row.want) == [], row.title


@pytest.mark.parametrize(
    ("argv", "spoil"),
    [
        (("list",), lambda r: Result(0, r.stdout.replace("SIZE", "size"), r.stderr)),
        (("list",), lambda r: Result(0, r.stdout.replace("98 MB", "98MB "), r.stderr)),
        (("list",), lambda r: Result(0, r.stdout.replace("NAME   ", "NAME     "), r.stderr)),
        (("ps",), lambda r: Result(0, r.stdout.replace("100% CPU", "CPU"), r.stderr)),
        (("show", "smollm2"), lambda r: Result(0, r.stdout.replace("Q4_1", "Q4_0"), r.stderr)),
        (("show", "smollm2"), lambda r: Result(0, r.stdout.replace("    completion", "  completion"), r.stderr)),
        (("show", "smollm2", "-v"), lambda r: Result(0, r.stdout.replace("1e-05", "0.00001"), r.stderr)),
        (("show", "terse"), lambda r: Result(0, r.stdout.replace("Apache-2.0    ", "Apache-2.0"), r.stderr)),
        (("show", "smollm2", "--license"), lambda r: Result(0, r.stdout.replace("\n", ""), r.stderr)),
        (("show", "terse", "--system"), lambda r: Result(0, r.stdout + "\n", r.stderr)),
        (("show", "terse", "--template"), lambda r: Result(0, r.stdout.replace("{{ end }}", "{{end}}"), r.stderr)),
        (("show", "terse", "--parameters"), lambda r: Result(0, r.stdout.replace("seed  ", "seed "), r.stderr)),
        (("show", "terse", "--modelfile"), lambda r: Result(0, r.stdout.replace("MESSAGE user Hi\n", ""), r.stderr)),
        (("create", "terse", "-f", "Modelfile"), lambda r: Result(0, r.stdout, r.stderr.replace("using existing", "creating new", 1))),
        (("create", "bad", "-f", "Modelfile.nofrom"), lambda r: Result(1, "", f"gathering model components\n{r.stderr}")),
        (("rm", "nope"), lambda r: Result(1, r.stderr, "")),
        (("rm", "nope"), lambda r: Result(2, "", r.stderr)),
        (("run", "nope", "hi"), lambda r: Result(1, "", r.stderr.replace("pulling manifest \n", ""))),
        (("run", "terse", "Hello", "--verbose"), lambda r: Result(0, r.stdout, r.stderr.replace("eval rate:   ", "eval rate: "))),
        (("run", "terse", "Hello"), lambda r: Result(0, r.stdout.rstrip(), r.stderr)),
        (("cp", "smollm2", "other"), lambda r: Result(0, "\x1b[K" + r.stdout, r.stderr)),
    ],
)
def test_the_comparer_sees(argv: tuple[str, ...], spoil) -> None:
    row = next(row for row in ROWS if row.argv == argv)
    assert shortfalls(row, spoil(row.want)) != []


def test_only_what_comes_later_is_left_out() -> None:
    left_out = [row for row in ROWS if row.why_not]
    assert len(NOW) >= 42
    for row in left_out:
        assert not row.argv or set(row.argv) & set(LATER), row.title


def test_masks_figures_and_nothing_else() -> None:
    assert masked("took 37.92ms, 98 MB, 42 seconds ago, cb2ae438f8cc") == "took <duration>, <size>, <time>, <id>"
    assert masked("Error: accepts 1 arg(s), received 0") == "Error: accepts 1 arg(s), received 0"
