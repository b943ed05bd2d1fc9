"""Commands as children: without a server, with an empty one, and with a real model (rows of Ollama's: test_cli_golden.py)."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cli_server import NDANI, end_server_on, free_port, listeners, serving, surroundings, weights_store
from golden_cli import run
from ndani.cli import commands
from stores import shorten

pytestmark = pytest.mark.slow

PATIENCE = 300.0  # seconds; a busy machine is six times slower than a desk
SHORT = 16  # tokens of an answer whose words do not matter

# ---------------------------------------------------------------- without a server


@pytest.fixture
def alone(tmp_path: Path) -> dict[str, str]:
    return surroundings(tmp_path, free_port())


@pytest.mark.parametrize("argv", [("list",), ("ps",), ("show", "x"), ("cp", "a", "b"), ("rm", "x"), ("stop", "x")])
def test_without_a_server_each_command_says_what_to_do(argv: tuple[str, ...], alone: dict[str, str]) -> None:
    done = run(argv, alone)
    assert (done.exit, done.stdout, done.stderr) == (1, "", "Error: could not connect to ndani server, run 'ndani serve' to start it\n")


def test_the_version_without_a_server(alone: dict[str, str]) -> None:
    from ndani import __version__

    done = run(("--version",), alone)
    assert (done.exit, done.stderr) == (0, "")
    assert done.stdout == f"Warning: could not connect to a running ndani instance\nWarning: client version is {__version__}\n"
    assert run(("-v",), alone) == done


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (("nope",), 'unknown command "nope" for "ndani"'),
        (("create",), "accepts 1 arg(s), received 0"),
        (("create", "../x"), "invalid model name"),
        (("create", "x", "-q", "q9_9"), "unsupported quantization type Q9_9 - supported types are F32, F16, BF16, "),
        (("create", "x", "-q", "iq2_xs"), "IQ2_XS has so few bits that it needs an importance matrix"),
        (("create", "x", "-f"), "flag needs an argument: -f"),
        (("create", "x", "-f", "~nobody-here/x"), "the path ~nobody-here/x begins with the home of somebody who is not here"),
        (("lst",), 'unknown command "lst" for "ndani"\n\nDid you mean this?\n\tlist'),
        (("rum", "m"), 'unknown command "rum" for "ndani"\n\nDid you mean this?\n\trm\n\trun'),
        (("list", "--nope"), "unknown flag: --nope"),
        (("--nope",), "unknown flag: --nope"),
        (("list", "-xy"), "unknown shorthand flag: 'x' in -xy"),
        (("run",), "requires at least 1 arg(s), only received 0"),
        (("cp", "a"), "accepts 2 arg(s), received 1"),
        (("show", "a", "b"), "accepts 1 arg(s), received 2"),
        (("serve", "now"), "accepts 0 arg(s), received 1"),
        (("serve", "--max-queue", "many"), "--max-queue is 'many': a whole number"),
        (("run", "m", "hi", "--keepalive"), "flag needs an argument: --keepalive"),
        (("run", "m", "hi", "--keepalive", "soon"), 'time: invalid duration "soon"'),
        (("run", "m", "hi", "--verbose=perhaps"), 'invalid argument "perhaps" for "--verbose" flag'),
        (("run", "m", "hi", "--think=hard"), 'invalid value for --think: "hard"'),
        (("run", "m", "hi", "--format", "xml"), "--format must be json, or a JSON Schema object"),
        (("run", "m", "hi", "--format", "[1]"), "--format must be json, or a JSON Schema object"),
        (("run", "m", "hi", "--dimensions", "some"), 'invalid argument "some" for "--dimensions" flag'),
        (("run", "m", "hi", "--truncate=perhaps"), 'invalid argument "perhaps" for "--truncate" flag'),
        (("help", "nope"), 'unknown help topic "nope"'),
        (("prune", "now"), "accepts 0 arg(s), received 1"),
        (("verify", "../x"), "invalid model name"),
        (("list", "a", "b"), "accepts at most 1 arg(s), received 2"),
        (("ps", "a", "b"), "accepts at most 1 arg(s), received 2"),
        (("verify", "a", "b"), "accepts at most 1 arg(s), received 2"),
        (("completion",), "accepts 1 arg(s), received 0"),
        (("serve", "--nohistory", "1"), "unknown flag: --nohistory"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(argv: tuple[str, ...], sentence: str, alone: dict[str, str]) -> None:
    done = run(argv, alone)
    assert (done.exit, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: {sentence}")
    assert "Traceback" not in done.stderr
    assert listeners(int(alone["NDANI_HOST"].split(":")[1])) == [], "a wrong command line starts no server"


@pytest.mark.parametrize("command", list(commands()))
def test_every_command_has_help(command: str, alone: dict[str, str]) -> None:
    done = run((command, "--help"), alone)
    assert (done.exit, done.stderr) == (0, "")
    assert f"Usage:\n  ndani {command}" in done.stdout
    assert f"help for {command}" in done.stdout
    assert run(("help", command), alone) == done


def test_config_show_says_where_each_value_came_from(alone: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / ".ndani").mkdir()
    (tmp_path / ".ndani" / "config.toml").write_text("max_queue = 7\n")
    done = run(("config", "show"), {**alone, "OLLAMA_KEEP_ALIVE": "90s", "OLLAMA_VULKAN": "1"})
    cells = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()[1:]}
    assert cells["keep_alive"] == ["1m30s", "OLLAMA_KEEP_ALIVE"]
    assert cells["max_queue"] == ["7", str(tmp_path / ".ndani" / "config.toml")]
    assert cells["load_timeout"] == ["5m0s", "default"]
    assert cells["host"][1] == "NDANI_HOST"
    assert done.exit == 0
    assert "OLLAMA_VULKAN is set, but has no effect" in done.stderr


def test_a_listing_imports_nothing_heavy(alone: dict[str, str]) -> None:
    code = "import sys; from ndani.cli import main; main(['list']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=alone, capture_output=True, text=True, timeout=PATIENCE)
    heavy = {"aiohttp", "asyncio", "prompt_toolkit", "rich", "starlette", "uvicorn", "msgspec", "xllamacpp", "psutil", "numpy", "ctypes"}
    assert not heavy & set(done.stdout.split())


def test_a_server_that_cannot_start_gives_its_own_sentence(alone: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    try:
        done = run(("pull", "smollm2:135m"), {**alone, "NDANI_LOG_FILE": str(tmp_path / "file" / "server.log")})
    finally:
        end_server_on(int(alone["NDANI_HOST"].split(":")[1]))
    assert done.exit == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert str(tmp_path / "file") in done.stderr
    assert done.stderr.count("\n") == 1


# ---------------------------------------------------------------- with a server


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A server with an empty store."""
    with serving(tmp_path_factory.mktemp("empty"), free_port()) as environment:
        yield environment


def test_an_empty_server(empty: dict[str, str]) -> None:
    from ndani import __version__

    assert run(("list",), empty).stdout.split() == ["NAME", "ID", "SIZE", "MODIFIED"]
    assert run(("ps",), empty).stdout.split() == ["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"]
    assert json.loads(run(("list", "--json"), empty).stdout) == {"models": []}
    assert json.loads(run(("ps", "--json"), empty).stdout) == {"models": []}
    assert run(("--version",), empty).stdout == f"ndani version is {__version__}\n"


def test_an_unknown_model_is_pulled_in_vain(empty: dict[str, str]) -> None:
    done = run(("run", "nope", "hi"), empty)
    assert (done.exit, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert lines[0] == "pulling manifest"
    assert lines[-1].startswith("Error: ")
    assert len(lines) == 2


def test_a_reader_that_leaves_is_no_error(empty: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m ndani help run | true; exit ${{PIPESTATUS[0]}}"],
        env=empty,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode in (0, 141)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("line", "code", "out"), [("list >&-", 0, ""), ("nope 2>&-", 1, ""), ("verify 2>&-", 0, "0 files checked"), ("list <&-", 0, "NAME")]
)
def test_a_stream_that_is_closed_is_one_that_leads_nowhere(empty: dict[str, str], line: str, code: int, out: str) -> None:
    done = subprocess.run(["bash", "-c", f"{sys.executable} -m ndani {line}"], env=empty, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout[: len(out) or None], done.stderr) == (code, out, "")


def test_a_name_that_is_no_text_is_no_name(empty: dict[str, str]) -> None:
    done = run(("show", "a\udcff"), empty)
    assert (done.exit, done.stderr) == (1, "Error: invalid model name\n")


def test_a_server_in_the_background_is_for_this_machine_alone(tmp_path: Path) -> None:
    port = free_port()
    try:
        done = run(("pull", "127.0.0.1:9/x/y"), surroundings(tmp_path, port, NDANI_HOST=f"0.0.0.0:{port}"))
        heard = {c.laddr.ip for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.port == port}
        assert heard == {"127.0.0.1"}
        begun = f"started ndani in the background at http://127.0.0.1:{port}, for this machine alone (`ndani serve` listens on 0.0.0.0); it"
        assert done.stderr.startswith(begun)
    finally:
        end_server_on(port)


def test_the_help_of_serve_says_defaults_and_every_name(alone: dict[str, str]) -> None:
    done = run(("serve", "--help"), alone).stdout
    for flag in ("--host string", "--models string", "--keep-alive duration", "--load-timeout duration"):
        assert "(default " in next(line for line in done.splitlines() if flag in line)
    assert "--max-queue int" in done
    assert "--offline bool" in done
    assert "OLLAMA_KEEP_ALIVE is read too" in done


def test_a_terminal_without_a_prompt_is_told_what_is_needed(empty: dict[str, str]) -> None:
    here, there = pty.openpty()
    with contextlib.closing(os.fdopen(here, "rb", buffering=0)), os.fdopen(there, "rb", buffering=0) as terminal:
        done = subprocess.run([*NDANI, "run", "smollm2"], env=empty, stdin=terminal, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Error: a prompt is needed")


def test_several_commands_at_once_start_one_server(tmp_path: Path) -> None:
    port = free_port()
    environment = surroundings(tmp_path, port)
    children = [
        subprocess.Popen(
            [*NDANI, "pull", "127.0.0.1:9/x/y"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    said = [child.communicate(timeout=PATIENCE)[1] for child in children]
    try:
        started = [
            text
            for text in said
            if text.startswith(f"started ndani in the background at http://127.0.0.1:{port}; it stops after 10 idle minutes\n")
        ]
        assert len(started) == 1, said
        assert all("pulling manifest\nError: " in text for text in said)
        assert len(listeners(port)) == 1
        log = tmp_path / ".ndani" / "logs" / "server.log"
        assert log.stat().st_mode & 0o077 == 0
    finally:
        end_server_on(port)


# ---------------------------------------------------------------- with a model


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A server that has smollm2:135m, which stops after SHORT tokens; `long` goes on until it is stopped."""
    with serving(tmp_path_factory.mktemp("smollm2"), free_port(), store=weights_store()) as environment:
        assert run(("cp", "smollm2:135m", "long"), environment).exit == 0
        shorten(Path(environment["NDANI_MODELS"]), SHORT)
        # Loaded here, so that no test below waits for more than its own answer.
        assert run(("run", "smollm2:135m"), environment, timeout=PATIENCE).exit == 0
        yield environment


@pytest.mark.weights
def test_an_answer_comes_in_pieces_and_ends_with_an_empty_line(smollm2: dict[str, str]) -> None:
    arrivals = []
    with subprocess.Popen(
        [*NDANI, "run", "smollm2:135m", "Count", "from one to ten."], env=smollm2, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout
        text = b""
        while piece := os.read(child.stdout.fileno(), 65536):
            arrivals.append(time.monotonic())
            text += piece
    assert child.returncode == 0
    assert text.endswith(b"\n\n")
    assert len(arrivals) > 1
    assert b"\x1b" not in text


@pytest.mark.weights
def test_piped_text_comes_before_the_words(smollm2: dict[str, str]) -> None:
    done = run(("run", "smollm2:135m", "Which", "word is it?", "--verbose"), smollm2, stdin="The word is rabbit. " * 20, timeout=PATIENCE)
    assert done.exit == 0
    assert done.stdout.endswith("\n\n")
    counted = next(int(line.split()[3]) for line in done.stderr.splitlines() if line.startswith("prompt eval count"))
    assert counted > 100, "the piped text was not part of the prompt"


@pytest.mark.weights
def test_ctrl_c_ends_an_answer(smollm2: dict[str, str]) -> None:
    ask = [*NDANI, "run", "long", "Write a very long story about the sea."]
    with subprocess.Popen(ask, env=smollm2, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stderr
        assert os.read(child.stdout.fileno(), 100)
        child.send_signal(signal.SIGINT)
        assert child.wait(PATIENCE) == -signal.SIGINT
        assert child.stderr.read() == b""


@pytest.mark.weights
def test_ctrl_c_ends_a_shells_loop_too(smollm2: dict[str, str]) -> None:
    loop = f"for word in one two; do {shlex.join(NDANI)} run long Write; echo went on; done; echo after"
    with subprocess.Popen(
        ["bash", "-c", loop], env=smollm2, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as shell:
        assert shell.stdout
        assert os.read(shell.stdout.fileno(), 100)
        os.killpg(shell.pid, signal.SIGINT)
        rest = shell.stdout.read()
        assert shell.wait(PATIENCE) == -signal.SIGINT
        assert b"went on" not in rest
        assert b"after" not in rest


@pytest.mark.parametrize(("value", "traceback"), [("1", True), ("true", True), ("0", False), ("false", False), ("off", False), ("", False)])
def test_a_traceback_is_shown_to_who_asks_for_it(value: str, traceback: bool) -> None:
    code = "import sys; from ndani import cli; cli._run = lambda *_: 1 / 0; sys.exit(cli.main([]))"
    environment = {**os.environ, "NDANI_DEBUG": value}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert ("Traceback" in done.stderr) == traceback
    assert traceback or done.stderr == "Error: ndani itself went wrong (ZeroDivisionError); NDANI_DEBUG=1 shows where\n"


@pytest.mark.weights
def test_ps_and_show_as_json(smollm2: dict[str, str]) -> None:
    run(("run", "smollm2:135m"), smollm2, timeout=PATIENCE)
    (resident,) = json.loads(run(("ps", "--json"), smollm2).stdout)["models"]
    assert resident["name"] == "smollm2:135m"
    assert resident["pid"] > 0
    assert resident["slots"] >= 1
    assert json.loads(run(("show", "smollm2:135m", "--json"), smollm2).stdout)["details"]["family"] == "llama"
    assert ("(unconfined)" in run(("ps",), smollm2).stdout) == (resident["confinement"] == "unconfined")


@pytest.mark.weights
def test_doctor_finds_every_route_blocked(smollm2: dict[str, str]) -> None:
    done = run(("doctor",), smollm2, timeout=PATIENCE)
    assert done.exit == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("All ")
    assert done.stdout.count("blocked (") >= 13
