"""/v1/responses and /v1/conversations over HTTP, on the echo engine: routes, state, errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import Start
from server import Server, until

RESPONSES, CONVERSATIONS = "/v1/responses", "/v1/conversations"
HI = {"model": "echo", "input": "hello there", "max_output_tokens": 2}


def create(server: Server, **body: Any) -> dict[str, Any]:
    answer = server.post(RESPONSES, HI | body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def refused(server: Server, status: int, method: str, path: str, body: object = None) -> str:
    """The sentence of an error, in OpenAI's envelope."""
    answer = server.http.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    kind = {400: "invalid_request_error", 404: "not_found_error"}.get(status, "api_error")
    assert error == {"message": error["message"], "type": kind, "param": None, "code": None}
    assert "\n" not in error["message"]
    return str(error["message"])


def text_of(response: dict[str, Any]) -> str:
    return "".join(part["text"] for item in response["output"] for part in item["content"])


def test_a_response_repeats_its_request(echo: Server) -> None:
    more = {"instructions": "be brief", "metadata": {"a": "b"}, "user": "u", "temperature": 0.5, "truncation": "auto", "top_p": 1.0}
    response = create(echo, **more)
    assert text_of(response) == "hello there"
    assert more.items() <= response.items()
    assert (response["object"], response["status"], response["store"]) == ("response", "completed", True)
    assert response["usage"]["total_tokens"] == response["usage"]["input_tokens"] + 2


def test_a_stream_ends_with_the_response_that_can_be_read(echo: Server) -> None:
    with echo.http.stream("POST", RESPONSES, json=HI | {"stream": True}) as answer:
        assert answer.headers["content-type"].partition(";")[0] == "text/event-stream"
        frames = "".join(answer.iter_text()).strip().split("\n\n")
    last = json.loads(frames[-1].partition("data: ")[2])["response"]
    assert text_of(last) == "hello there"
    assert echo.http.get(f"{RESPONSES}/{last['id']}").json() == last


def test_a_response_continues_another_without_its_instructions(echo: Server) -> None:
    first = create(echo, instructions="be very brief")
    plain = create(
        echo,
        input=[
            {"role": "user", "content": "hello there"},
            {"role": "assistant", "content": "hello there"},
            {"role": "user", "content": "and"},
        ],
    )
    second = create(echo, input="and", previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    assert second["usage"]["input_tokens"] == plain["usage"]["input_tokens"]
    assert second["instructions"] is None


def test_tokens_are_counted_before_they_are_sent(echo: Server) -> None:
    first = create(echo)
    for body in (HI, HI | {"instructions": "be brief"}, HI | {"previous_response_id": first["id"]}):
        counted = echo.post(
            f"{RESPONSES}/input_tokens", {name: value for name, value in body.items() if name != "max_output_tokens"}
        ).json()
        assert counted == {"object": "response.input_tokens", "input_tokens": create(echo, **body)["usage"]["input_tokens"]}
    assert "input is required" in refused(echo, 400, "POST", f"{RESPONSES}/input_tokens", {"model": "echo"})


def test_what_is_kept_can_be_listed_and_deleted(echo: Server) -> None:
    items = [{"role": "user", "content": str(number)} for number in range(3)]
    path = f"{RESPONSES}/{create(echo, input=items)['id']}"
    page = echo.http.get(f"{path}/input_items", params={"limit": 2}).json()
    assert [item["content"][0]["text"] for item in page["data"]] == ["2", "1"]
    assert (page["has_more"], page["last_id"]) == (True, page["data"][-1]["id"])
    rest = echo.http.get(f"{path}/input_items", params={"after": page["last_id"]}).json()
    assert ([item["content"][0]["text"] for item in rest["data"]], rest["has_more"]) == (["0"], False)
    assert echo.http.get(f"{path}/input_items", params={"order": "asc"}).json()["data"][0] == rest["data"][0]
    for query in ("limit=0", "limit=101", "limit=x", "order=up", "after=nothing"):
        refused(echo, 400, "GET", f"{path}/input_items?{query}")
    assert "only a response in the background can be cancelled" in refused(echo, 400, "POST", f"{path}/cancel")
    assert "is not streamed again" in refused(echo, 400, "GET", f"{path}?stream=true")
    deleted = echo.http.delete(path).json()
    assert deleted == {"id": path.rpartition("/")[2], "object": "response.deleted", "deleted": True}
    for method, end in (("GET", ""), ("DELETE", ""), ("GET", "/input_items"), ("POST", "/cancel")):
        assert "is not here" in refused(echo, 404, method, path + end)


def test_an_unknown_earlier_response_is_404_and_an_unknown_conversation_400(echo: Server) -> None:
    assert refused(echo, 404, "POST", RESPONSES, HI | {"previous_response_id": "resp_1"}).startswith("response resp_1 is not here")
    assert refused(echo, 400, "POST", RESPONSES, HI | {"conversation": "conv_1"}).startswith("conversation conv_1 is not here")
    assert refused(echo, 404, "GET", f"{RESPONSES}/resp_1").startswith("response resp_1 is not here")
    assert refused(echo, 404, "GET", f"{CONVERSATIONS}/conv_1").startswith("conversation conv_1 is not here")


def test_what_is_not_to_be_kept_is_not(echo: Server) -> None:
    response = create(echo, store=False)
    assert response["store"] is False
    refused(echo, 404, "GET", f"{RESPONSES}/{response['id']}")


def test_a_conversation_grows_with_its_responses(echo: Server) -> None:
    body = {"items": [{"role": "user", "content": "one"}], "metadata": {"a": "b"}}
    conversation = echo.post(CONVERSATIONS, body).json()
    assert conversation == {
        "id": conversation["id"],
        "object": "conversation",
        "created_at": conversation["created_at"],
        "metadata": {"a": "b"},
    }
    path = f"{CONVERSATIONS}/{conversation['id']}"
    response = create(echo, input="two", conversation={"id": conversation["id"]}, max_output_tokens=1)
    assert response["conversation"] == {"id": conversation["id"]}
    assert response["usage"]["input_tokens"] > create(echo, input="two")["usage"]["input_tokens"]
    items = echo.http.get(f"{path}/items", params={"order": "asc"}).json()["data"]
    assert [item["content"][0]["text"] for item in items] == ["one", "two", "two"]
    assert [item["role"] for item in items] == ["user", "user", "assistant"]
    assert "continue it with conversation" in refused(echo, 400, "POST", RESPONSES, HI | {"previous_response_id": response["id"]})
    # Without anything to say, what the conversation holds is answered.
    assert create(echo, input=[], conversation=conversation["id"], max_output_tokens=1)["status"] == "completed"
    assert echo.post(path, {"metadata": {"c": "d"}}).json()["metadata"] == {"c": "d"}
    assert echo.http.get(path).json()["metadata"] == {"c": "d"}
    assert echo.http.delete(path).json() == {"id": conversation["id"], "object": "conversation.deleted", "deleted": True}
    refused(echo, 404, "GET", path)
    refused(echo, 404, "GET", f"{path}/items")
    assert echo.http.get(f"{RESPONSES}/{response['id']}").status_code == 200


def test_an_answer_whose_client_has_left_is_not_kept(echo: Server) -> None:
    path = f"{CONVERSATIONS}/{echo.http.post(CONVERSATIONS).json()['id']}"
    slow = HI | {"input": "one two @delay=0.05", "max_output_tokens": 40, "stream": True, "conversation": path.rpartition("/")[2]}
    with echo.http.stream("POST", RESPONSES, json=slow) as answer:
        created = next(line for line in answer.iter_lines() if line.startswith("data: "))
    until(lambda: not echo.busy(), "the computation stops")
    refused(echo, 404, "GET", f"{RESPONSES}/{json.loads(created.partition(': ')[2])['response']['id']}")
    assert echo.http.get(f"{path}/items").json()["data"] == []


def test_items_of_a_conversation(echo: Server) -> None:
    path = f"{CONVERSATIONS}/{echo.http.post(CONVERSATIONS).json()['id']}"
    added = echo.post(f"{path}/items", {"items": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}).json()
    assert [item["content"][0]["text"] for item in added["data"]] == ["a", "b"]
    item = f"{path}/items/{added['first_id']}"
    assert echo.http.get(item).json() == added["data"][0]
    assert f"conversations/{echo.http.delete(item).json()['id']}" in path
    assert "no item of this id" in refused(echo, 404, "GET", item)
    assert "no item of this id" in refused(echo, 404, "DELETE", item)
    wrong = {"items": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}
    assert "that no function_call before it has" in refused(echo, 400, "POST", f"{path}/items", wrong)
    assert "that no function_call before it has" in refused(echo, 400, "POST", CONVERSATIONS, wrong)
    assert refused(echo, 400, "POST", f"{path}/items", {}) == "items is required"
    assert refused(echo, 400, "POST", path, {"metadata": "x"}) == "metadata must be an object"
    assert len(echo.http.get(f"{path}/items").json()["data"]) == 1


def test_an_item_that_is_kept_can_be_referred_to(echo: Server) -> None:
    message = create(echo)["output"][0]
    reference = {"type": "item_reference", "id": message["id"]}
    response = create(echo, input=[{"role": "user", "content": "hi"}, reference, {"role": "user", "content": "again"}])
    kept = echo.http.get(f"{RESPONSES}/{response['id']}/input_items", params={"order": "asc"}).json()["data"]
    assert kept[1] == message


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({"model": "nope"}, 404, "model 'nope' not found"),
        ({"input": None}, 400, "input is required: a text, or an array of items"),
        ({"input": []}, 400, "input is required: a text, or an array of items"),
        ({"instructions": 5}, 400, "instructions must be a string"),
        ({"tools": [{"type": "mcp"}]}, 400, "tools[0].type must be function"),
        ({"input": "x " * 9000}, 400, "the prompt is longer than the context length"),
    ],
)
def test_errors_are_one_sentence_in_openais_envelope(echo: Server, body: dict[str, Any], status: int, sentence: str) -> None:
    for stream in (False, True):
        assert refused(echo, status, "POST", RESPONSES, HI | {"stream": stream} | body).startswith(sentence)


def test_bodies_and_paths_that_are_none(echo: Server) -> None:
    for headers, content, sentence in (
        ({}, b"", "missing request body"),
        ({}, b'{"model":', "unexpected EOF"),
        ({}, b"[]", "the request body must be a JSON object"),
        ({"content-encoding": "zstd"}, b"\x28\xb5\x2f\xfd", "the request body is compressed; send it as it is"),
    ):
        answer = echo.http.post(RESPONSES, content=content, headers=headers)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith(sentence)
    answer = echo.http.put(RESPONSES)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert "does not have that method" in answer.json()["error"]["message"]
    assert "no such path" in refused(echo, 404, "GET", f"{RESPONSES}/a/b/c")


def test_truncation_auto_drops_the_oldest_turns(echo: Server) -> None:
    turns = [{"role": role, "content": "word " * 900} for role in ("user", "assistant") * 4]
    turns.append({"role": "user", "content": "the last"})
    assert text_of(create(echo, input=turns, truncation="auto")) == "the last"
    assert "longer than the context length" in refused(echo, 400, "POST", RESPONSES, HI | {"input": turns})


def test_an_answer_that_breaks_off_ends_with_response_failed(start: Start, echo_store: Path) -> None:
    server = start(echo_store)
    with server.http.stream("POST", RESPONSES, json=HI | {"input": "one two @crash=3", "max_output_tokens": 9, "stream": True}) as answer:
        frames = "".join(answer.iter_text()).strip().split("\n\n")
    last = json.loads(frames[-1].partition("data: ")[2])
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert text_of(last["response"]).startswith("one two")
    refused(server, 404, "GET", f"{RESPONSES}/{last['response']['id']}")


def test_nothing_is_kept_with_a_time_of_zero(start: Start, echo_store: Path) -> None:
    server = start(echo_store, NDANI_RESPONSES_TTL="0")
    response = create(server)
    assert response["store"] is False
    assert "NDANI_RESPONSES_TTL is 0" in refused(server, 404, "GET", f"{RESPONSES}/{response['id']}")
    assert "NDANI_RESPONSES_TTL is 0" in refused(server, 400, "POST", RESPONSES, HI | {"store": True})
    assert "NDANI_RESPONSES_TTL is 0" in refused(server, 403, "POST", CONVERSATIONS, {})


def test_what_is_kept_expires_and_is_on_no_disk(start: Start, echo_store: Path) -> None:
    server = start(echo_store, NDANI_RESPONSES_TTL="1s")
    response = create(server, input="quicksilver")
    assert server.http.get(f"{RESPONSES}/{response['id']}").status_code == 200
    until(lambda: server.http.get(f"{RESPONSES}/{response['id']}").status_code == 404, "the response expires", at_rest=3)
    for folder in (server.home, server.models, server.sockets):
        assert not [path for path in folder.rglob("*") if path.is_file() and b"quicksilver" in path.read_bytes()]
    assert "quicksilver" not in server.log


def test_the_fields_that_a_conversation_does_not_have_are_named(echo: Server) -> None:
    made = echo.http.post(CONVERSATIONS, json={"instructions": "no", "items": []})
    path = f"{CONVERSATIONS}/{made.json()['id']}"
    changed = echo.http.post(path, json={"metadata": {}, "items": []})
    added = echo.http.post(f"{path}/items", json={"items": [{"role": "user", "content": "hi"}], "model": "echo"})
    assert [answer.headers["x-ndani-ignored"] for answer in (made, changed, added)] == ["instructions", "items", "model"]
    assert "x-ndani-ignored" not in echo.http.post(CONVERSATIONS).headers
