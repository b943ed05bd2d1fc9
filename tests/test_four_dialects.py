"""The same wish in every dialect, obeyed by real weights: documents of a JSON Schema, texts of a grammar, calls of tools.

SmolLM2-135M would do none of it by itself. `NDANI_TEST_TRIES` says how often each is tried (3 where it is not set).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import weather
from server import Server, serving
from stores import link

pytestmark = [pytest.mark.weights, pytest.mark.slow]

TRIES = int(os.environ.get("NDANI_TEST_TRIES", "3"))
#: Foundry Local's name for the model.
ALIAS = "smollm2-135m"
ASK = "Describe Paris as JSON."

_NAME = {"type": "string", "minLength": 1, "maxLength": 14}
SCHEMAS: dict[str, dict[str, Any]] = {
    "$defs": {
        "type": "object",
        "properties": {"home": {"$ref": "#/$defs/place"}, "work": {"$ref": "#/$defs/place"}},
        "required": ["home", "work"],
        "additionalProperties": False,
        "$defs": {
            "place": {
                "type": "object",
                "properties": {"name": _NAME, "kind": {"$ref": "#/$defs/kind"}},
                "required": ["name", "kind"],
                "additionalProperties": False,
            },
            "kind": {"enum": ["city", "town", "village"]},
        },
    },
    "enum": {
        "type": "object",
        "properties": {"size": {"enum": ["small", "large", None, 7]}, "planet": {"const": "Earth"}, "coast": {"type": "boolean"}},
        "required": ["size", "planet", "coast"],
        "additionalProperties": False,
    },
    "nested arrays": {
        "type": "object",
        "properties": {
            "grid": {
                "type": "array",
                "minItems": 2,
                "maxItems": 3,
                "items": {"type": "array", "minItems": 1, "maxItems": 3, "items": {"type": "integer", "minimum": -5, "maximum": 99}},
            }
        },
        "required": ["grid"],
        "additionalProperties": False,
    },
    "anyOf": {
        "type": "object",
        "properties": {
            "where": {
                "anyOf": [
                    {
                        "type": "object",
                        "properties": {"street": _NAME, "number": {"type": "integer", "minimum": 1, "maximum": 300}},
                        "required": ["street", "number"],
                        "additionalProperties": False,
                    },
                    {"type": "array", "items": {"type": "number", "minimum": -90, "maximum": 90}, "minItems": 2, "maxItems": 2},
                    {"type": "null"},
                ]
            }
        },
        "required": ["where"],
        "additionalProperties": False,
    },
    "format": {
        "type": "object",
        "properties": {
            "day": {"type": "string", "format": "date"},
            "id": {"type": "string", "format": "uuid"},
            "address": {"type": "string", "format": "ipv4"},
        },
        "required": ["day", "id", "address"],
        "additionalProperties": False,
    },
    "lengths": {
        "type": "object",
        "properties": {
            "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
            "motto": {"type": "string", "minLength": 8, "maxLength": 24},
            "tags": {"type": "array", "items": {"type": "string", "minLength": 2, "maxLength": 6}, "minItems": 2, "maxItems": 4},
        },
        "required": ["code", "motto", "tags"],
        "additionalProperties": False,
    },
}
#: Schemas that cannot be obeyed, with the keyword that is to blame.
IMPOSSIBLE = {
    "uniqueItems": {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}},
    "not": {"type": "object", "properties": {"a": {"not": {"type": "string"}}}},
    "$ref": {"type": "object", "properties": {"a": {"$ref": "#/$defs/nowhere"}}},
    "pattern": {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=a)b"}}},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("dialects")
    with serving(folder, link(models, folder / "models", "smollm2")) as started:
        weather.make_models(started)
        yield started


@dataclass(frozen=True)
class Call:
    """A call as a dialect gave it, its arguments as an object."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Said:
    """What a model said: calls and text."""

    calls: tuple[Call, ...]
    text: str


def events(server: Server, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects of a stream of server-sent events."""
    answer = server.post(path, body | {"stream": True})
    assert answer.status_code == 200, answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


class Ollama:
    """/api/chat; a document with `format`."""

    path = "/api/chat"

    def document(self, schema: dict[str, Any], seed: int) -> dict[str, Any]:
        return self.body("smollm2", ASK) | {"format": schema, "options": {"seed": seed, "num_predict": 500}}

    def text_of(self, answer: dict[str, Any]) -> str:
        return str(answer["message"]["content"])

    def body(self, model: str, question: str) -> dict[str, Any]:
        return {"model": model, "messages": [{"role": "user", "content": question}], "stream": False}

    def weather(self, model: str, choice: str) -> dict[str, Any]:
        body = self.body(model, weather.QUESTION) | {"tools": weather.TOOLS, "options": {"num_predict": 120, "temperature": 0}}
        return body | ({"tool_choice": _openai_choice(choice)} if choice != "auto" else {})

    def said(self, answer: dict[str, Any]) -> Said:
        return self._said([answer])

    def streamed(self, server: Server, body: dict[str, Any]) -> Said:
        return self._said(server.lines(self.path, body | {"stream": True}))

    def _said(self, lines: list[dict[str, Any]]) -> Said:
        calls = [call["function"] for line in lines for call in line["message"].get("tool_calls", ())]
        assert all(isinstance(call["arguments"], dict) for call in calls), "an object here"
        return Said(tuple(Call(c["name"], c["arguments"]) for c in calls), "".join(line["message"]["content"] for line in lines))

    def result(self, body: dict[str, Any], answer: dict[str, Any], text: str) -> dict[str, Any]:
        name = answer["message"]["tool_calls"][0]["function"]["name"]
        return body | {"messages": [*body["messages"], answer["message"], {"role": "tool", "tool_name": name, "content": text}]}


class OpenAI:
    """/v1/chat/completions; a document with `response_format`."""

    path = "/v1/chat/completions"
    model = "smollm2"

    def document(self, schema: dict[str, Any], seed: int) -> dict[str, Any]:
        wrapped = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
        return self.body(self.model, ASK) | {"response_format": wrapped, "seed": seed, "max_tokens": 500}

    def text_of(self, answer: dict[str, Any]) -> str:
        return str(answer["choices"][0]["message"]["content"])

    def body(self, model: str, question: str) -> dict[str, Any]:
        return {"model": model, "messages": [{"role": "user", "content": question}]}

    def weather(self, model: str, choice: str) -> dict[str, Any]:
        body = self.body(model, weather.QUESTION) | {"tools": weather.TOOLS, "temperature": 0, "max_tokens": 120}
        return body | {"tool_choice": _openai_choice(choice)}

    def said(self, answer: dict[str, Any]) -> Said:
        message = answer["choices"][0]["message"]
        calls = message.get("tool_calls") or []
        assert answer["choices"][0]["finish_reason"] in (("tool_calls",) if calls else ("stop", "length"))
        return self._said([call["function"] for call in calls], message["content"] or "")

    def streamed(self, server: Server, body: dict[str, Any]) -> Said:
        text, calls = "", {}
        for part in events(server, self.path, body):
            for choice in part["choices"]:
                text += choice["delta"].get("content") or ""
                for piece in choice["delta"].get("tool_calls") or ():
                    call = calls.setdefault(piece["index"], {"name": "", "arguments": ""})
                    for key in call:
                        call[key] += piece["function"].get(key) or ""
        return self._said(list(calls.values()), text)

    def _said(self, calls: list[dict[str, Any]], text: str) -> Said:
        assert all(isinstance(call["arguments"], str) for call in calls), "a text here"
        return Said(tuple(Call(call["name"], json.loads(call["arguments"])) for call in calls), text)

    def result(self, body: dict[str, Any], answer: dict[str, Any], text: str) -> dict[str, Any]:
        message = answer["choices"][0]["message"]
        told = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": text}
        return body | {"messages": [*body["messages"], message, told]}


class Foundry(OpenAI):
    """Foundry Local's form of the same route: the schema itself, and the model by its alias."""

    model = ALIAS

    def document(self, schema: dict[str, Any], seed: int) -> dict[str, Any]:
        body = super().document(schema, seed)
        return body | {"response_format": {"type": "json_schema", "json_schema": schema}}

    def weather(self, model: str, choice: str) -> dict[str, Any]:
        body = super().weather(self.model if model == "smollm2" else model, choice)
        return body | {"max_completion_tokens": body.pop("max_tokens")}


class Anthropic:
    """/v1/messages; a document as the input of a tool that must be used."""

    path = "/v1/messages"

    def document(self, schema: dict[str, Any], seed: int) -> dict[str, Any]:
        tool = {"name": "answer", "description": "Give the answer", "input_schema": schema}
        choice = {"type": "tool", "name": "answer"}
        return self.body("smollm2", ASK) | {"tools": [tool], "tool_choice": choice, "max_tokens": 500}

    def text_of(self, answer: dict[str, Any]) -> str:
        (block,) = answer["content"]
        return json.dumps(block["input"])

    def body(self, model: str, question: str) -> dict[str, Any]:
        return {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 120}

    def weather(self, model: str, choice: str) -> dict[str, Any]:
        functions = [tool["function"] for tool in weather.TOOLS]
        tools = [{"name": f["name"], "description": f["description"], "input_schema": f["parameters"]} for f in functions]
        chosen = {"required": {"type": "any"}, "none": {"type": "none"}, "auto": {"type": "auto"}}
        return self.body(model, weather.QUESTION) | {
            "tools": tools,
            "tool_choice": chosen.get(choice, {"type": "tool", "name": choice}),
            "temperature": 0,
        }

    def said(self, answer: dict[str, Any]) -> Said:
        calls = [block for block in answer["content"] if block["type"] == "tool_use"]
        assert answer["stop_reason"] in (("tool_use",) if calls else ("end_turn", "max_tokens"))
        texts = [block["text"] for block in answer["content"] if block["type"] == "text"]
        return Said(tuple(Call(call["name"], call["input"]) for call in calls), "".join(texts))

    def streamed(self, server: Server, body: dict[str, Any]) -> Said:
        blocks: dict[int, dict[str, str]] = {}
        for event in events(server, self.path, body):
            if event["type"] == "content_block_start":
                blocks[event["index"]] = {"name": event["content_block"].get("name", ""), "text": ""}
            elif event["type"] == "content_block_delta":
                delta = event["delta"]
                blocks[event["index"]]["text"] += delta.get("text", "") + delta.get("partial_json", "")
        calls = tuple(Call(block["name"], json.loads(block["text"])) for block in blocks.values() if block["name"])
        return Said(calls, "".join(block["text"] for block in blocks.values() if not block["name"]))

    def result(self, body: dict[str, Any], answer: dict[str, Any], text: str) -> dict[str, Any]:
        used = next(block for block in answer["content"] if block["type"] == "tool_use")
        told = [{"type": "tool_result", "tool_use_id": used["id"], "content": text}]
        turns = [{"role": "assistant", "content": answer["content"]}, {"role": "user", "content": told}]
        return body | {"messages": [*body["messages"], *turns]}


def _openai_choice(choice: str) -> Any:
    return choice if choice in ("auto", "none", "required") else {"type": "function", "function": {"name": choice}}


DIALECTS: dict[str, Any] = {"ollama": Ollama(), "openai": OpenAI(), "anthropic": Anthropic(), "foundry": Foundry()}
every_dialect = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)


def answered(server: Server, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = server.post(path, body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@every_dialect
def test_every_document_is_one_of_its_schema(server: Server, dialect: Any) -> None:
    wrong = []
    for number in range(TRIES):
        name = list(SCHEMAS)[number % len(SCHEMAS)]
        text = dialect.text_of(answered(server, dialect.path, dialect.document(SCHEMAS[name], seed=number)))
        try:
            jsonschema.validate(json.loads(text), SCHEMAS[name], format_checker=jsonschema.FormatChecker())
        except (ValueError, jsonschema.ValidationError) as error:
            wrong.append(f"try {number}, {name}: {text!r}: {error}")
    assert not wrong


@pytest.mark.parametrize("keyword", IMPOSSIBLE)
@every_dialect
def test_a_schema_that_cannot_be_obeyed_is_refused_by_its_keyword(server: Server, dialect: Any, keyword: str) -> None:
    answer = server.post(dialect.path, dialect.document(IMPOSSIBLE[keyword], seed=1))
    assert answer.status_code == 400
    error = answer.json()["error"]
    sentence = error if isinstance(error, str) else error["message"]
    assert keyword in sentence
    assert "nowhere" not in sentence


@pytest.mark.parametrize("dialect", [DIALECTS["ollama"], DIALECTS["openai"]], ids=["ollama", "openai"])
@pytest.mark.parametrize(
    ("kind", "grammar", "pattern"),
    [
        ("regex", r"[A-Z][a-z]{2,8}, [A-Z]{2} \d{5}", r"[A-Z][a-z]{2,8}, [A-Z]{2} \d{5}"),
        ("grammar", 'root ::= ("yes" | "no") " because " [a-z ]{5,20} "."', r"(yes|no) because [a-z ]{5,20}\."),
    ],
)
def test_every_text_is_one_of_its_grammar(server: Server, dialect: Any, kind: str, grammar: str, pattern: str) -> None:
    for seed in range(TRIES):
        more = {"options": {"seed": seed, "num_predict": 60}} if dialect.path == "/api/chat" else {"seed": seed, "max_tokens": 60}
        body = dialect.body("smollm2", "Is Paris large?") | {kind: grammar} | more
        assert re.fullmatch(pattern, dialect.text_of(answered(server, dialect.path, body)))


@every_dialect
def test_the_weather_is_asked_of_a_tool_and_told(server: Server, dialect: Any) -> None:
    body = dialect.weather(weather.CALLER, "auto")
    answer = answered(server, dialect.path, body)
    said = dialect.said(answer)
    assert said == Said((Call("get_weather", {"city": "Nairobi"}),), "")
    assert dialect.streamed(server, body) == said
    told = dialect.said(answered(server, dialect.path, dialect.result(body, answer, "21 degrees and sunny")))
    assert told.calls == ()
    assert "Nairobi" in told.text


@pytest.mark.parametrize("choice", ["required", "none", "get_forecast"])
@every_dialect
def test_a_choice_of_tools_is_obeyed(server: Server, dialect: Any, choice: str) -> None:
    """By a model that would call none, and for `none` by one that would."""
    body = dialect.weather(weather.CALLER if choice == "none" else "smollm2", choice)
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in weather.TOOLS}
    for number in range(TRIES):
        body["messages"] = [{"role": "user", "content": f"{number}. {weather.QUESTION}"}]
        said = dialect.said(answered(server, dialect.path, body))
        if choice == "none":
            assert said.calls == ()
            assert said.text
            continue
        (call,) = said.calls
        assert call.name in (schemas if choice == "required" else [choice])
        jsonschema.validate(call.arguments, schemas[call.name])
        if number == 0:
            assert dialect.streamed(server, body) == said
