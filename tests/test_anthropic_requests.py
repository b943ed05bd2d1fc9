"""Anthropic's request bodies: what becomes of each field, and the sentence for each that cannot be honoured."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from ndani.api.anthropic.requests import parse_count_tokens, parse_messages
from ndani.errors import BadRequest
from ndani.types import ChatRequest, Constraint, Message, ToolCall, ToolChoice

HI = [{"role": "user", "content": "Hi"}]
WEATHER = {"name": "weather", "description": "of a city", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
PNG = b"\x89PNG\r\n\x1a\n and so on"


def parsed(**fields: Any) -> ChatRequest:
    return parse_messages({"model": "m", "max_tokens": 9, "messages": HI, **fields})[1]


def messages(*turns: tuple[str, Any], **fields: Any) -> tuple[Message, ...]:
    return parsed(messages=[{"role": role, "content": content} for role, content in turns], **fields).messages


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def image(data: bytes = PNG) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": base64.b64encode(data).decode()}}


def use(call_id: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": "weather", "input": arguments}


def result(call_id: str, content: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call_id, **({} if content is None else {"content": content}), **more}


def test_options() -> None:
    request = parsed(max_tokens=7, temperature=0.5, top_p=0.25, top_k=3, stop_sequences=["\n\n", "END"], num_ctx=512, keep_alive="2m")
    sampling = request.sampling
    assert (sampling.num_predict, sampling.temperature, sampling.top_p, sampling.top_k) == (7, 0.5, 0.25, 3)
    assert (sampling.stop, sampling.num_ctx, request.keep_alive) == (("\n\n", "END"), 512, 120.0)
    assert parsed(keep_alive=-1).keep_alive == -1
    assert (request.truncate, request.shift) == (False, False)  # nothing is left out silently


def test_null_is_as_if_a_field_were_missing() -> None:
    fields = (
        "system",
        "tools",
        "tool_choice",
        "thinking",
        "output_config",
        "stop_sequences",
        "temperature",
        "stream",
        "metadata",
        "container",
    )
    assert parsed(**dict.fromkeys(fields)) == parsed()


def test_labels_and_marks_of_the_cache_change_nothing() -> None:
    mark = {"type": "ephemeral", "ttl": "1h"}
    marked = parsed(
        system=[text("Be brief.", cache_control=mark)],
        messages=[{"role": "user", "content": [text("Hi", cache_control=mark)]}],
        tools=[WEATHER | {"cache_control": mark}],
        cache_control=mark,
        metadata={"user_id": "u"},
        service_tier="auto",
    )
    assert marked == parsed(system="Be brief.", tools=[WEATHER])


def test_the_system_prompt() -> None:
    assert messages(("user", "Hi"), system="Be brief.") == (Message("system", "Be brief."), Message("user", "Hi"))
    assert messages(("user", "Hi"), system=[text("One."), text("Two.")])[0] == Message("system", "One.\nTwo.")
    assert messages(("user", "Hi"), system="") == messages(("user", "Hi"), system=[]) == (Message("user", "Hi"),)


def test_a_billing_line_is_no_part_of_the_prompt() -> None:
    lines = [text("x-anthropic-billing-header: cc_version=1; cch=9f3a1;"), text("You write code.")]
    assert messages(("user", "Hi"), system=lines)[0] == Message("system", "You write code.")


def test_system_turns_stay_where_they_are() -> None:
    roles = messages(("user", "Hi"), ("system", "Now in French."), ("user", [text("Go")]), ("system", [text("Stop.")]))
    assert roles == (Message("user", "Hi"), Message("system", "Now in French."), Message("user", "Go"), Message("system", "Stop."))


def test_neighbouring_turns_of_one_role_are_one() -> None:
    assert messages(("user", "a"), ("user", [text("b"), text("c")]), ("assistant", "d"), ("assistant", "e")) == (
        Message("user", "a\nb\nc"),
        Message("assistant", "d\ne"),
    )


def test_images_belong_to_their_turn() -> None:
    assert messages(("user", [image(), text("What is it?"), image(b"two")])) == (Message("user", "What is it?", images=(PNG, b"two")),)


def test_tool_calls_and_their_results() -> None:
    turns = messages(
        ("user", "Weather?"),
        (
            "assistant",
            [{"type": "thinking", "thinking": "Two cities.", "signature": ""}, text("I look."), use("a", city="Kisumu"), use("b")],
        ),
        ("user", [text("Thanks."), result("a", "sunny"), result("b", [text("no"), text("city"), image()], is_error=True)]),
    )
    assert turns == (
        Message("user", "Weather?"),
        Message(
            "assistant",
            "I look.",
            thinking="Two cities.",
            tool_calls=(ToolCall("weather", {"city": "Kisumu"}, "a", 0), ToolCall("weather", {}, "b", 1)),
        ),
        Message("tool", "sunny", tool_name="weather", tool_call_id="a"),
        Message("tool", "Error: no\ncity", tool_name="weather", tool_call_id="b", images=(PNG,)),
        Message("user", "Thanks."),
    )


def test_a_turn_of_results_alone_says_nothing_more() -> None:
    turns = messages(("user", "?"), ("assistant", [use("a")]), ("user", [result("a")]))
    assert turns[2:] == (Message("tool", "", tool_name="weather", tool_call_id="a"),)


def test_thoughts_that_nobody_can_read_are_left_out() -> None:
    hidden = {"type": "redacted_thinking", "data": "EmwKAhgB"}
    assert messages(("user", "?"), ("assistant", [hidden, text("Yes.")]), ("user", "Why?"))[1] == Message("assistant", "Yes.")


def test_tools() -> None:
    (tool,) = parsed(tools=[WEATHER | {"type": "custom", "strict": True, "eager_input_streaming": True}]).tools
    assert (tool.name, tool.parameters) == ("weather", WEATHER["input_schema"])
    assert tool.definition == {
        "type": "function",
        "function": {"name": "weather", "description": "of a city", "parameters": WEATHER["input_schema"]},
    }


@pytest.mark.parametrize(
    ("choice", "wanted", "parallel"),
    [
        ({"type": "auto"}, ToolChoice("auto"), True),
        ({"type": "none"}, ToolChoice("none"), True),
        ({"type": "any", "disable_parallel_tool_use": False}, ToolChoice("required"), True),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolChoice("auto"), False),
        ({"type": "tool", "name": "weather", "disable_parallel_tool_use": True}, ToolChoice("required", "weather"), False),
    ],
)
def test_tool_choice(choice: dict[str, Any], wanted: ToolChoice, parallel: bool) -> None:
    request = parsed(tools=[WEATHER], tool_choice=choice)
    assert (request.tool_choice, request.parallel_tool_calls) == (wanted, parallel)


@pytest.mark.parametrize(
    ("fields", "think"),
    [
        ({}, False),  # a client that does not ask for thinking reads the first block as the answer
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": {"type": "adaptive"}}, True),
        ({"thinking": {"type": "enabled"}}, True),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, "medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 9000}}, "high"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}, "output_config": {"effort": "max"}}, "max"),
        ({"output_config": {"effort": "xhigh"}}, "high"),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}}, False),
    ],
)
def test_thinking(fields: dict[str, Any], think: bool | str) -> None:
    request = parsed(**fields, max_tokens=10_000)
    assert (request.think, request.think_if_possible) == (think, True)
    assert request.think_budget == (fields.get("thinking") or {}).get("budget_tokens")


def test_the_form_of_the_answer() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "schema": schema}
    wanted = Constraint("schema", schema)
    assert parsed(output_config={"format": form}).constraint == wanted
    assert parsed(output_format=form).constraint == wanted
    assert parsed(output_config={"effort": "low"}).constraint is None


def test_context_management_that_keeps_everything_changes_nothing() -> None:
    edits = [{"type": "clear_thinking_20251015", "keep": "all"}]
    assert parsed(context_management={"edits": edits}) == parsed(context_management={}) == parsed()


def test_a_request_to_count_has_no_options() -> None:
    body = {"model": "m", "messages": HI, "system": "Be brief.", "tools": [WEATHER], "thinking": {"type": "enabled", "budget_tokens": 5000}}
    _, counted = parse_count_tokens(body)
    asked = parsed(system="Be brief.", tools=[WEATHER], thinking=body["thinking"], max_tokens=6000)
    assert (counted.messages, counted.tools, counted.think) == (asked.messages, asked.tools, asked.think)


SCHEMA_FORM = {"type": "json_schema", "schema": {}}
CALLED = {"role": "assistant", "content": [use("a")]}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model": ""}, "model is required"),
        ({"model": 3}, "model must be a string"),
        ({"max_tokens": None}, "max_tokens is required and must be positive"),
        ({"max_tokens": 0}, "max_tokens is required and must be positive"),
        ({"max_tokens": "9"}, "max_tokens must be an integer"),
        ({"messages": None}, "messages is required"),
        ({"messages": []}, "messages is required"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content must not be an empty array"),
        ({"messages": [{"role": "system", "content": ""}]}, "messages holds no words to answer"),
        ({"messages": [{"role": "user"}]}, "messages[0].content is required"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages[0].role has a value that is not one of those allowed"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
            "content[0].type has a value that is not one of those allowed",
        ),
        ({"messages": [{"role": "user", "content": [use("a")]}]}, "messages[0].content[0] is a tool_use block"),
        ({"messages": [*HI, {"role": "assistant", "content": [image()]}]}, "messages[1].content[0] is a image block"),
        ({"messages": [*HI, {"role": "system", "content": [image()]}]}, "does not belong in a turn of the system"),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}, "send its text as a text block"),
        ({"messages": [{"role": "user", "content": [{"type": "search_result"}]}]}, "messages[0].content[0] is a search_result block"),
        ({"messages": [{"role": "user", "content": [result("x")]}]}, "messages[0].content[0].tool_use_id is not the id of a tool_use"),
        (
            {"messages": [CALLED, {"role": "user", "content": [result("a", [{"type": "document"}])]}]},
            "messages[1].content[0].content[0] is a",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}]}, "fetches no URL"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}]}, "keeps no files"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": "?"}}]}]},
            "messages[0].content[0].source.data must be base64",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0] is a tool of Anthropic's own"),
        ({"tools": [WEATHER, {"type": "bash_20250124", "name": "bash"}]}, "tools[1] is a tool of Anthropic's own"),
        ({"tools": [{"name": "weather"}]}, "tools[0].input_schema is required"),
        ({"tools": [WEATHER | {"name": ""}]}, "tools[0].name must be"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name is that of an earlier tool"),
        ({"tools": [WEATHER | {"defer_loading": True}]}, "tools[0] uses defer_loading"),
        ({"tool_choice": {"type": "any"}}, "tool_choice is any, but there are no tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "time"}}, "tool_choice.name is not the name of any of the tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "all"}}, "tool_choice.type has a value that is not one of those allowed"),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "thinking.budget_tokens must be less than max_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens must be positive"),
        ({"output_config": {"format": SCHEMA_FORM}, "output_format": SCHEMA_FORM}, "send one of them"),
        ({"temperature": -1}, 'option "temperature" must be between'),
        ({"stop_sequences": [""]}, "stop_sequences must not hold an empty text"),
        ({"keep_alive": "soon"}, "invalid duration"),
        ({"container": "c"}, "container is a service of Anthropic's"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers are not called"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management is not in this version"),
        ({"speed": "fast"}, "speed must be standard"),
        ({"inference_geo": "us"}, "everything is computed on this machine"),
        ({"diagnostics": {"previous_message_id": "m"}}, "diagnostics are not in this version"),
    ],
)
def test_what_cannot_be_honoured_is_one_sentence(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parsed(**fields)
    assert sentence in str(refused.value)


def test_no_sentence_quotes_a_prompt() -> None:
    secret = "the patient's name"
    for fields in (
        {"messages": [{"role": "user", "content": {"text": secret}}]},
        {"messages": [{"role": secret, "content": secret}]},
        {"messages": [{"role": "user", "content": [{"type": secret}]}]},
        {"messages": [{"role": "user", "content": [result(secret)]}]},
        {"tools": [{"type": secret, "name": secret}]},
        {"system": {"a": secret}},
    ):
        with pytest.raises(BadRequest) as refused:
            parsed(**fields)
        assert secret not in str(refused.value)
