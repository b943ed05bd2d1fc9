"""README and docs tell the truth: their commands are run, their tables compared with the code, their links followed.

`python tests/test_docs.py` prints the table of docs/settings.md.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from ndani import __version__, errors
from ndani.cli import commands
from ndani.cli.about import root
from ndani.cli.config import format_value
from ndani.settings import UNSUPPORTED_VARIABLES, Settings, fields, variables_of
from ndani.sources.catalogue import load
from server import Server, serving
from stores import link, shorten
from test_walk import SOURCE, located

ROOT = Path(__file__).parents[1]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")), *sorted((ROOT / "docs").rglob("*.md"))]
ADDRESS = "127.0.0.1:11434"
SHORT = 24  # tokens: what the commands do is looked at here, not what the model says

_BLOCK = re.compile(r"(?:^<!-- not run: (?P<why>.+?) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_PLACE = re.compile(r"`(?:src/ndani/)?((?:[a-z_]+/)*[a-z_]+\.py)(?:: ([A-Za-z_][A-Za-z_.]*))?`")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `why` says why it is not run, if it is not."""

    page: Path
    line: int
    kind: str
    text: str
    why: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks() -> list[Block]:
    """Every block that a reader may copy into a shell or a Python."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in _BLOCK.finditer(text):
            if block["kind"] in ("sh", "python"):
                line = text[: block.start("text")].count("\n") + 1
                found.append(Block(page, line, block["kind"], block["text"], block["why"]))
    return found


RUN = [block for block in blocks() if block.why is None]
NOT_RUN = [block for block in blocks() if block.why is not None]


def settings_table() -> str:
    """The table of docs/settings.md, from the settings themselves."""
    home = str(Path(os.environ.get("HOME") or "~").expanduser())
    rows = ["| Setting | In the environment | Default | Meaning |", "|---|---|---|---|"]
    default = Settings()
    for setting in fields():
        value = format_value(getattr(default, setting.name)).replace(home, "~")
        variables = ", ".join(f"`{name}`" for name in variables_of(setting))
        meaning = setting.metadata["doc"].replace("|", "\\|")
        rows.append(f"| `{setting.name}` | {variables} | {'not set' if value == '-' else f'`{value}`'} | {meaning} |")
    return "\n".join(rows)


# What the pages say of the code.


def test_settings_page_is_the_settings() -> None:
    page = read("docs/settings.md")
    table = re.search(r"<!-- settings:.*?-->\n(.*?)\n<!-- end of settings -->", page, re.DOTALL)
    assert table, "docs/settings.md has lost the marks around its table"
    assert table[1].strip() == settings_table(), "run `python tests/test_docs.py` and put its table into docs/settings.md"
    for name in UNSUPPORTED_VARIABLES:
        assert f"`{name}`" in page, f"docs/settings.md does not say that {name} has no effect"


def test_errors_page_lists_the_tree() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (\d+) \| (.+?) \| (.+?) \|$", read("docs/errors.md"), re.MULTILINE)
    tree = {(kind.__name__, code, kind.status) for code, kind in errors.errors_by_code().items() if kind is not errors.NdaniError}
    assert {(name, code, int(status)) for name, code, status, _, _ in rows} == tree
    assert len(rows) == len(tree)


def test_serve_page_lists_every_route() -> None:
    routes = set()
    for table in [*SOURCE.glob("api/*/dialect.py"), SOURCE / "api" / "page" / "__init__.py"]:
        module = ".".join(table.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        names = vars(importlib.import_module(f"ndani.{module}"))
        for call in ast.walk(ast.parse(table.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ("get", "head", "post", "delete"):
                routes.add(f"{call.func.id.upper()} {eval(ast.unparse(call.args[0]), dict(names))}")
    assert len(routes) >= 60
    listed = set(re.findall(r"^\| `([A-Z]+ /\S*)` \|", read("docs/serve.md"), re.MULTILINE))
    assert listed == routes


def test_every_command_is_shown_and_every_command_shown_exists() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    shown = set(re.findall(r"`(?:[A-Z_]+=\S+ )?ndani ([a-z]+)", text))
    for block in blocks():
        shown |= set(re.findall(r"(?:^|[|&;=]\S* )ndani ([a-z]+)", block.text, re.MULTILINE))
    every = set(commands())
    assert every - {"help"} <= shown, f"no page shows {every - {'help'} - shown}"
    assert shown <= every, f"there is no command {shown - every}"


def test_every_model_of_the_catalogue_is_in_the_readme() -> None:
    for model in load().models:
        for page in ("README.md", "docs/run-a-model.md"):
            assert f"`{model.name}`" in read(page), f"{page} does not know {model.name}"


def test_changelog_has_this_version() -> None:
    assert re.search(rf"^## {re.escape(__version__)}\b", read("CHANGELOG.md"), re.MULTILINE)


def test_architecture_page_names_every_room() -> None:
    page = read("docs/architecture.md")
    for place in SOURCE.iterdir():
        if place.name.startswith("__") or place.suffix not in ("", ".py"):
            continue
        room = f"`{place.name}/`" if place.is_dir() else f"`{place.name}`"
        assert room in page, f"docs/architecture.md does not name {room}"


def test_decisions_are_listed_in_order() -> None:
    there = [path.name for path in sorted((ROOT / "docs/decisions").iterdir())]
    assert re.findall(r"\(decisions/([\w-]+\.md)\)", read("docs/architecture.md")) == there
    for path in (ROOT / "docs/decisions").iterdir():
        number = int(path.name[:3])
        assert path.read_text(encoding="utf-8").startswith(f"# {number}. "), path


def test_the_front_has_no_http_client() -> None:
    """docs/decisions/002: what can dial out is loaded by the fetcher's process only."""
    asked = "import sys, ndani.api.server; print([m for m in ('aiohttp', 'httpx', 'requests', 'urllib3') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, timeout=300, check=True).stdout
    assert done.strip() == "[]"


# The pages themselves.


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_places_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"
    for file, qualified in _PLACE.findall(text):
        home = ROOT if file.startswith(("tests/", "bench/")) else SOURCE
        assert (home / file).is_file(), f"{page.name} names {file}, which is not there"
        assert not qualified or located(file, qualified), f"{page.name}: {file} has no {qualified}"


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"(?:^|`)make ([a-z][a-z -]*)", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert set(target.split()) <= targets, f"{page.name} says make {target}"


@pytest.mark.parametrize("block", NOT_RUN, ids=str)
def test_commands_that_are_not_run_could_be(block: Block) -> None:
    root_command = root(commands())
    context = click.Context(root_command, info_name="ndani")
    for line in block.text.splitlines():
        words = [word for word in shlex.split(line, comments=True) if not re.match(r"[A-Z_]+=", word)]
        if words[:1] != ["ndani"]:
            continue
        command = root_command.get_command(context, words[1])
        assert command, f"{block}: there is no command {words[1]}"
        flags = {flag for param in command.params for flag in param.opts}
        assert {word for word in words[2:] if word.startswith("-")} <= flags, f"{block}: {line}"


# The commands, run.


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, models: Path, minilm: Path) -> Iterator[Server]:
    """A server over the real model, with a home of its own."""
    folder = tmp_path_factory.mktemp("docs")
    with serving(folder, link(minilm, link(models, folder / "models"))) as server:
        # curl exits 0 on a refusal unless it is told otherwise; the pages' commands stay as they are.
        (server.home / ".curlrc").write_text("silent\nshow-error\nfail-with-body\nmax-time = 300\n")
        # A pull brings the model as it is published, without a limit of its answers; so it is given ours again.
        again = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import stores, pathlib; "
        again += f"stores.shorten(pathlib.Path({str(server.models)!r}), {SHORT})"
        command = server.home / "bin" / "ndani"
        command.parent.mkdir()
        real = shlex.quote(str(Path(sys.executable).parent / "ndani"))
        shorter = shlex.join([sys.executable, "-c", again])
        command.write_text(f'#!/bin/sh\n[ "$1" = pull ] || exec {real} "$@"\n{real} "$@" && exec {shorter}\n')
        command.chmod(0o755)
        yield server


@pytest.mark.weights
@pytest.mark.parametrize("block", RUN, ids=str)
def test_commands_do_what_they_say(block: Block, house: Server, tmp_path: Path) -> None:
    if "curl" in block.text and not shutil.which("curl"):
        pytest.skip("this machine has no curl")
    # Without it, `ndani run` would start another in the background, and this test would not be about this server.
    assert house.process.poll() is None, f"the server has ended before this block:\n{house.log}"
    shorten(house.models, SHORT)
    text = block.text.replace(ADDRESS, f"127.0.0.1:{house.port}")
    words = [sys.executable, "-c", text] if block.kind == "python" else ["bash", "-euo", "pipefail", "-c", text]
    path = f"{house.home / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{house.environment['PATH']}"
    environment = {**house.environment, "PATH": path, "NDANI_HOST": f"127.0.0.1:{house.port}"}
    done = subprocess.run(
        words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    assert done.stdout or done.stderr or "> " in block.text, f"{block} printed nothing"
    assert not re.search(r'"error"(?!: ?null)', done.stdout), f"{block}\n{done.stdout}"
    assert house.process.poll() is None, f"{block} ended the server:\n{house.log}"


if __name__ == "__main__":
    print(settings_table())
