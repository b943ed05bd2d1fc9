"""OpenAI's bodies into requests: what each field becomes, and the sentence for each that is refused."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import pytest

from ndani.api.openai import requests
from ndani.api.openai.messages import HTTP_IMAGE
from ndani.errors import BadRequest
from ndani.types import ChatRequest, Constraint, Message, Sampling, ToolCall, ToolChoice

USER = {"role": "user", "content": "hi"}
PIXEL = base64.b64encode(b"\x89PNG one pixel").decode()


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}


WEATHER, NEWS = tool("weather"), tool("news")
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


def chat(*messages: dict[str, Any], **more: Any) -> ChatRequest:
    return requests.parse_chat({"model": "m", "messages": list(messages) or [USER]} | more)[0]


def chat_refusal(*messages: dict[str, Any], **more: Any) -> str:
    with pytest.raises(BadRequest) as refused:
        chat(*messages, **more)
    return str(refused.value)


def test_a_plain_chat_has_the_defaults_of_openai() -> None:
    assert chat() == ChatRequest(
        model="m", messages=(Message("user", "hi"),), sampling=Sampling(temperature=1.0, top_p=1.0), truncate=False
    )


def test_every_option_has_its_place() -> None:
    said = chat(
        max_completion_tokens=7,
        stop="END",
        seed=3,
        temperature=0,
        top_p=0.5,
        frequency_penalty=0.25,
        presence_penalty=-0.5,
        top_k=9,
        min_p=0.1,
        repeat_penalty=1.2,
        num_ctx=512,
        keep_alive="5m",
        options={"num_thread": 1, "top_k": 1},
        truncate=True,
    )
    assert said.sampling == Sampling(
        num_predict=7,
        stop=("END",),
        seed=3,
        temperature=0.0,
        top_p=0.5,
        frequency_penalty=0.25,
        presence_penalty=-0.5,
        top_k=9,
        min_p=0.1,
        repeat_penalty=1.2,
        num_ctx=512,
        num_thread=1,
    )
    assert said.keep_alive == 300.0
    assert said.truncate is True


def test_two_names_of_one_thing() -> None:
    assert chat(max_tokens=5).sampling.num_predict == chat(max_completion_tokens=5).sampling.num_predict == 5
    assert chat(max_tokens=5, max_completion_tokens=5).sampling.num_predict == 5
    assert "two names" in chat_refusal(max_tokens=5, max_completion_tokens=6)
    assert chat(random_seed=8).sampling.seed == 8
    assert "two names" in chat_refusal(seed=1, random_seed=2)
    assert chat(ttl=60).keep_alive == 60.0
    assert chat(keep_alive=-1).keep_alive == -1.0
    assert chat(stop=["a", "", "b"]).sampling.stop == ("a", "b")
    assert chat(ep="cpu").sampling.num_gpu == 0
    assert chat(options={"temperature": 0.3}).sampling.temperature == 0.3
    assert chat(options={"temperature": 0.3}, temperature=0.4).sampling.temperature == 0.4


def test_null_is_as_if_the_field_were_missing() -> None:
    names = (*requests.ChatBody.__struct_fields__, "functions", "store", "audio", "modalities", "prediction", "service_tier")
    nulls = dict.fromkeys(set(names) - {"model", "messages"})
    assert chat(**nulls) == chat()
    parsed, _, ignored = requests.parse_chat({"model": "m", "messages": [USER]} | nulls)
    assert (parsed, ignored) == (chat(), [])


def test_labels_have_no_effect_and_unknown_fields_are_named() -> None:
    labels = {
        "user": "u",
        "metadata": {"a": "b"},
        "safety_identifier": "x",
        "prompt_cache_key": "k",
        "store": False,
        "service_tier": "auto",
    }
    body = {"model": " m ", "messages": [USER | {"name": "Ann"}], "frobnicate": 1} | labels
    parsed, _, ignored = requests.parse_chat(body)
    assert parsed == chat()
    assert ignored == ["frobnicate", "name"]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"functions": [{"name": "f"}]}, "functions is the older form of tools; send tools"),
        ({"function_call": "auto"}, "function_call is the older form"),
        ({"modalities": ["text", "audio"]}, "modalities must be text only"),
        ({"audio": {"voice": "alloy"}}, "audio is not supported"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction is not supported"),
        ({"web_search_options": {}}, "web_search_options is not supported"),
        ({"store": True}, "store is not supported"),
        ({"service_tier": "flex"}, "service_tier must be"),
        ({"verbosity": "low"}, "verbosity is not supported"),
        ({"prompt_cache_retention": "24h"}, "prompt_cache_retention must be"),
        ({"ep": "cuda"}, "ep must be cpu"),
        ({"format": "json"}, "format is of another API; send response_format"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation is not supported"),
        ({"n": 0}, "n must be"),
        ({"n": 129}, "n must be"),
        ({"n": 1.5}, "n must be an integer"),
        ({"temperature": -1}, 'option "temperature" must be between'),
        ({"top_p": 2}, 'option "top_p" must be between'),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"max_tokens": -2}, "max_tokens must be"),
        ({"stop": 5}, "stop must be"),
        ({"stop": [5]}, "stop[0] must be a string"),
        ({"stream": "yes"}, "stream must be true or false"),
        ({"options": {"nope": 1}}, "options has a name"),
        ({"options": []}, "options must be an object"),
        ({"keep_alive": "soon"}, "keep_alive must be a number of seconds"),
        ({"keep_alive": True}, "keep_alive must be"),
        ({"metadata": {"a": 1}}, "metadata[...] must be a string"),
        ({"logit_bias": {"the": 1}}, "logit_bias must have token ids"),
        ({"logit_bias": {"1": 101}}, "logit_bias must have values"),
        ({"logit_bias": {"1": "x"}}, "logit_bias[...] must be a number"),
        ({"reasoning_effort": "lots"}, "reasoning_effort must be one of none, minimal, low"),
        ({"reasoning": {"effort": "lots"}}, "reasoning_effort must be one of"),
        ({"think": "lots"}, "reasoning_effort must be one of"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs must be"),
        ({"top_logprobs": 2, "logprobs": False}, "top_logprobs needs logprobs"),
        ({"response_format": {"type": "xml"}}, "response_format.type has a value that is not one of those allowed"),
        ({"response_format": {}}, "response_format.type is required"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema is required"),
        ({"response_format": {"type": "json_schema", "json_schema": "{}"}}, "response_format.json_schema must be an object"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": "{}"}}},
            "response_format.json_schema.schema must",
        ),
        ({"response_format": {"type": "json_object"}, "regex": "a"}, "response_format, regex and grammar exclude each other"),
        ({"tools": {}}, "tools must be an array"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type must be function"),
        ({"tools": [{"type": "function"}]}, "tools[0].function must be"),
        ({"tool_choice": "required"}, "tool_choice required needs tools"),
        ({"tool_choice": "any", "tools": [WEATHER]}, "tool_choice must be auto, none, required"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}, "tools": [WEATHER]}, "tool_choice names a function that is not"),
        ({"tool_choice": {"type": "function", "function": {}}, "tools": [WEATHER]}, "tool_choice must have the name"),
        ({"tool_choice": {"type": "custom", "custom": {"name": "x"}}, "tools": [WEATHER]}, "tool_choice must be an object of the type"),
        ({"tool_choice": {"type": "allowed_tools"}, "tools": [WEATHER]}, "tool_choice.allowed_tools must be"),
        (
            {"tool_choice": {"type": "allowed_tools", "tools": [{"type": "function", "name": "x"}]}, "tools": [WEATHER]},
            "tool_choice names a",
        ),
    ],
)
def test_refused(more: dict[str, Any], sentence: str) -> None:
    refusal = chat_refusal(**more)
    assert sentence in refusal
    assert "\n" not in refusal


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([{"content": "x"}], "messages[0].role is required"),
        ([{"role": " ", "content": "x"}], "messages[0].role is empty"),
        ([USER, {"role": "function", "name": "f", "content": "x"}], "messages[1].role is the older function"),
        ([USER, {"role": "user"}], "messages[1].content must be a string or an array of parts"),
        ([{"role": "user", "content": 5}], "messages[0].content must be a string or an array"),
        ([{"role": "user", "content": [{"type": "video"}]}], "messages[0].content[0].type has a value"),
        ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], "messages[0].content[0] is of a type"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "HTTPS://example.com/a.png"}}]}], HTTP_IMAGE),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}], "must be a data URL"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,###"}}]}], "must be base64"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            "messages[0].tool_calls[0].function.arguments",
        ),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}], "must be the text of a JSON object"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 9999}}]}],
            "must be the text of a JSON object",
        ),
        ([{"role": "assistant", "tool_calls": [{"type": "custom", "function": {"name": "f"}}]}], "messages[0].tool_calls[0].type must be"),
    ],
)
def test_refused_messages(messages: list[dict[str, Any]], sentence: str) -> None:
    assert sentence in chat_refusal(*messages)


def test_no_refusal_quotes_what_was_said() -> None:
    secret = "SECRET"
    for more in ({"seed": secret}, {"tool_choice": secret, "tools": [WEATHER]}, {"logit_bias": {secret: 1}}, {"options": {secret: 1}}):
        assert secret not in chat_refusal(**more)
    assert secret not in chat_refusal({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": secret}}]})


def test_a_chat_needs_a_model_and_messages() -> None:
    for body, sentence in (
        ({"messages": [USER]}, "model is required"),
        ({"model": "m"}, "messages must"),
        ({"model": "m", "messages": []}, "messages must"),
    ):
        with pytest.raises(BadRequest, match=sentence):
            requests.parse_chat(body)


def test_messages() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Nairobi"}'}}
    parsed = chat(
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [
            {"type": "text", "text": "one"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
            {"type": "image_url", "image_url": f"data:;base64,{PIXEL}"},
            {"type": "text", "text": "two"},
        ]},
        {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": [call, {"function": {"name": "now", "arguments": ""}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "12"},
        {"role": "tool", "tool_call_id": "other", "name": "now", "content": [{"type": "text", "text": "noon"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "reasoning_content": "why"},
        {"role": "assistant", "content": None, "refusal": "never"},
    ).messages  # fmt: skip
    image = b"\x89PNG one pixel"
    assert parsed == (
        Message("system", "be brief"),
        Message("user", "one\ntwo", images=(image, image)),
        Message("assistant", "", thinking="hm", tool_calls=(ToolCall("weather", {"city": "Nairobi"}, "c1", 0), ToolCall("now", {}, "", 1))),
        Message("tool", "12", tool_name="weather", tool_call_id="c1"),
        Message("tool", "noon", tool_name="now", tool_call_id="other"),
        Message("assistant", "no", thinking="why"),
        Message("assistant", "never"),
    )


def test_a_hint_about_an_image_that_has_no_effect_is_named() -> None:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}", "detail": "low"}}
    assert requests.parse_chat({"model": "m", "messages": [{"role": "user", "content": [image]}]})[2] == ["detail"]


@pytest.mark.parametrize(
    ("more", "constraint"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Constraint("json")),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}},
            Constraint("schema", SCHEMA),
        ),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}, Constraint("schema", SCHEMA)),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, Constraint("json")),
        ({"response_format": {"type": "json_schema", "json_schema": SCHEMA}}, Constraint("schema", SCHEMA)),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, Constraint("schema", {})),
        ({"response_format": {"type": "lark_grammar", "lark_grammar": "start: /a/"}}, Constraint("lark", "start: /a/")),
        ({"response_format": {"type": "regex", "regex": "a+"}}, Constraint("regex", "a+")),
        ({"response_format": {"type": "grammar", "grammar": 'root ::= "a"'}}, Constraint("gbnf", 'root ::= "a"')),
        ({"regex": "a+"}, Constraint("regex", "a+")),
        ({"grammar": 'root ::= "a"', "response_format": {"type": "text"}}, Constraint("gbnf", 'root ::= "a"')),
    ],
)
def test_constraints(more: dict[str, Any], constraint: Constraint | None) -> None:
    assert chat(**more).constraint == constraint


def test_tools_and_choices() -> None:
    both = {"tools": [WEATHER, NEWS]}
    assert [one.name for one in chat(**both).tools] == ["weather", "news"]
    assert chat(**both).tools[0].definition == WEATHER
    assert chat(**both).tool_choice == chat(tool_choice="auto", **both).tool_choice == ToolChoice()
    assert chat(tool_choice="none", **both).tool_choice == ToolChoice("none")
    assert chat(tool_choice="required", **both).tool_choice == ToolChoice("required")
    assert chat(tool_choice={"type": "function", "function": {"name": "news"}}, **both).tool_choice == ToolChoice("required", "news")
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "news"}}]}
    for value in ({"type": "allowed_tools", "allowed_tools": allowed}, {"type": "allowed_tools"} | allowed):
        one = chat(tool_choice=value, **both)
        assert ([tool.name for tool in one.tools], one.tool_choice) == (["news"], ToolChoice("required"))
    assert chat(**both).parallel_tool_calls is True
    assert chat(parallel_tool_calls=False, **both).parallel_tool_calls is False


def test_efforts() -> None:
    efforts = {
        "none": False,
        "minimal": "low",
        "low": "low",
        "medium": "medium",
        "high": "high",
        "max": "max",
        "xhigh": "max",
        "ultra": "max",
    }
    assert {name: chat(reasoning_effort=name).think for name in efforts} == efforts
    assert {name: chat(reasoning={"effort": name}).think for name in efforts} == efforts
    assert chat().think is chat(reasoning={}).think is None
    assert (chat(think=False).think, chat(think=True).think, chat(think="high").think) == (False, True, "high")


def test_logprobs_and_biases() -> None:
    assert chat().logprobs is chat(logprobs=False).logprobs is chat(top_logprobs=0).logprobs is None
    assert (chat(logprobs=True).logprobs, chat(logprobs=True, top_logprobs=3).logprobs, chat(top_logprobs=3).logprobs) == (0, 3, 3)
    assert chat(logit_bias={"5": -100, "7": 2.5, "9": 100}).logit_bias == ((5, -math.inf), (7, 2.5), (9, 100.0))


def test_the_seeds_of_several_choices_count_up() -> None:
    assert [one.sampling.seed for one in requests.each_choice(chat(seed=5), 3)] == [5, 6, 7]
    assert [one.sampling.seed for one in requests.each_choice(chat(seed=0x7FFFFFFF), 2)] == [0x7FFFFFFF, 0]
    assert [one.sampling.seed for one in requests.each_choice(chat(), 2)] == [None, None]


def completion(**more: Any) -> list[Any]:
    return list(requests.parse_completion({"model": "m", "prompt": "p"} | more)[0])


def test_completions() -> None:
    (one,) = completion(suffix="s", logprobs=2, max_tokens=4, regex="a")
    assert (one.prompt, one.suffix, one.logprobs, one.think, one.raw) == ("p", "s", 2, False, False)
    assert (one.sampling.num_predict, one.constraint) == (4, Constraint("regex", "a"))
    assert [one.prompt for one in completion(prompt=["a", "b"])] == ["a", "b"]
    assert completion(best_of=2, n=2) == completion()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"prompt": [1, 2]}, "prompt must be text; token ids are not accepted"),
        ({"prompt": [[1]]}, "prompt must be text; token ids"),
        ({"prompt": ["a", 1]}, "prompt must be text; token ids"),
        ({"prompt": ""}, "prompt must be a text that is not empty"),
        ({"prompt": None}, "prompt must be a text"),
        ({"prompt": []}, "prompt must be a text"),
        ({"prompt": ["a", ""]}, "prompt must be a text"),
        ({"prompt": 5}, "prompt must be a string or an array"),
        ({"model": ""}, "model is required"),
        ({"best_of": 2}, "best_of must be"),
        ({"prompt": ["a"] * 65, "n": 2}, "prompts times n"),
        ({"echo": True, "logprobs": 1}, "echo and logprobs exclude"),
        ({"echo": True, "suffix": "s"}, "echo and suffix exclude"),
        ({"logprobs": 21}, "logprobs must be"),
        ({"logprobs": True}, "logprobs must be"),
        ({"store": True}, "store is not supported"),
    ],
)
def test_refused_completions(more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadRequest) as refused:
        completion(**more)
    assert sentence in str(refused.value)


def test_embeddings() -> None:
    one, as_base64, ignored = requests.parse_embeddings(
        {
            "model": "m",
            "input": ["a", ""],
            "dimensions": 8,
            "encoding_format": "base64",
            "user": "u",
            "num_ctx": 64,
            "keep_alive": 5,
            "x": 1,
        }
    )
    assert (one.texts, one.dimensions, one.sampling, one.keep_alive, one.truncate) == (("a", ""), 8, Sampling(num_ctx=64), 5.0, True)
    assert (as_base64, ignored) == (True, ["x"])
    assert requests.parse_embeddings({"model": "m", "input": ""})[0].texts == ("",)
    assert requests.parse_embeddings({"input": "x"})[0].model == ""  # the service says so, with status 404 as in Ollama


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"input": [1, 2]}, "input must be text; token ids"),
        ({"input": [[1]]}, "input must be text; token ids"),
        ({"input": []}, "input must be"),
        ({"input": None}, "input must be"),
        ({"input": 5}, "input must be"),
        ({"encoding_format": "hex"}, "encoding_format must be float or base64"),
        ({"dimensions": 0}, "dimensions must be"),
        ({"options": {"x": 1}}, "options has a name"),
    ],
)
def test_refused_embeddings(more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadRequest) as refused:
        requests.parse_embeddings({"model": "m", "input": "x"} | more)
    assert sentence in str(refused.value)


def test_arguments_are_kept_in_their_order() -> None:
    text = json.dumps({"b": 1, "a": 2})
    (turn,) = chat({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": text}}]}).messages
    assert list(turn.tool_calls[0].arguments) == ["b", "a"]
