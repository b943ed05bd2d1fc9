"""Docstrings and comments name what exists: each name of ours in backticks is found in the source."""

from __future__ import annotations

import ast
import builtins
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "ndani"

_RAISES = re.compile(r"\b[Rr]aises\s+([A-Z]\w*(?:(?:,|,?\s+and|,?\s+or)\s+[A-Z]\w*)*)")
_SPAN = re.compile(r"`([^`\n]+)`")
_IDENTIFIER = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(\(.*\))?")
#: Words in backticks that are not ours: of HTTP, of Ollama's API and files, of llama.cpp and Hugging Face, of the shell.
_FOREIGN = {
    *("Link", "Location", "Range", "NO_PROXY", "Proxy", "Forever", "Never", "SHA256SUMS", "bash_complete", "_NDANI_COMPLETE"),
    *("mediaType", "created_at", "modified_at", "draft_num_predict", "n_predict", "enable_thinking", "general.architecture"),
    *("general.file_type", "rope_parameters", "rope_scaling", "rope_theta", "fp16", "q4_K_M", "corp.example", "NDANI_X", "OLLAMA_X"),
    *("NDANI_HOST", "OLLAMA_HOST", "http.disconnect", "config.json"),
}


class Names:
    """What the source defines and uses: every identifier, and by module and class those that it has itself."""

    def __init__(self) -> None:
        self.used: set[str] = set(dir(builtins))
        self.files = {file.name for folder in (SOURCE, Path(__file__).parent) for file in folder.rglob("*.py")}
        self.members: defaultdict[str, set[str]] = defaultdict(set)
        self.bases: defaultdict[str, set[str]] = defaultdict(set)
        for file in SOURCE.rglob("*.py"):
            classes: set[str] = set()
            tree = ast.parse(file.read_text(encoding="utf-8"))
            module = file.parent.name if file.stem == "__init__" else file.stem
            self.members[module] |= defined_in(tree) | {inner.stem for inner in file.parent.glob("*") if file.stem == "__init__"}
            for node in ast.walk(tree):
                self.used |= identifiers(node)
                if isinstance(node, ast.ClassDef):
                    classes |= defined_in(node)
                    self.members[node.name] |= defined_in(node)
                    self.bases[node.name] |= {base.id for base in node.bases if isinstance(base, ast.Name)}
            self.members[module] |= classes  # `runner.probe` may be a module's function, or the method of a variable `runner`

    def has(self, dotted: str) -> bool:
        """Whether each part is an identifier of the source, and belongs to the module or class before it, if that is ours."""
        parts = dotted.split(".")
        if not all(part in self.used or part in self.members for part in parts):
            return False
        return all(self._belongs(member, owner) for owner, member in pairwise(parts) if owner in self.members)

    def _belongs(self, member: str, owner: str) -> bool:
        bases = self.bases[owner] & self.members.keys() - {owner}
        return member in self.members[owner] or any(self._belongs(member, base) for base in bases)


@cache
def all_names() -> Names:
    return Names()


def identifiers(node: ast.AST) -> set[str]:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
            return {name}
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.alias(name=name, asname=asname):
            return {*name.split("."), asname or ""}
    return set()


def defined_in(owner: ast.Module | ast.ClassDef) -> set[str]:
    """The names that a module or class has: its own statements' and, for a class, those its methods give `self`."""
    found: set[str] = set()
    for statement in owner.body:
        inner = [statement]
        while inner:
            node = inner.pop()
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    found.add(name)
                    if isinstance(owner, ast.ClassDef):
                        found |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
                case ast.If() | ast.Try() | ast.With():
                    inner += [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)]
                case ast.Import() | ast.ImportFrom():
                    found |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
                case _:
                    found |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return found


def comments() -> Iterator[tuple[str, str]]:
    """Every docstring and comment of the source, with its file."""
    for file in sorted(SOURCE.rglob("*.py")):
        text, place = file.read_text(encoding="utf-8"), file.relative_to(SOURCE).as_posix()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield place, ast.get_docstring(node, clean=False) or ""
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                yield place, token.string


def looks_like_ours(name: str, call: str) -> bool:
    """A dotted name, a call, `CamelCase`, `UPPER_CASE` or `snake_case`; plain words may be anything."""
    return bool("." in name or call or "_" in name.strip("_") or not name.islower()) and name not in _FOREIGN


def gone(text: str, names: Names) -> Iterator[str]:
    """The names of ours in a comment that the source does not have."""
    for span in _SPAN.findall(text):
        if span.endswith(".py"):
            if "*" not in span and span.rpartition("/")[2] not in names.files:
                yield span
        elif (match := _IDENTIFIER.fullmatch(span)) and looks_like_ours(match[1], match[2]) and not names.has(match[1]):
            yield span
    for errors in _RAISES.findall(text):
        yield from (error for error in re.findall(r"[A-Z]\w*", errors) if error not in names.used)


def test_every_name_of_ours_in_comments_exists() -> None:
    names = all_names()
    found = [f"{place}: `{span}`" for place, text in comments() for span in gone(text, names)]
    assert found == []


def test_a_name_that_is_gone_is_found() -> None:
    names = all_names()
    text = "`Store.find`, `errors.errors_by_code()`, `pull.py` and `LlamaHost`; `Store.gone`, `errors.Store`, `MISSING_LIMIT`, `old.py`"
    text = f"{text}. Raises OSError, Mismatch."
    assert list(gone(text, names)) == ["Store.gone", "errors.Store", "MISSING_LIMIT", "old.py", "Mismatch"]
