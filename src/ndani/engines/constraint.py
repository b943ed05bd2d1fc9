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
from urllib.parse import unquote

from ndani.errors import BadRequest
from ndani.types import Constraint, Tool

#: Characters of a schema, a pattern or a grammar. Compiling more would block a core for long.
MAX_LENGTH = 200_000

#: How far a grammar is tried: the opening of a document, its first name, and some of its first value.
_TRIED_BYTES = 24

#: Tells the engine that a grammar is for llguidance.
_LLGUIDANCE = "%llguidance {}\n"

#: How documents are written: as most JSON in the world is, without the blank lines that small models never end.
_STYLE = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}

#: Keywords whose values are no schemas, and those whose members are schemas under names of the user's.
_DATA = frozenset(("const", "enum", "default", "examples"))
_NAMED = frozenset(("properties", "$defs", "definitions", "patternProperties"))
#: Keywords that each say something of an object's properties; an object with several of them matches them together.
_OBJECT_KEYWORDS = frozenset(("properties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref"))
#: How often the references of a schema are followed, each time one further.
_MAX_ROUNDS = 20

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
#: What a pattern between slashes cannot have as it is; an escaped character is one already, unless it is a line end.
_IN_PATTERN = re.compile(r"\\.|/|\n", re.DOTALL)
_PATTERN_ESCAPES = {"/": r"\/", "\n": r"\n", "\\\n": r"\n"}
#: What Lark has quoted, where "<" means nothing: comments, strings, and patterns. Elsewhere it begins a token of the model.
_QUOTED = re.compile(r'//[^\n]*|#[^\n]*|"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/')
_KEYWORD = re.compile(r'"([$A-Za-z]{1,40})"')


async def engine_grammar(constraint: Constraint) -> str:
    """The grammar that makes the engine obey a constraint. Raises BadRequest, which names the keyword that cannot be obeyed."""
    return await asyncio.to_thread(_grammar, constraint)  # a large schema takes a while


def call_constraint(tools: tuple[Tool, ...]) -> Constraint:
    """What makes an answer a call of one of these tools: `{"name": …, "arguments": …}`.

    Parameters that refer to themselves get a place of their own, and their references point there: two tools may define the same
    name differently.
    """
    calls = []
    definitions: dict[str, Any] = {}
    for number, tool in enumerate(tools):
        parameters: Any = {name: member for name, member in tool.parameters.items() if name not in ("$id", "$schema")}
        base, place = str(tool.parameters.get("$id", "")), f"tool{number}"
        moved = _moved(parameters, base, f"#/$defs/{place}")
        if moved != parameters:
            definitions[place], parameters = moved, {"$ref": f"#/$defs/{place}"}
        else:  # definitions that nothing refers to
            parameters = {name: member for name, member in parameters.items() if name not in ("$defs", "definitions")}
        calls.append(_closed({"name": {"const": tool.name}, "arguments": parameters or {"type": "object"}}))
    return Constraint("schema", {"anyOf": calls, "$defs": definitions} if definitions else {"anyOf": calls})


def _moved(value: Any, base: str, place: str, depth: int = 0, *, named: bool = False) -> Any:
    """A schema whose references to its root point to `place`. `base` is its own address; `named`: the members are no keywords."""
    _require_depth(depth)
    if isinstance(value, list):
        return [_moved(item, base, place, depth + 1) for item in value]
    if not isinstance(value, Mapping):
        return value
    moved = {}
    for key, member in value.items():
        if not named and key == "$ref" and isinstance(member, str):
            pointer = member.removeprefix(base)
            moved[key] = place + pointer[1:] if pointer.startswith("#") else place if not pointer else member
        elif not named and key in _DATA:
            moved[key] = member
        else:
            moved[key] = _moved(member, base, place, depth + 1, named=not named and key in _NAMED)
    return moved


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    """An object of exactly these properties."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _grammar(constraint: Constraint) -> str:
    value = constraint.value
    if constraint.kind == "gbnf":
        assert isinstance(value, str)
        _require_length(value, "grammar")
        if not value.strip():
            raise BadRequest("the grammar is empty; send one with a rule named root")
        if value.lstrip().startswith("%llguidance"):
            raise BadRequest("the grammar must be in GBNF; one in Lark is sent as a lark_grammar")
        return value
    if constraint.kind == "regex":
        assert isinstance(value, str)
        _require_length(value, "regular expression")
        pattern = _IN_PATTERN.sub(lambda found: _PATTERN_ESCAPES.get(found[0], found[0]), value.removeprefix("^"))
        pattern = pattern[:-1] if pattern.endswith("$") and not pattern.endswith(r"\$") else pattern
        return _checked(
            f"start: /{pattern}/",
            "the regular expression cannot be obeyed: it is wrong, too large, or uses what has no finite automaton "
            "(look-around, back references)",
        )
    if constraint.kind == "lark":
        assert isinstance(value, str)
        _require_length(value, "grammar")
        if "<" in _QUOTED.sub("", value):
            raise BadRequest("the grammar names tokens of a model, which cannot be checked here; write their text as a string")
        return _checked(value, "the grammar cannot be read; check its Lark, and that it has a rule named start")
    schema = _schema({"type": "object"} if constraint.kind == "json" else value)
    text = json.dumps(schema, ensure_ascii=False)
    _require_length(text, "schema")
    from llguidance import LLMatcher  # here, since importing it takes longer than the server's start may

    if problem := LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(text)):
        raise BadRequest(_schema_problem(problem))
    return _checked(f"start: %json {text}", "the JSON Schema cannot be obeyed here: it refers to itself without an end, or is too large")


def _schema(value: object) -> dict[str, Any]:
    """The schema that is really enforced: with the style of documents, and with objects that hold only what they list.

    A schema that lists properties means these, so further ones are left out unless it asks for them; what remains is still a
    document that the schema allows.
    """
    if not isinstance(value, Mapping):
        raise BadRequest("the JSON Schema must be an object")
    return {**_without_extras(value), "x-guidance": _STYLE}


class _Closing:
    """Closes the objects of a schema. `combined` holds where references point to whose targets must match together with more."""

    def __init__(self) -> None:
        self.combined: set[str] = set()

    def close(self, value: Any, pointer: str = "#", depth: int = 0, *, combined: bool = False) -> Any:
        """The schema with closed objects. `combined`: it matches together with another one, which may list further properties."""
        _require_depth(depth)
        if isinstance(value, list):
            return [self.close(item, f"{pointer}/{place}", depth + 1, combined=combined) for place, item in enumerate(value)]
        if not isinstance(value, Mapping):
            return value
        combined = combined or pointer in self.combined
        parts = combined or len(_OBJECT_KEYWORDS & value.keys()) > 1
        reference = value.get("$ref")
        if parts and isinstance(reference, str):
            self.combined.add(unquote(reference))
        closed = {}
        for key, member in value.items():
            at = f"{pointer}/{key}"
            if key in _DATA:
                closed[key] = member
            elif key in _NAMED and isinstance(member, Mapping):
                closed[key] = {
                    name: self.close(inner, f"{at}/{name.replace('~', '~0').replace('/', '~1')}", depth + 1)
                    for name, inner in member.items()
                }
            else:
                together = key == "allOf" or (parts and key in ("anyOf", "oneOf"))
                closed[key] = self.close(member, at, depth + 1, combined=together)
        is_open = {"additionalProperties", "unevaluatedProperties"} & closed.keys()
        if is_open or parts or not isinstance(closed.get("properties"), dict):
            return closed
        # A property that is required but not listed must stay possible.
        return closed if set(closed.get("required") or ()) - set(closed["properties"]) else closed | {"additionalProperties": False}


def _without_extras(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema with closed objects. Which ones must stay open is known once every reference has been seen."""
    closing = _Closing()
    for _ in range(_MAX_ROUNDS):
        known = len(closing.combined)
        closed: dict[str, Any] = closing.close(schema)
        if len(closing.combined) == known:
            return closed
    return dict(schema)


def _require_depth(depth: int) -> None:
    if depth > 200:
        raise BadRequest("the JSON Schema is nested more than 200 deep")


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


def _checked(lark: str, refusal: str) -> str:
    """The grammar for the engine. Some that can be read fail with the first tokens, so those are tried, with bytes as the tokens."""
    from llguidance import LLMatcher, LLTokenizer

    grammar, brace = _LLGUIDANCE + lark, ord("{")
    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0)
    for _ in range(_TRIED_BYTES):
        if matcher.get_error() or matcher.is_stopped():
            break
        mask = matcher.compute_bitmask()
        allowed = [byte for byte in range(256) if mask[byte >> 3] >> (byte & 7) & 1]
        if matcher.get_error() or not allowed:
            break
        matcher.consume_token(brace if brace in allowed else allowed[len(allowed) // 2])  # most that is large begins with one
    if matcher.get_error():
        raise BadRequest(refusal)
    return grammar


def _require_length(text: str, what: str) -> None:
    if len(text) > MAX_LENGTH:
        raise BadRequest(f"the {what} is longer than {MAX_LENGTH:,} characters; shorten it")
