"""Compare ndani's command line with recorded runs of Ollama's: words, columns, exit codes, stdout and stderr apart.

    python tests/golden_cli.py HOST:PORT      against a running server that has smollm2:135m; exit 1 when a row falls short

`plan()` says for each recorded row how it is compared, or why it cannot be yet. Masked are numbers, ids, sizes, times,
generated words, and why a source could not be reached; everything else is compared to the letter, spaces at the ends of
lines apart (terminal escapes stood there). smollm2 and terse are made by `create`, as the recorded ones were; the other
models are copies of smollm2:135m, where only the form counts.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).parent / "golden" / "ollama-cli.json"
COPIES = ("smollm2:q8_0", "ns/tooly:v1")
#: The recorded models and Modelfiles, by the names of their files (the recording's `source` says what was in them).
MODELFILES = {
    "Modelfile.smollm2": """FROM smollm2:135m
TEMPLATE \"\"\"{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
\"\"\"
PARAMETER stop <|im_start|>
PARAMETER stop <|im_end|>
PARAMETER num_ctx 2048
LICENSE Apache-2.0
""",
    "Modelfile": """FROM smollm2
PARAMETER temperature 0
PARAMETER seed 1
PARAMETER num_predict 8
SYSTEM You are terse.
MESSAGE user Hi
MESSAGE assistant Yes?
""",
    "Modelfile.thinky": """FROM smollm2:135m
TEMPLATE \"\"\"{{- range .Messages }}<|im_start|>{{ .Role }}
{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
{{ if and .IsThinkSet .Think }}<think>
{{ end }}\"\"\"
PARAMETER num_predict 8
""",
    "Modelfile.bad": "FROM smollm2\nPARAMETRE seed 1\n",
    "Modelfile.nofrom": "SYSTEM You are terse.\n",
    "Modelfile.badparam": "FROM smollm2\nPARAMETER num_ctx many\n",
}
LATER = {
    "push": "there is no account to sign in to; without one, `push` says that there is no such model",
    "signin": "there is no account to sign in to",
    "--format": "nothing limits the answer, and so small a model may write JSON without an end: `test_answer_features` limits it",
}

_MASKS = [
    (r"\bsha256:[0-9a-f]{64}\b", "<digest>"),
    (r"\b[0-9a-f]{12}\b", "<id>"),
    (r"\b\d+(\.\d+)? [KMGT]?B\b", "<size>"),
    (r"(Less than a second|About an? (minute|hour)|\d+ (second|minute|hour|day|week|month|year)s?) (ago|from now)", "<time>"),
    (r"\b(\d+h)?(\d+m)?\d+(\.\d+)?(ns|µs|ms|s)\b", "<duration>"),
    (r"\b\d+\.\d+ tokens/s", "<rate>"),
    (r"\b\d+ token\(s\)", "<count>"),
]


@dataclass(frozen=True)
class Result:
    """What a run of a program gave."""

    exit: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Row:
    """One recorded run. `form` brings stdout into what is compared; `why_not` is set where it cannot be compared yet."""

    number: int
    argv: tuple[str, ...]
    stdin: str | None
    want: Result
    form: Callable[[str], Any] = str
    why_not: str = ""

    @property
    def title(self) -> str:
        return f"{self.number:02d} ndani {' '.join(self.argv)}".strip()


def plan() -> list[Row]:
    """Every recorded row, in order."""
    rows = []
    for number, run in enumerate(json.loads(RECORDED.read_text(encoding="utf-8"))["runs"]):
        argv = tuple(run["argv"])
        want = Result(run["exit"], ours(run["stdout"]), ours(run["stderr"]))
        why = next((reason for word, reason in LATER.items() if word in argv), "")
        if not argv:
            why = "without a command Ollama opens a menu on the terminal; ndani prints its help"
        form = form_of(argv)
        rows.append(Row(number, argv, run.get("stdin"), want, form, why))
    return rows


def ours(text: str) -> str:
    """A recorded wording with the program's own name exchanged."""
    return re.sub(r"(?<![/.\w])ollama(?![./\w])", "ndani", text).replace("Start Ollama", "Start ndani")


def masked(text: str) -> str:
    """Text with everything masked that differs from run to run."""
    for pattern, word in _MASKS:
        text = re.sub(pattern, word, text)
    return text


def form_of(argv: tuple[str, ...]) -> Callable[[str], Any]:
    """How the stdout of a row is brought into what is compared."""
    if "--help" in argv:
        return help_form
    if argv[:1] in (("list",), ("ls",), ("ps",)):
        return listing
    if argv[:2] == ("run", "all-minilm"):
        return lambda text: re.sub(r"\A\[-?\d\.[-\d.e]+(,-?\d[-\d.e]*){383}\]\n\Z", "[<384 numbers>]\n", text)
    if argv[:1] == ("run",):
        return lambda text: re.sub(r"(?s)\A.+\n\n\Z", "<words>\n\n", text)
    if argv[:1] == ("show",) and "--modelfile" in argv:
        return modelfile
    if argv[:1] == ("show",) and set(argv) & {"--parameters", "--template", "--license", "--system"}:
        return str
    if argv[:1] == ("show",) and len(argv) > 1:
        return card
    if "--version" in argv:
        return lambda text: re.sub(r"\d+(\.\d+)+", "<version>", text)
    return str


def listing(text: str) -> Any:
    """The headings of a table and the kinds of row it has; raises where a row does not stand under its headings."""
    head, *rows = text.splitlines()
    starts = [match.start() for match in re.finditer(r"\S+", head)]
    kinds = set()
    for row in rows:
        cells = [row[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
        assert all(cell.endswith("    ") and not cell.startswith(" ") for cell in cells), f"a cell leaves its column: {row!r}"
        kinds.add(tuple(masked(cell.strip()) for cell in cells[1:]))
    widest = [max(len(line[a:b].rstrip()) for line in (head, *rows)) for a, b in itertools.pairwise(starts)]
    assert [b - a - 4 for a, b in itertools.pairwise(starts)] == widest, "columns are wider than their widest cell and four"
    return head.split(), {tuple(re.sub(r"^\d+$", "<n>", cell) for cell in kind) for kind in kinds}


def card(text: str) -> Any:
    """The sections of `show` to the letter, in order; the rows of parameters sorted, for theirs change from run to run."""
    if "\n  Tensors\n" in text:  # the recording is cut off in this section; its columns were as wide as those that are missing
        text, _, tensors = text.partition("  Tensors\n")
        rows = [line.split() for line in tensors.splitlines()[:40]]
        return [*card(text), rows]
    blocks = text.split("\n\n")
    for block in blocks[:-1]:
        title, *rows = block.splitlines()
        assert re.match(r"  \w", title), f"another indent: {block!r}"
        assert all(re.match(r"    \S", row) for row in rows), f"another indent: {block!r}"
        assert len({len(row) for row in rows}) == 1, f"a ragged section: {block!r}"
    return [sorted(block.splitlines()) if block.startswith("  Parameters") else block for block in blocks]


def modelfile(text: str) -> Any:
    """A Modelfile to the letter: where the weights lie is masked, and the parameters, whose order changes, are sorted."""
    lines = re.sub(r"(?m)^FROM .+$", "FROM <path>", text).splitlines()
    found = [number for number, line in enumerate(lines) if line.startswith("PARAMETER ")]
    assert not found or found == list(range(found[0], found[-1] + 1)), "parameters stand apart"
    return lines[: found[0]] + sorted(lines[number] for number in found) + lines[found[-1] + 1 :] if found else lines


def help_form(text: str) -> Any:
    """The headings of a help text, and its usage."""
    titles = re.findall(r"(?m)^([A-Z][\w ]+):$", text)
    usage = re.search(r"(?m)^Usage:\n((?:  .*\n)+)", text)
    return titles, usage and usage[1]


def shortfalls(row: Row, got: Result) -> list[str]:
    """Where a run falls short of the recorded one, as sentences; empty when it agrees."""
    found = []
    if got.exit != row.want.exit:
        found.append(f"exit code {row.want.exit} was recorded, {got.exit} came")
    for stream in ("stdout", "stderr"):
        want, have = _lines(getattr(row.want, stream)), _lines(getattr(got, stream))
        if stream == "stdout" and got.exit == 0:
            try:
                want, have = row.form(getattr(row.want, stream)), row.form(getattr(got, stream))
            except (AssertionError, ValueError) as problem:
                found.append(f"stdout: {problem}")
                continue
        if want != have:
            found.append(f"{stream}: {want!r} was recorded, {have!r} came")
    if "\x1b" in got.stdout + got.stderr:
        found.append("a terminal escape was written into a pipe")
    return found


def _lines(text: str) -> list[str]:
    lines = [masked(line.rstrip()) for line in text.splitlines()]
    # Why a source gave nothing is a matter of the source, and the recorded reason one of the network there.
    if lines and lines[0] == "pulling manifest":
        lines[1:] = [re.sub(r"^Error: .+", "Error: <why>", line) for line in lines[1:]]
    return [line for line in lines if line]


def run(
    argv: tuple[str, ...], environment: dict[str, str], stdin: str | None = None, timeout: float = 600, folder: Path | None = None
) -> Result:
    """Run `ndani` as a child with pipes on all three sides, in `folder` if that is said."""
    done = subprocess.run(
        [sys.executable, "-m", "ndani", *argv],
        env=environment, input=stdin or "", capture_output=True, text=True, timeout=timeout, cwd=folder,
    )  # fmt: skip
    return Result(done.returncode, done.stdout, done.stderr)


def prepare(environment: dict[str, str], folder: Path, checkpoint: Path) -> None:
    """Make the recorded models of smollm2:135m and of MiniLM's `checkpoint`, and put the recorded Modelfiles into `folder`."""
    # From the file alone, as it was recorded: a catalogue's licence and parameters would be layers more.
    shown = run(("show", "smollm2:135m", "--modelfile"), environment)
    weights = next(line for line in shown.stdout.splitlines() if line.startswith("FROM "))
    for name, text in MODELFILES.items():
        (folder / name).write_text(text.replace("FROM smollm2:135m", weights), encoding="utf-8")
    (folder / "Modelfile.minilm").write_text(f"FROM {checkpoint}\n", encoding="utf-8")
    for name, file in (("smollm2", "Modelfile.smollm2"), ("all-minilm", "Modelfile.minilm"), ("thinky", "Modelfile.thinky")):
        done = run(("create", name, "-f", file), environment, folder=folder)
        assert done.exit == 0, done.stderr
    for name in COPIES:
        done = run(("cp", "smollm2:135m", name), environment)
        assert done.exit == 0, done.stderr
    for words in (("run", "all-minilm", "x"), ("run", "smollm2")):  # the recording begins with both in memory
        done = run(words, environment)
        assert done.exit == 0, done.stderr
        assert not done.stderr


def main() -> int:
    """Compare every row against the server named on the command line and print what falls short."""
    from checkpoints import fetch_minilm
    from cli_server import weights_store

    environment = {**os.environ, "NDANI_HOST": sys.argv[1]}
    folder = Path(tempfile.mkdtemp())
    prepare(environment, folder, fetch_minilm(weights_store())[1])
    bad = 0
    for row in plan():
        if row.why_not:
            print(f"later {row.title}: {row.why_not}")
            continue
        found = shortfalls(row, run(row.argv, environment, row.stdin, folder=folder))
        bad += bool(found)
        print(f"{'FALLS SHORT' if found else 'ok   '} {row.title}", *found, sep="\n      " if found else " ")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
