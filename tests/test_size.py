"""Small on purpose: no file above 400 lines, no function above 60, and a docstring on every module."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "ndani"
FILES = sorted(ROOT.rglob("*.py"))
MOST_LINES, MOST_OF_A_FUNCTION = 400, 60


def long_functions(tree: ast.AST) -> list[str]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [f"{f.name}: {f.end_lineno - f.lineno + 1}" for f in functions if f.end_lineno and f.end_lineno - f.lineno >= MOST_OF_A_FUNCTION]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= MOST_LINES
    assert long_functions(tree) == []
    assert not text.strip() or ast.get_docstring(tree), "a module says what lives in it"


def test_there_is_something_to_measure() -> None:
    assert len(FILES) > 40
    assert long_functions(ast.parse("def f():\n" + "    pass\n" * 60)) == ["f: 61"]
    assert long_functions(ast.parse("def f():\n" + "    pass\n" * 59)) == []
