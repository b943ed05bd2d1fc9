"""Constraints become grammars that the engine obeys; what it cannot obey is refused with the keyword, never ignored."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from ndani.engines.constraint import MAX_LENGTH, call_constraint, engine_grammar
from ndani.errors import BadRequest
from ndani.types import Constraint, Tool


def enforced(grammar: str) -> dict[str, Any]:
    """The schema in a grammar."""
    head, schema = grammar.split("%json ", 1)
    assert head == "%llguidance {}\nstart: "
    return json.loads(schema)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"not": {"type": "string"}}, "uses not,"),
        ({"type": "object", "properties": {"a": {"not": {}}}}, "uses not,"),
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "uses uniqueItems,"),
        ({"if": {}, "then": {}}, "uses if, then,"),
        ({"contains": {}}, "uses contains,"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "has a oneOf that"),
        ({"type": "string", "format": "nonsense"}, "has a format that"),
        ({"type": "string", "pattern": "(?=a)b"}, "has a pattern that"),
        ({"type": "wat"}, "has a type that"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/Z"}}}, "has a $ref that"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "no document can match"),
        ({"enum": []}, "no document can match"),
        ({"type": "object", "properties": {"secret": False}, "required": ["secret"]}, "no document can match"),
        ({"type": 7}, "cannot be obeyed"),
        ({"properties": 3}, "cannot be obeyed"),
    ],
)
async def test_a_schema_that_cannot_be_obeyed_names_the_keyword_and_quotes_nothing(schema: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        await engine_grammar(Constraint("schema", schema))
    assert said in str(refusal.value)
    assert "secret" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


async def test_objects_hold_what_they_list_unless_the_schema_wants_more() -> None:
    inner = {"type": "object", "properties": {"v": {"type": "integer"}}}
    schema = {
        "type": "object",
        "properties": {"list": {"type": "array", "items": inner}, "any": {"anyOf": [inner, {"type": "null"}]}, "enum": {"enum": [inner]}},
        "$defs": {"open": inner | {"additionalProperties": True}, "all": {"allOf": [inner]}, "more": inner | {"required": ["w"]}},
    }
    found = enforced(await engine_grammar(Constraint("schema", schema)))
    closed = inner | {"additionalProperties": False}
    assert found["additionalProperties"] is False
    assert found["properties"]["list"]["items"] == closed
    assert found["properties"]["any"]["anyOf"][0] == closed
    assert found["properties"]["enum"]["enum"] == [inner]
    assert found["$defs"]["open"]["additionalProperties"] is True
    assert found["$defs"]["all"]["allOf"] == [inner]
    assert "additionalProperties" not in found["$defs"]["more"]
    assert "additionalProperties" not in schema, "the request's own schema is not touched"


async def test_json_is_any_object_and_texts_are_taken_as_they_are() -> None:
    assert enforced(await engine_grammar(Constraint("json")))["type"] == "object"
    assert await engine_grammar(Constraint("gbnf", 'root ::= "a"')) == 'root ::= "a"'
    assert await engine_grammar(Constraint("lark", 'start: "a"')) == '%llguidance {}\nstart: "a"'
    assert await engine_grammar(Constraint("regex", "^a/[0-9]{2}$")) == "%llguidance {}\nstart: /a\\/[0-9]{2}/"
    assert await engine_grammar(Constraint("regex", r"a\$")) == "%llguidance {}\nstart: /a\\$/"


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        (Constraint("regex", "(a"), "the regular expression cannot be obeyed"),
        (Constraint("regex", "(?=a)b"), "the regular expression cannot be obeyed"),
        (Constraint("regex", r"(a)\1"), "the regular expression cannot be obeyed"),
        (Constraint("regex", "a/ | /b"), ""),
        (Constraint("lark", "start: nowhere"), "the grammar cannot be read"),
        (Constraint("lark", "other: /a/"), "the grammar cannot be read"),
        (Constraint("gbnf", "%llguidance {}\nstart: /a/"), "must be in GBNF"),
        (Constraint("gbnf", "x" * (MAX_LENGTH + 1)), "shorten it"),
        (Constraint("schema", {"enum": ["x" * MAX_LENGTH]}), "shorten it"),
    ],
)
async def test_a_wrong_text_is_refused(constraint: Constraint, said: str) -> None:
    if not said:
        assert await engine_grammar(constraint) == "%llguidance {}\nstart: /a\\/ | \\/b/"
        return
    with pytest.raises(BadRequest, match=said):
        await engine_grammar(constraint)


async def test_a_hostile_schema_does_not_hold_the_server() -> None:
    deep: Any = {"type": "string"}
    for _ in range(300):
        deep = {"type": "array", "items": deep}
    wide = {"anyOf": [{"type": "object", "properties": {f"p{i}": {"type": "integer", "minimum": i}}} for i in range(1500)]}
    for schema in (deep, wide):
        began = time.monotonic()
        try:
            await engine_grammar(Constraint("schema", schema))
        except BadRequest as error:
            assert "JSON Schema" in str(error)
        assert time.monotonic() - began < 5


async def test_a_call_is_an_object_of_a_name_and_its_arguments() -> None:
    point = {"type": "object", "properties": {"p": {"$ref": "#/$defs/P"}}, "required": ["p"], "$defs": {"P": {"type": "integer"}}}
    tools = (Tool("f", point, {}), Tool("g", {}, {}))
    found = enforced(await engine_grammar(call_constraint(tools)))
    assert [call["properties"]["name"]["const"] for call in found["anyOf"]] == ["f", "g"]
    assert found["anyOf"][0]["properties"]["arguments"] == {"$ref": "#/$defs/tool0"}
    assert found["$defs"]["tool0"]["$defs"] == {"P": {"type": "integer"}}
    assert found["anyOf"][0]["required"] == ["name", "arguments"]


async def allows(constraint: Constraint, document: Any) -> bool:
    """Whether a document, or a text, matches the grammar of a constraint."""
    matcher = LLMatcher(LLTokenizer("byte"), await engine_grammar(constraint), log_level=0)
    text = document if isinstance(document, str) else json.dumps(document)
    return matcher.try_consume_tokens(list(text.encode())) == len(text.encode()) and matcher.is_accepting()


async def test_each_tool_has_its_own_definitions() -> None:
    def tool(name: str, definition: dict[str, Any]) -> Tool:
        return Tool(name, {"type": "object", "properties": {"p": {"$ref": "#/$defs/P"}}, "required": ["p"], "$defs": {"P": definition}}, {})

    calls = call_constraint((tool("f", {"type": "integer"}), tool("g", {"type": "string"})))
    assert await allows(calls, {"name": "f", "arguments": {"p": 1}})
    assert await allows(calls, {"name": "g", "arguments": {"p": "x"}})
    assert not await allows(calls, {"name": "f", "arguments": {"p": "x"}})


@pytest.mark.parametrize(
    ("parameters", "arguments"),
    [
        ({"properties": {"a": {"type": "integer"}, "p": {"$ref": "#/properties/a"}}}, {"a": 1, "p": 2}),
        ({"properties": {"a": {"type": "integer"}, "p": {"$ref": "#"}}}, {"p": {"p": {"a": 1}}}),
        ({"properties": {"p": {"$ref": "#/definitions/a"}}, "definitions": {"a": {"type": "integer"}}}, {"p": 1}),
        ({"$id": "x:/y", "properties": {"p": {"$ref": "x:/y#/$defs/a"}}, "$defs": {"a": {"type": "integer"}}}, {"p": 1}),
        (
            {"properties": {"$ref": {"enum": ["#"]}, "const": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"type": "null"}}},
            {"$ref": "#", "const": None},
        ),
        ({"properties": {"p": {"const": {"$ref": "#/$defs/a"}}}, "$defs": {"a": {}}}, {"p": {"$ref": "#/$defs/a"}}),
    ],
)
async def test_references_in_parameters_mean_the_parameters(parameters: dict[str, Any], arguments: dict[str, Any]) -> None:
    tools = (Tool("f", {"type": "object", **parameters}, {}), Tool("g", {}, {}))
    assert await allows(call_constraint(tools), {"name": "f", "arguments": arguments})
    assert not await allows(call_constraint(tools), {"name": "f", "arguments": {"p": "other"}})


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"$ref": "#/$defs/A"}, {"properties": {"b": {"type": "integer"}}, "required": ["b"]}]},
        {"$ref": "#/$defs/A", "properties": {"b": {"type": "integer"}}, "required": ["b"]},
        {"$ref": "#/$defs/Z", "properties": {"b": {"type": "integer"}}, "required": ["b"]},
        {
            "properties": {"a": {"type": "integer"}},
            "required": ["a"],
            "anyOf": [{"properties": {"b": {"type": "integer"}}, "required": ["b"]}],
        },
        {"allOf": [{"$ref": "#/$defs/A"}, {"anyOf": [{"properties": {"b": {"type": "integer"}}, "required": ["b"]}]}]},
    ],
)
async def test_schemas_that_must_match_together_are_not_closed_against_each_other(schema: dict[str, Any]) -> None:
    definitions = {"A": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, "Z": {"$ref": "#/$defs/A"}}
    constraint = Constraint("schema", {"type": "object", **schema, "$defs": definitions})
    assert await allows(constraint, {"a": 1, "b": 2})
    assert not await allows(constraint, {"a": 1})


async def test_a_reference_alone_still_closes_its_object() -> None:
    schema = {"$ref": "#/$defs/A", "$defs": {"A": {"type": "object", "properties": {"a": {"type": "integer"}}}}}
    assert await allows(Constraint("schema", schema), {"a": 1})
    assert not await allows(Constraint("schema", schema), {"b": 1})


@pytest.mark.parametrize(
    ("pattern", "text"), [(r"a\/b", "a/b"), (r"a\\/b", r"a\/b"), ("a\\\nb", "a\nb"), ("[/]/", "//"), (r"^a$|^b\$$", "b$")]
)
async def test_a_pattern_may_escape_anything(pattern: str, text: str) -> None:
    assert await allows(Constraint("regex", pattern), text)
    assert not await allows(Constraint("regex", pattern), text + "z")


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        (Constraint("schema", {"$ref": "#"}), "refers to itself"),
        (Constraint("schema", {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}), "refers to itself"),
        (Constraint("lark", "start: start"), "cannot be read"),
        (Constraint("lark", "start: <|im_end|>"), "tokens of a model"),
        (Constraint("lark", 'start: "a" <[999999]> // "'), "tokens of a model"),
        (Constraint("gbnf", " "), "the grammar is empty"),
        (Constraint("regex", "a{1000000}"), "too large"),
        (Constraint("schema", {"properties": {f"p{n}": {"type": "string"} for n in range(2000)}, "required": ["p1999"]}), "too large"),
    ],
)
async def test_what_would_fail_only_in_the_engine_is_refused(constraint: Constraint, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        await engine_grammar(constraint)


async def test_text_in_a_grammar_is_not_taken_for_tokens_of_a_model() -> None:
    assert await allows(Constraint("lark", 'start: "<a>" /<\\/b>/ // <c>\n# <d>\n'), "<a></b>")
