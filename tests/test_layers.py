"""Imports point down the rooms of the house, one file dials out, and no engine's library is imported but in its host."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "ndani"

#: From the top down (DESIGN, the rooms); rooms of one line stand beside each other and do not import each other.
ORDER = (
    ("cli",), ("console",), ("mirror",), ("api",), ("skills",), ("service",), ("deploy",), ("optimize",), ("runtime",), ("knowledge",),
    ("sources",), ("engines",), ("outputs",), ("prompts",), ("convert",), ("store",), ("access",), ("ledger",), ("jail",), ("settings",),
    ("names", "durations", "background", "hosts", "untrusted_json", "control_characters"), ("errors",), ("types",),
)  # fmt: skip
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}

#: What can open a connection to another machine, as a library.
CLIENTS = {"aiohttp", "httpx", "requests", "urllib3", "urllib.request", "http.client", "ftplib", "smtplib", "telnetlib", "xmlrpc"}
#: … and as a call.
DIALS = {"connect", "connect_ex", "create_connection", "open_connection", "sendto", "sock_connect", "start_tls", "urlopen", "urlretrieve"}
#: Who may: the fetcher's client; the command line, to a server; the probe, which shows from inside the jail that it cannot.
MAY_IMPORT = {("sources/http.py", "aiohttp"), ("cli/client.py", "http.client")}
MAY_DIAL = {"sources/http.py", "cli/client.py", "runtime/egress.py"}
#: Not a connection: a file's name out of a file: URL.
HARMLESS = {"url2pathname"}
HEAVY = {"onnxruntime", "onnxruntime_genai", "openvino", "openvino_genai", "torch", "transformers", "tensorflow"}

FILES = sorted(ROOT.rglob("*.py"))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Every import: the module, and the name taken from it (nothing for the module itself)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the room they reach into"
            yield from ((node.module or "", alias.name) for alias in node.names)


def rooms_of(module: str, name: str) -> str | None:
    """The room that an import reaches into; None for the package itself and for what is not ours."""
    parts = [*module.split("."), name]
    if parts[0] != "ndani" or len(parts) < 2:
        return None
    return parts[1] if parts[1] in RANK else None


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def faults(room: str, tree: ast.AST) -> list[str]:
    found = []
    for module, name in imports(tree):
        other = rooms_of(module, name)
        if other and other != room and RANK[other] <= RANK[room]:
            found.append(f"{room} imports {module} {name}: not below it")
    return found


def test_every_room_is_in_the_order() -> None:
    assert {room_of(path) for path in FILES} - set(RANK) == {"__init__", "__main__"}


@pytest.mark.parametrize("path", [p for p in FILES if room_of(p) in RANK], ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    assert faults(room_of(path), tree_of(path)) == []


def test_an_import_upward_or_sideways_is_seen() -> None:
    for room, line in [
        ("store", "from ndani.service import Service"),
        ("engines", "import ndani.api.wire"),
        ("types", "from ndani import names"),
    ]:
        assert faults(room, ast.parse(line)), line
    assert faults("names", ast.parse("from ndani import durations"))
    assert not faults("names", ast.parse("from ndani.errors import BadName"))
    with pytest.raises(AssertionError):
        faults("store", ast.parse("from . import layout"))


def _dials(tree: ast.AST) -> set[str]:
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {f.attr if isinstance(f, ast.Attribute) else f.id for f in calls if isinstance(f, ast.Attribute | ast.Name)} & DIALS


def _stays_on_this_machine(tree: ast.AST) -> bool:
    """Whether a file connects sockets that it made itself, each of them AF_UNIX, and in no other way."""
    made = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in ("socket.socket", "socket")]
    unix = [call for call in made if call.args and ast.unparse(call.args[0]) == "socket.AF_UNIX"]
    return bool(made) and made == unix and _dials(tree) <= {"connect", "sock_connect"}


def _clients(tree: ast.AST) -> set[str]:
    found = set()
    for module, name in imports(tree):
        whole = f"{module}.{name}"
        found |= {c for c in CLIENTS if name not in HARMLESS and (module == c or module.startswith(f"{c}.") or whole == c)}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_one_file_dials_out(path: Path) -> None:
    where, tree = path.relative_to(ROOT).as_posix(), tree_of(path)
    assert {(where, client) for client in _clients(tree)} <= MAY_IMPORT
    if where not in MAY_DIAL and not _stays_on_this_machine(tree):
        assert _dials(tree) == set()


def test_a_client_is_seen() -> None:
    assert _clients(ast.parse("from http import client")) == {"http.client"}
    assert _clients(ast.parse("import aiohttp.connector")) == {"aiohttp"}
    assert _stays_on_this_machine(ast.parse("socket.socket(socket.AF_UNIX).connect(p)"))
    for line in ("socket.socket().connect(p)", "socket.socket(socket.AF_INET).connect(p)", "end.connect(p)", "socket.create_connection(p)"):
        assert not _stays_on_this_machine(ast.parse(line)), line
    assert _dials(ast.parse("socket.create_connection(('h', 1))")) == {"create_connection"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_heavy_library_and_no_engine_outside_its_host(path: Path) -> None:
    roots = {module.partition(".")[0] for module, _ in imports(tree_of(path))}
    assert not roots & HEAVY
    if path.name != "host_llama.py":
        assert "xllamacpp" not in roots
