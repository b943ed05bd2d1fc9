"""Constraints as the engine's grammars. What cannot be obeyed is refused here, with the keyword that is to blame.

JSON Schemas, regular expressions and Lark are compiled by llguidance, which is part of the engine. The engine would answer
without any constraint to a grammar that llguidance refuses, so each is checked here first. GBNF is the engine's own, and the
engine refuses what it cannot read.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Any

from ndani.errors import BadRequest
from ndani.types import Constraint, Tool

#: Characters of a schema, a pattern or a grammar. Compiling more would block a core for long.
MAX_LENGTH = 200_000

#: Tells the engine that a grammar is for llguidance.
_LLGUIDANCE = "%llguidance {}\n"

#: How documents are written: as most JSON in the world is, without the blank lines that small models never end.
_STYLE = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}

_UNIMPLEMENTED = re.compile(r"Unimplemented keys: \[(?P<keys>[^\]]*)\]")
_KEYWORDS_BY_PROBLEM = (
    ("oneOf constraints are not supported", "oneOf"),
    ("Unknown format", "format"),
    ("Invalid type", "type"),
    ("Pointer", "$ref"),
    ("$ref", "$ref"),
    ("regex parse error", "pattern"),
    ("invalid regex", "pattern"),
)
_KEYWORD = re.compile(r'"([$A-Za-z]{1,40})"')


async def engine_grammar(constraint: Constraint) -> str:
    """The grammar that makes the engine obey a constraint. Raises BadRequest, which names the keyword that cannot be obeyed."""
    return await asyncio.to_thread(_grammar, constraint)  # a large schema takes a while


def call_constraint(tools: tuple[Tool, ...]) -> Constraint:
    """What makes an answer a call of one of these tools: `{"name": …, "arguments": …}`."""
    calls = []
    definitions: dict[str, Any] = {}
    for tool in tools:
        parameters = dict(tool.parameters)
        definitions |= parameters.pop("$defs", None) or {}
        calls.append(_closed({"name": {"const": tool.name}, "arguments": parameters or {"type": "object"}}))
    return Constraint("schema", {"anyOf": calls, "$defs": definitions} if definitions else {"anyOf": calls})


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    """An object of exactly these properties."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _grammar(constraint: Constraint) -> str:
    value = constraint.value
    if constraint.kind == "gbnf":
        assert isinstance(value, str)
        _require_length(value, "grammar")
        if value.lstrip().startswith("%llguidance"):
            raise BadRequest("the grammar must be in GBNF; one in Lark is sent as a lark_grammar")
        return value
    if constraint.kind == "regex":
        assert isinstance(value, str)
        _require_length(value, "regular expression")
        pattern = value.removeprefix("^").replace("/", r"\/").replace("\n", r"\n")
        pattern = pattern[:-1] if pattern.endswith("$") and not pattern.endswith(r"\$") else pattern
        lark = f"start: /{pattern}/"
        _check(
            lark,
            "the regular expression cannot be obeyed: it is wrong, or uses what has no finite automaton (look-around, back references)",
        )
        return _LLGUIDANCE + lark
    if constraint.kind == "lark":
        assert isinstance(value, str)
        _require_length(value, "grammar")
        _check(value, "the grammar cannot be read; check its Lark, and that it has a rule named start")
        return _LLGUIDANCE + value
    schema = _schema({"type": "object"} if constraint.kind == "json" else value)
    text = json.dumps(schema, ensure_ascii=False)
    _require_length(text, "schema")
    from llguidance import LLMatcher  # here, since importing it takes longer than the server's start may

    if problem := LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(text)):
        raise BadRequest(_schema_problem(problem))
    return f"{_LLGUIDANCE}start: %json {text}"


def _schema(value: object) -> dict[str, Any]:
    """The schema that is really enforced: with the style of documents, and with objects that hold only what they list.

    A schema that lists properties means these, so further ones are left out unless it asks for them; what remains is still a
    document that the schema allows.
    """
    if not isinstance(value, Mapping):
        raise BadRequest("the JSON Schema must be an object")
    return {**_without_extras(value, depth=0), "x-guidance": _STYLE}


def _without_extras(value: Any, depth: int, *, combined: bool = False) -> Any:
    """Close the objects of a schema. `combined`: it is one part of an allOf, whose other parts may list further properties."""
    if depth > 200:
        raise BadRequest("the JSON Schema is nested more than 200 deep")
    if isinstance(value, list):
        return [_without_extras(item, depth + 1) for item in value]
    if not isinstance(value, Mapping):
        return value
    closed = {}
    for key, member in value.items():
        if key in ("const", "enum", "default", "examples"):
            closed[key] = member
        elif key in ("properties", "$defs", "definitions", "patternProperties") and isinstance(member, Mapping):
            closed[key] = {name: _without_extras(inner, depth + 1) for name, inner in member.items()}
        elif key == "allOf" and isinstance(member, list):
            closed[key] = [_without_extras(inner, depth + 1, combined=True) for inner in member]
        else:
            closed[key] = _without_extras(member, depth + 1)
    is_open = {"additionalProperties", "patternProperties", "unevaluatedProperties", "allOf", "$ref", "anyOf", "oneOf"} & closed.keys()
    if is_open or combined or not isinstance(closed.get("properties"), dict):
        return closed
    # A property that is required but not listed must stay possible.
    return closed if set(closed.get("required") or ()) - set(closed["properties"]) else closed | {"additionalProperties": False}


def _schema_problem(problem: str) -> str:
    """A sentence for llguidance's error. Its own text is not passed on: it quotes the schema."""
    if unimplemented := _UNIMPLEMENTED.search(problem):
        keywords = ", ".join(_KEYWORD.findall(unimplemented["keys"])) or "a keyword"
        return f"the JSON Schema uses {keywords}, which cannot be obeyed here; leave it out"
    if "Unsatisfiable" in problem:
        return "no document can match the JSON Schema; check its required properties, enums and limits"
    for beginning, keyword in _KEYWORDS_BY_PROBLEM:
        if beginning in problem:
            return f"the JSON Schema has a {keyword} that cannot be obeyed here; change it or leave it out"
    return "the JSON Schema cannot be obeyed here; simplify it"


def _check(lark: str, refusal: str) -> None:
    from llguidance import LLMatcher

    if LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(lark)):
        raise BadRequest(refusal)


def _require_length(text: str, what: str) -> None:
    if len(text) > MAX_LENGTH:
        raise BadRequest(f"the {what} is longer than {MAX_LENGTH:,} characters; shorten it")
