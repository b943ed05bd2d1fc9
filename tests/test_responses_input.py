"""Bodies of /v1/responses: what each parameter becomes, and what is refused, with the sentence."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from ndani.api.responses.input_items import parse_items, to_messages
from ndani.api.responses.items import FunctionCall, Item, MessageItem
from ndani.api.responses.requests import ResponseRequest, parse_response
from ndani.errors import BadRequest
from ndani.types import Constraint, Message, ToolCall, ToolChoice

WEATHER = {"type": "function", "name": "weather", "description": "of a city", "parameters": {"type": "object"}, "strict": True}
TIME = {"type": "function", "name": "time"}
PNG = b"\x89PNG not really"
DATA_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()


def parsed(**body: Any) -> ResponseRequest:
    return parse_response({"model": "m", "input": "hi"} | body)


def messages(*items: dict[str, Any], kept: dict[str, Item] | None = None) -> tuple[Message, ...]:
    return to_messages(parse_items(list(items), "input", lambda: kept or {}))


def test_defaults_are_openais() -> None:
    request = parsed()
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.num_predict) == (1.0, 1.0, None)
    assert (request.tool_choice, request.constraint, request.think, request.logprobs) == (ToolChoice(), None, None, None)


def test_options_reach_the_sampling() -> None:
    sampling = parsed(max_output_tokens=7, temperature=0, top_p=0.5, num_ctx=512, seed=3, stop="x", presence_penalty=1).sampling
    assert (sampling.num_predict, sampling.temperature, sampling.top_p, sampling.num_ctx) == (7, 0.0, 0.5, 512)
    assert (sampling.seed, sampling.stop, sampling.presence_penalty) == (3, ("x",), 1.0)
    assert parsed(keep_alive="5m").keep_alive == 300.0
    assert parsed(keep_alive=-1).keep_alive == -1.0


@pytest.mark.parametrize(
    ("effort", "think"), [("none", False), ("minimal", "low"), ("low", "low"), ("high", "high"), ("xhigh", "max"), (None, None)]
)
def test_effort_is_how_far_a_model_thinks(effort: str | None, think: bool | str | None) -> None:
    assert parsed(reasoning={"effort": effort, "summary": "auto"}).think == think


def test_tools_are_shown_in_the_form_of_chats() -> None:
    request = parsed(tools=[WEATHER, TIME])
    function = {"name": "weather", "description": "of a city", "parameters": {"type": "object"}}
    assert request.tools[0].definition == {"type": "function", "function": function}
    assert request.tools[1].parameters == {"type": "object", "properties": {}}
    assert [tool.strict for tool in request.declared] == [True, None]


def test_tool_choice() -> None:
    tools = [WEATHER, TIME]
    assert parsed(tools=tools, tool_choice="required").tool_choice == ToolChoice("required")
    assert parsed(tools=tools, tool_choice={"type": "function", "name": "time"}).tool_choice == ToolChoice("required", "time")
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "time"}]}
    request = parsed(tools=tools, tool_choice=allowed)
    assert (request.tool_choice, [tool.name for tool in request.tools]) == (ToolChoice("auto"), ["time"])
    assert len(request.declared) == 2


def test_text_formats() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert parsed(text={"format": {"type": "json_object"}}).constraint == Constraint("json")
    given = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    assert parsed(text={"format": given}).constraint == Constraint("schema", schema)
    assert parsed(text={"format": {"type": "text"}, "verbosity": "medium"}).constraint is None


def test_logprobs_are_wanted_by_include_or_by_number() -> None:
    assert parsed(include=["message.output_text.logprobs"]).logprobs == 0
    assert parsed(include=["message.output_text.logprobs"], top_logprobs=3).logprobs == 3
    assert parsed(top_logprobs=2).logprobs == 2


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"model": ""}, "model is required"),
        ({"model": None}, "model must be a string"),
        ({"input": 5}, "input must be a string or an array"),
        ({"messages": []}, "messages is of another API; send input"),
        ({"background": True}, "background is not served here"),
        ({"prompt": {"id": "p"}}, "prompt is not served here"),
        ({"context_management": [{"type": "compaction"}]}, "context_management is not served here"),
        ({"service_tier": "flex"}, "service_tier must be auto or default"),
        ({"prompt_cache_retention": "24h"}, "prompt_cache_retention must be in_memory"),
        ({"text": {"verbosity": "low"}}, "text.verbosity must be medium"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format needs a name and a schema"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type has a value that is not one of those allowed"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation is not served here"),
        ({"include": ["file_search_call.results"]}, "include may have message.output_text.logprobs,"),
        ({"max_output_tokens": 0}, "max_output_tokens must be between 1 and"),
        ({"max_output_tokens": "9"}, "max_output_tokens must be an integer"),
        ({"max_tool_calls": 0}, "max_tool_calls must be 1 or more"),
        ({"temperature": 3}, "temperature must be between 0 and 2"),
        ({"top_p": 1.5}, 'option "top_p" must be between 0 and 1'),
        ({"top_logprobs": 21}, "top_logprobs must be between 0 and 20"),
        ({"truncation": "some"}, "truncation has a value that is not one of those allowed"),
        ({"conversation": "c", "previous_response_id": "r"}, "conversation and previous_response_id exclude each other"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata may have 16 texts"),
        ({"metadata": {"a": "x" * 513}}, "metadata may have 16 texts"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type must be function"),
        ({"tools": [{"type": "function"}]}, "tools[0].name must be a string"),
        ({"tools": [WEATHER, TIME | {"name": ""}]}, "tools[1].name must be a text of 1 to"),
        ({"tool_choice": "any"}, "tool_choice must be auto, none, required"),
        ({"tool_choice": "required"}, "tool_choice is required, but there are no tools"),
        ({"tools": [TIME], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice names a function that is not among the tools"),
        ({"tools": [TIME], "tool_choice": {"type": "file_search"}}, "tool_choice.type must be function or allowed_tools"),
        ({"tools": [TIME], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice.tools must be an array"),
        ({"tools": [TIME], "tool_choice": {"type": "allowed_tools", "mode": "none", "tools": [TIME]}}, "tool_choice.mode must be auto"),
        ({"reasoning": {"summary": "concise"}}, "reasoning.summary must be auto or detailed"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.context must be auto and reasoning.mode standard"),
        ({"reasoning": {"effort": "some"}}, "reasoning.effort has a value that is not one of those allowed"),
        ({"keep_alive": "soon"}, 'time: invalid duration "soon"'),
    ],
)
def test_what_is_not_served_is_one_sentence(body: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadRequest) as met:
        parsed(**body)
    assert str(met.value).startswith(sentence)
    assert "\n" not in str(met.value)


def test_what_nobody_knows_is_named_as_ignored() -> None:
    assert parsed(client_metadata={}, user="u").ignored == ["client_metadata"]


def test_a_text_is_a_message_of_the_user() -> None:
    (item,) = parse_items("hi", "input", dict)
    assert to_messages([item]) == (Message("user", "hi"),)


def test_messages_in_each_of_their_shapes() -> None:
    image = {"type": "input_image", "image_url": DATA_URL, "detail": "high"}
    assert messages(
        {"role": "developer", "content": "be brief"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "text", "text": "b"}, image]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "c", "annotations": []}, {"type": "refusal", "refusal": "d"}]},
        {"role": "user", "content": "e"},
    ) == (Message("system", "be brief"), Message("user", "ab", images=(PNG,)), Message("assistant", "cd"), Message("user", "e"))


def test_reasoning_text_and_calls_are_one_turn() -> None:
    call = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city": "Nairobi"}'}
    items: list[dict[str, Any]] = [
        {"role": "user", "content": "how is it?"},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "look"}], "encrypted_content": "x"},
        {"role": "assistant", "content": "I look"},
        call,
        call | {"call_id": "call_2"},
        {"type": "function_call_output", "call_id": "call_1", "output": "sun"},
        {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "rain"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "both"}]},
        {"role": "assistant", "content": "sun and rain"},
        {"type": "reasoning", "summary": []},
        {"role": "assistant", "content": "again"},
    ]
    calls = tuple(ToolCall("weather", {"city": "Nairobi"}, f"call_{n + 1}", n) for n in range(2))
    assert messages(*items) == (
        Message("user", "how is it?"),
        Message("assistant", "I look", "look", tool_calls=calls),
        Message("tool", "sun", tool_name="weather", tool_call_id="call_1"),
        Message("tool", "rain", tool_name="weather", tool_call_id="call_2"),
        Message("assistant", "sun and rain", "both"),
        Message("assistant", "again"),
    )


def test_a_message_after_calls_is_another_turn() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": ""}
    assert messages(call, {"role": "assistant", "content": "x"}) == (
        Message("assistant", "", tool_calls=(ToolCall("f", {}, "c"),)),
        Message("assistant", "x"),
    )


def test_items_keep_their_ids_and_others_get_one() -> None:
    first, second = parse_items([{"id": "msg_1", "role": "user", "content": "a"}, {"role": "user", "content": "b"}], "input", dict)
    assert first.id == "msg_1"
    assert second.id.startswith("msg_")
    assert len(second.id) > 40


def test_a_reference_is_the_item_itself() -> None:
    kept: dict[str, Item] = {"fc_1": FunctionCall(id="fc_1", call_id="c", name="f", arguments="{}")}
    output = {"type": "function_call_output", "call_id": "c", "output": "x"}
    for reference in ({"type": "item_reference", "id": "fc_1"}, {"id": "fc_1"}):
        assert [m.role for m in messages(reference, output, kept=kept)] == ["assistant", "tool"]


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        ({"type": "computer_call"}, "input[0].type must be one of message, reasoning,"),
        ({"type": 5}, "input[0].type must be one of message,"),
        ({"role": "tool", "content": "x"}, "input[0].role has a value that is not one of those allowed"),
        ({"content": "x"}, "input[0].role is required"),
        ({"role": "user", "content": 5}, "input[0].content must be a string or an array of parts"),
        ({"role": "user", "content": ["x"]}, "input[0].content[0] must be an object"),
        ({"role": "user", "content": [{"type": "input_file"}]}, "input[0].content[0].type must be one of input_text,"),
        ({"role": "user", "content": [{"type": "input_text"}]}, "input[0].content[0].text is required"),
        ({"type": "function_call", "call_id": "c", "name": "f", "arguments": "[]"}, "input[0].arguments must be the text of a JSON object"),
        ({"type": "function_call", "call_id": "c", "name": "f", "arguments": "{"}, "input[0].arguments must be the text of a JSON object"),
        ({"type": "function_call", "name": "f"}, "input[0].call_id is required"),
        ({"type": "function_call_output", "call_id": "c", "output": "x"}, "a function_call_output has a call_id that no function_call"),
        ({"type": "item_reference", "id": "nothing"}, "input[0].id names no item that is kept here"),
        ({"role": "user", "content": "x", "id": "a b"}, "input[0].id must be a text of 1 to 128"),
        (
            {"role": "user", "content": [{"type": "input_image", "image_url": "https://a.example/b.png"}]},
            "image URLs are not currently supported",
        ),
        (
            {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,!"}]},
            "input_image.image_url must be base64",
        ),
        ({"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}, "an input_image needs an image_url"),
    ],
)
def test_a_wrong_item_is_named(item: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadRequest) as met:
        messages(item)
    assert str(met.value).startswith(sentence)


def test_a_message_of_one_text_is_kept_as_a_part() -> None:
    (user, assistant) = parse_items([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "input", dict)
    assert isinstance(user, MessageItem)
    assert isinstance(assistant, MessageItem)
    assert [type(m.content[0]).__name__ for m in (user, assistant)] == ["InputText", "OutputText"]
