"""`ndani shims`: executables of other names that are ndani: `ollama`, `foundry-local` and `foundry`.

A shim is a shell script of three lines. It runs the command line of this installation under its own name, so a program that
looks for `ollama` or `foundry` on the path finds ndani. A program of that name that is somebody else's is not covered, unless
`--force` says so; then it is kept under another name, and `remove` puts it back.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import click

from ndani.cli import tables
from ndani.cli.command import Command, CommandEntry, LazyGroup, complete_folder, exactly
from ndani.cli.output import emit
from ndani.errors import BadRequest, Unsupported
from ndani.settings import expand

PROGRAMS = ("ollama", "foundry-local", "foundry")
_MARK = "# A shim of ndani's; `ndani shims remove` removes it."
_KEPT = ".before-ndani"


@click.command(
    "install", cls=Command, usage="install", arity=exactly(0), environment=(), help="Put ollama, foundry-local and foundry on the path"
)
@click.option(
    "--dir", "folder", default="", shell_complete=complete_folder, help="Folder to put them into (default ~/.local/bin, or that of ndani)"
)
@click.option("--force", is_flag=True, help="Cover programs of these names that are not ndani's")
def install(args: tuple[str, ...], folder: str, force: bool) -> None:
    """Write all shims, or none where one would cover another program."""
    if sys.platform == "win32":
        raise Unsupported("shims are shell scripts, which Windows does not run; call ndani by its own name")
    target = expand(folder).absolute() if folder else default_folder()
    if not force:
        for program in PROGRAMS:
            _require_free(target, program)
    target.mkdir(parents=True, exist_ok=True)
    for program in PROGRAMS:
        _write(target / program, program)
        emit(f"installed {target / program}")
    _warn_of_path(target)


@click.command("remove", cls=Command, usage="remove", arity=exactly(0), environment=(), help="Remove the shims")
@click.option("--dir", "folder", default="", shell_complete=complete_folder, help="Only from this folder (default all of the path)")
def remove(args: tuple[str, ...], folder: str) -> None:
    """Remove every shim of ndani's, and put back what `--force` had covered."""
    folders = [expand(folder).absolute()] if folder else list(dict.fromkeys([*_path(), default_folder()]))
    shims = [place / program for place in folders for program in PROGRAMS if is_shim(place / program)]
    for shim in shims:
        shim.unlink()
        kept = shim.with_name(shim.name + _KEPT)
        if kept.exists():
            kept.rename(shim)
        emit(f"removed {shim}" + (f"; {shim} is again what it was" if shim.exists() else ""))
    if not shims:
        emit("no shim of ndani's is installed")


@click.command("list", cls=Command, usage="list", arity=exactly(0), aliases=("ls",), environment=(), help="Show what answers to each name")
def list_(args: tuple[str, ...]) -> None:
    """Print, for each name, the program on the path that a shell would start."""
    rows = []
    for program in PROGRAMS:
        found = _first_on_path(program)
        rows.append(
            (program, str(found or "-"), "ndani" if found and is_shim(found) else "another program" if found else "not on the path")
        )
    emit(tables.columns(("NAME", "PROGRAM", "IS"), rows), nl=False)


def default_folder() -> Path:
    """The folder of this installation's programs where that is on the path, else the user's own."""
    own = Path(sys.executable).parent.absolute()
    return own if sys.prefix != sys.base_prefix and own in _path() else expand("~/.local/bin")


def is_shim(path: Path) -> bool:
    """Whether a file is a shim of ndani's, of this installation or another one."""
    try:
        with path.open("rb") as file:
            return _MARK.encode() in file.read(1000)
    except OSError:
        return False


def script(program: str) -> str:
    """The text of a shim."""
    code = f'from ndani.cli import main; raise SystemExit(main(program="{program}"))'
    # -P: do not import modules from the current folder
    return f'#!/bin/sh\n{_MARK}\nexec {shlex.quote(sys.executable)} -P -c {shlex.quote(code)} "$@"\n'


def _write(path: Path, program: str) -> None:
    """Write a shim in one step, so that a program which starts meanwhile finds the old one or the new one; keep what it covers."""
    if os.path.lexists(path) and not is_shim(path):
        path.rename(path.with_name(path.name + _KEPT))
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.write_text(script(program), encoding="utf-8")
    new.chmod(0o755)
    new.replace(path)


def _require_free(target: Path, program: str) -> None:
    """Raise BadRequest when a shim would cover another program: in its folder, or further back on the path."""
    place, found = target / program, _first_on_path(program)
    covered = place if os.path.lexists(place) else found
    if covered is None or is_shim(covered):
        return
    behind = place == covered or (target in _path() and _path().index(target) < _path().index(covered.parent))
    if behind:
        raise BadRequest(f"{covered} is another program, which the shim would cover; choose another --dir, or use --force to cover it")


def _warn_of_path(target: Path) -> None:
    """Say so on stderr when a shell would not find the shims, or would find another program before them."""
    if target not in _path():
        emit(f'{target} is not on the path; add it with: export PATH="{target}:$PATH"', err=True)
        return
    for program in PROGRAMS:
        if (found := _first_on_path(program)) and found.parent != target:
            emit(f"Warning: {found} comes before {target / program} on the path", err=True)


def _first_on_path(program: str) -> Path | None:
    """The program that a shell would start."""
    return next((place / program for place in _path() if os.access(place / program, os.X_OK) and (place / program).is_file()), None)


def _path() -> list[Path]:
    return [Path(place).absolute() for place in os.environ.get("PATH", "").split(os.pathsep) if place]


@click.pass_context
def _show_help(ctx: click.Context) -> None:
    if ctx.invoked_subcommand is None:
        emit(ctx.get_help())


shims = LazyGroup(
    name="shims",
    entries={
        "install": CommandEntry(__name__, "install", "Put ollama, foundry-local and foundry on the path"),
        "remove": CommandEntry(__name__, "remove", "Remove the shims"),
        "list": CommandEntry(__name__, "list_", "Show what answers to each name", ("ls",)),
    },
    help="Answer to the names ollama, foundry and foundry-local",
    callback=_show_help,
)
