"""What a terminal is given: nothing that it would obey, whoever wrote it, and every letter that a person reads."""

from __future__ import annotations

import ast
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cli_server import NDANI, free_port, serving, surroundings
from conftest import ROOT
from golden_cli import run
from ndani.cli import formatting
from ndani.cli.progress import PlainLines, ProgressBars, follow
from ndani.cli.word_wrap import WordWrapper
from ndani.control_characters import replace_controls
from ndani.ledger.log import Log
from stores import gguf, put_echo
from terminal import Prompt, Pty, terminal

CLI = ROOT / "src" / "ndani" / "cli"
#: Sets a title, wipes the screen, moves, rings, goes back, and begins a sequence in one letter.
EVIL = "\x1b]0;owned\x07\x1b[2J\x1b[1;1H\b\b\x9b31m\x7f"
BYTES = EVIL.encode()
#: What must not reach a terminal, whatever escapes of ours do.
OBEYED = (b"\x1b]", b"\x1b[2J", b"\x1b[1;1H", b"\x07", b"\b", b"\xc2\x9b", b"\x7f")


def test_a_terminal_gets_letters_lines_and_tabs() -> None:
    assert replace_controls("a\tb\nc\r\nd") == "a\tb\nc\nd"
    assert replace_controls("می\u200cشود 👩\u200d🚀 \u00a0\u3000 \U0001fa77") == "می\u200cشود 👩\u200d🚀 \u00a0\u3000 \U0001fa77"
    assert not any(
        letter in replace_controls("".join(map(chr, range(0x100)))) for letter in map(chr, (*range(9), *range(11, 32), *range(127, 160)))
    )


def test_commands_print_in_one_place() -> None:
    """Else one more `print` of foreign text would be one more that is obeyed."""
    found = []
    for path in sorted(CLI.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                said = ast.unparse(node.func)
                if said in ("print", "click.echo", "click.secho", "click.style", "echo") or said.endswith(("stdout.write", "stderr.write")):
                    found.append(f"{path.name}:{node.lineno} {said}")
    assert found == []


# ---------------------------------------------------------------- a server of somebody who means ill


class Evil(BaseHTTPRequestHandler):
    """Answers every route as a server of ours would, with escapes wherever a text may stand."""

    def do_HEAD(self) -> None:
        self._send(b"")

    def do_GET(self) -> None:
        model = {
            "name": f"m{EVIL}",
            "digest": f"{EVIL}0123456789abcdef",
            "size": 5,
            "size_vram": 0,
            "modified_at": EVIL,
            "expires_at": EVIL,
        }
        answers = {
            "/api/tags": {"models": [model]},
            "/api/ps": {"models": [model | {"context_length": EVIL, "details": {}}]},
            "/api/version": {"ndani": EVIL},
        }
        self._json(answers[self.path])

    def do_DELETE(self) -> None:
        self._json({"error": f"no {EVIL}"}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = str(body.get("model") or "")
        if self.path == "/api/show":
            shown = dict.fromkeys(("license", "modelfile", "parameters", "system", "template"), f"x {EVIL}\ny {EVIL}")
            details = {"family": EVIL, "parameter_size": EVIL, "quantization_level": EVIL}
            kinds = ["embedding"] if name == "vectors" else [EVIL]
            tensors = [{"name": EVIL, "type": EVIL, "shape": [1]}]
            info = {f"k{EVIL}": EVIL, "list": [EVIL, EVIL]}
            self._json({**shown, "details": details, "capabilities": kinds, "model_info": info, "tensors": tensors})
        elif self.path == "/api/embed":
            self._json({"embeddings": [[EVIL]], "truncated": EVIL})
        elif self.path == "/api/generate" and name == "broken":
            self._json({"error": f"broken {EVIL}"}, 500)
        elif self.path == "/api/generate":
            self._lines({"response": f"hello {EVIL}"}, {"response": "", "done": True, "truncated": EVIL})
        elif self.path == "/api/verify":
            harm = {"digest": f"sha256:{EVIL}", "problem": EVIL, "models": [EVIL]}
            self._lines({"status": EVIL}, {"status": "success", "damaged": [harm], "files": 1, "size": 1})
        elif self.path == "/api/prune":
            unused = {"status": "unused", "file": EVIL, "size": 1}
            self._lines(unused, {"status": "success", "files": 1, "unfinished": 0, "freed": 1})
        else:
            step = {"status": f"pulling {EVIL}", "digest": EVIL, "total": 10, "completed": 5}
            self._lines({"status": EVIL}, step, {"error": f"no {EVIL}"})

    def _lines(self, *events: object) -> None:
        self._send(b"".join(json.dumps(event).encode() + b"\n" for event in events))

    def _json(self, body: object, status: int = 200) -> None:
        self._send(json.dumps(body).encode(), status)

    def _send(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a user whose server is such a one."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Evil)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield surroundings(tmp_path_factory.mktemp("evil"), server.server_port)
    server.shutdown()
    server.server_close()


PARTS = ("license", "modelfile", "parameters", "system", "template")
COMMANDS = [
    ("list",), ("list", "--json"), ("ps",), ("ps", "--json"), ("--version",), ("show", "x"), ("show", "x", "-v"), ("show", "x", "--json"),
    *(("show", "x", f"--{part}") for part in PARTS), ("run", "x", "hi"), ("run", "broken", "hi"), ("run", "vectors", "hi"),
    ("pull", "x"), ("push", "x"), ("cp", "a", f"b{EVIL}"), ("rm", "x"), ("verify", "--repair"), ("prune", "--dry-run"), ("stop", "broken"),
    (f"x{EVIL}",), ("create", "x", "-f", f"no{EVIL}"), ("run", "x", "--think", EVIL), ("help", EVIL), ("serve", "--host", EVIL),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command).replace(EVIL, "EVIL"))
def test_no_command_lets_a_server_steer_the_terminal(evil: dict[str, str], command: tuple[str, ...]) -> None:
    with terminal([*NDANI, *command], evil, "pty") as screen:
        assert isinstance(screen, Pty)
        screen.exit()
        raw = screen.raw
    assert raw.strip()
    assert b"Traceback" not in raw
    assert b"went wrong" not in raw
    assert [one for one in OBEYED if one in raw] == [], raw


@pytest.mark.slow
def test_into_a_pipe_a_text_goes_to_the_letter(evil: dict[str, str]) -> None:
    for part in ("system", "template", "license"):
        assert run(("show", "x", f"--{part}"), evil).stdout.removesuffix("\n") == f"x {EVIL}\ny {EVIL}", part
    done = run(("run", "x", "hi"), evil)
    assert done.stdout == f"hello {EVIL}\n\n"
    assert not any(one in done.stderr.encode() for one in OBEYED)
    failed = run(("pull", "x"), evil)
    assert failed.exit == 1, failed.stderr
    assert not any(one in failed.stderr.encode() for one in OBEYED)


@pytest.mark.slow
def test_what_is_no_name_of_a_model_is_not_put_on_a_command_line(evil: dict[str, str]) -> None:
    asked = {**evil, "_NDANI_COMPLETE": "bash_complete", "COMP_LINE": "ndani run "}
    assert run((), asked).stdout.split() == []


@pytest.mark.slow
def test_a_model_cannot_steer_the_prompt(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": f"q {EVIL}"}, {"role": "assistant", "content": f"a {EVIL}"}]
    layers: dict[str, Any] = {"template": f"{{{{ .Prompt }}}}{EVIL}", "license": f"l {EVIL}", "system": f"s {EVIL}"}
    put_echo(tmp_path / "models", "evil", gguf("evil"), params={"num_predict": 3, "stop": [EVIL]}, messages=turns, **layers)
    commands = [f"/show {part}" for part in (*PARTS, "info")] + [
        "/set system you",
        "/show modelfile",
        "/list",
        "word",
        "/load evil",
        "/save x",
    ]
    with serving(tmp_path, free_port()) as environment, terminal([*NDANI, "run", "evil"], environment, "pty") as screen:
        assert isinstance(screen, Pty)
        prompt = Prompt(screen)
        for command in commands:
            prompt.say(command)
        screen.press("C-d")
        assert screen.exit() == 0
        raw = screen.raw
    assert b"\x1b]" not in raw
    assert b"\x1b[2J" not in raw
    assert b"\xc2\x9b" not in raw
    assert b"\x1b[1;1H" not in raw
    assert all(text.encode() in raw for text in ("s \ufffd]0;owned", "l \ufffd]0;owned", "a \ufffd]0;owned", "}}\ufffd]0;owned"))


def test_how_a_pull_gets_on_is_text_in_every_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (PlainLines, ProgressBars):
        out = io.StringIO()
        monkeypatch.setattr("sys.stderr", out)
        monkeypatch.setattr("ndani.cli.progress._display", lambda kind=kind, out=out: kind(out) if kind is PlainLines else kind())
        steps = [{"status": f"pulling {EVIL}\nforged", "total": 10, "completed": 5}, {"status": f"{EVIL} :heart:"}, {"status": "success"}]
        follow(iter(steps), "")
        said = out.getvalue()
        assert "\ufffd]0;owned" in said
        assert ":heart:" in said
        assert not any(one.decode() in said for one in OBEYED)
        assert not any(line.startswith("forged") for line in said.splitlines())


def test_a_line_of_the_log_is_one_line_of_text() -> None:
    out = io.StringIO()
    Log(1, out).warn(f"no {EVIL}\nforged", model=f"m {EVIL}\nforged", seconds="می\u200cشود")
    assert out.getvalue().count("\n") == 1
    assert "می\u200cشود" in out.getvalue()
    assert not any(one.decode() in out.getvalue() for one in OBEYED)


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_an_answer_with_the_line_ends_of_windows(cut: int) -> None:
    for columns in (0, 30):
        out = io.StringIO()
        writer, text = WordWrapper(out, columns=columns, terminal=True), "one\r\ntwo\r\n\rthree\r"
        for at in range(0, len(text), cut):
            writer.write(text[at : at + cut])
        writer.close()
        assert out.getvalue() == "one\ntwo\n\ufffdthree\ufffd"


def test_joined_letters_are_measured_and_broken_as_they_are_seen() -> None:
    for text, wide in {"می\u200cشود": 5, "👩\u200d🚀": 2, "\U0001fa77": 2, "e\u0301": 1, "\u3000": 2, "a": 1}.items():
        assert formatting.width(text) == wide, text
    out = io.StringIO()
    writer = WordWrapper(out, columns=7)
    for letter in "👩\u200d🚀" * 5 + " 1\u00a0234\u202f5 a":
        writer.write(letter)
    writer.close()
    lines = out.getvalue().split("\n")
    assert lines[:2] == ["👩\u200d🚀" * 3, "👩\u200d🚀" * 2 + " "]
    assert "1\u00a0234\u202f5" in lines[2]
