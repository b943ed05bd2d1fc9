"""docs/walk.md tells the truth: each name exists, and each is called by, or made in, one that was walked through before."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "ndani"
WALK = Path(__file__).parents[1] / "docs" / "walk.md"

_PLACE = re.compile(r"`([a-z_/]+\.py): ([A-Za-z_][A-Za-z_.]*)`")
_STEP = re.compile(r"^(\d+)\. (.*)$", re.MULTILINE)
#: Where another process begins: what was walked through must name the other side by one of these.
_BEGINNINGS = {
    "runtime/runner_main.py: main": "ndani.runtime.runner_main",
    "convert/worker_main.py: main": "ndani.convert.worker_main",
    "sources/fetcher_main.py: main": "ndani.sources.fetcher_main",
    "api/ollama/routes.py: OllamaRoutes.pull": "/api/pull",
}
_MARK = "*in another process*"
WALKS = ["One chat request", "One streamed OpenAI tool call", "One pull", "One create"]

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((SOURCE / file).read_text(encoding="utf-8"))


def located(file: str, qualified: str) -> Definition | None:
    """The definition of `Class.method` or `function` in a file of the package, or None."""
    body: list[ast.stmt] = tree(file).body
    found: Definition | None = None
    for part in qualified.split("."):
        found = next((n for n in body if isinstance(n, Definition) and n.name == part), None)
        if found is None:
            return None
        body = found.body
    return found


def walks() -> dict[str, list[tuple[int, list[str], str]]]:
    """By heading: each step's number, its places and its words."""
    parts = re.split(r"^## (.+)$", WALK.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {
        heading: [(int(n), [f"{f}: {q}" for f, q in _PLACE.findall(words)], words) for n, words in _STEP.findall(text)]
        for heading, text in zip(parts[::2], parts[1::2], strict=True)
    }


def named(definition: Definition) -> tuple[set[str], set[str]]:
    """The identifiers and the strings inside a definition, docstrings left out."""
    names: set[str] = set()
    strings: set[str] = set()
    for node in ast.walk(definition):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                names.add(name)
            case ast.Expr(value=ast.Constant()):
                continue
            case ast.Constant(value=str(text)):
                strings.add(text)
    return names, strings


def test_all_walks_are_there_and_long_enough() -> None:
    steps = {heading: len(found) for heading, found in walks().items()}
    assert list(steps) == WALKS
    places = sum(len(found) for _, found, _ in walks()["One chat request"])
    assert places >= 40
    assert steps["One chat request"] <= 12, "a reader keeps ten ideas in mind, and asks the editor for the rest"
    assert steps["One pull"] >= 25
    assert steps["One create"] >= 15


@pytest.mark.parametrize("heading", WALKS)
def test_steps_are_numbered_and_every_name_exists(heading: str) -> None:
    steps = walks()[heading]
    assert [number for number, _, _ in steps] == list(range(1, len(steps) + 1))
    for number, places, words in steps:
        assert places, f"step {number} names no function: {words}"
        for place in places:
            file, _, qualified = place.partition(": ")
            assert (SOURCE / file).is_file(), f"step {number}: there is no {file}"
            assert located(file, qualified), f"step {number}: {file} has no {qualified}"


@pytest.mark.parametrize("heading", WALKS)
def test_each_step_is_reached_from_an_earlier_one(heading: str) -> None:
    names: set[str] = set()
    strings: set[str] = set()
    for number, places, words in walks()[heading]:
        for place in places:
            file, _, qualified = place.partition(": ")
            owner, _, last = qualified.rpartition(".")
            # An object is called by its class's name, once, and then under whatever name it was given.
            reached = {owner.rpartition(".")[2]} if last in ("__call__", "__init__") else {last}
            if _MARK in words:
                assert _BEGINNINGS[place] in strings, f"step {number}: nothing before it starts {_BEGINNINGS[place]}"
            else:
                assert number == 1 or reached & names, f"step {number}: nothing before it names {qualified}"
            definition = located(file, qualified)
            assert definition
            more, said = named(definition)
            names |= more
            strings |= said
