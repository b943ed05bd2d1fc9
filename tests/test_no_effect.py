"""What a request says and nothing can obey here is named in a header, not passed over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from server import Server, serving
from stores import put_echo
from test_answer_echo import TEMPLATE

HEADER = "x-ndani-ignored"
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model that thinks and calls."""
    store = tmp_path_factory.mktemp("ignored") / "models"
    put_echo(store, "m", template=TEMPLATE)
    with serving(store.parent, store) as started:
        yield started


def ignored(server: Server, path: str, **body: Any) -> str | None:
    """The header of an answer of a few tokens."""
    answer = server.post(path, {"model": "m", "max_tokens": 4, "max_output_tokens": 4, "stream": False} | body)
    assert answer.status_code == 200, answer.text
    return answer.headers.get(HEADER)


@pytest.mark.parametrize("strict", [True, False])
def test_a_strict_tool_that_may_be_called_is_not_held_to_its_schema(server: Server, strict: bool) -> None:
    function = {"name": "f", "parameters": {"type": "object"}, "strict": strict}
    found = {
        ignored(server, "/v1/chat/completions", messages=HI, tools=[{"type": "function", "function": function}], max_output_tokens=None),
        ignored(server, "/v1/messages", messages=HI, tools=[{"name": "f", "input_schema": {"type": "object"}, "strict": strict}]),
    }
    names = {name for header in found if header for name in header.split(", ")}
    assert ("strict" in names) is strict
    response = server.post(
        "/v1/responses", {"model": "m", "input": "hi", "max_output_tokens": 4, "tools": [{"type": "function"} | function]}
    )
    assert response.headers.get(HEADER) == ("strict" if strict else None), response.text


def test_a_call_is_sent_whole(server: Server) -> None:
    tool = {"name": "f", "input_schema": {"type": "object"}, "eager_input_streaming": True}
    assert "eager_input_streaming" in (ignored(server, "/v1/messages", messages=HI, tools=[tool]) or "")


@pytest.mark.parametrize("think", [True, "high", False, None])
def test_a_raw_prompt_has_no_place_for_think(server: Server, think: bool | str | None) -> None:
    options = {"num_predict": 3}
    answer = server.post("/api/generate", {"model": "m", "prompt": "hi", "raw": True, "think": think, "stream": False, "options": options})
    assert answer.headers.get(HEADER) == ("think" if think else None)
