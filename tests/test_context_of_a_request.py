"""A request that asks for less context than its slot has gets no more, also where the engine reads the answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from scripted_model import scripted
from server import Server, serving
from stores import put_echo
from test_scripted_answers import CASES, TOOLS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("context")
    case = next(case for case in CASES if case.name == "hermes, read by the engine")
    put_echo(folder / "models", "m", scripted(case.text, chat_template=case.chat_template), engine="gguf")
    with serving(folder, folder / "models", NDANI_OFFLINE="1") as started:
        yield started


@pytest.mark.parametrize("tools", [[], TOOLS[:1]], ids=["text", "tools"])
def test_a_conversation_is_made_to_fit_what_the_request_asks_for(server: Server, tools: list[dict[str, Any]]) -> None:
    def ask(num_ctx: int, **more: Any) -> Any:
        turns = [{"role": "user", "content": "word " * 80} for _ in range(5)]
        options = {"num_ctx": num_ctx, "num_predict": 5}
        return server.post("/api/chat", {"model": "m", "messages": turns, "tools": tools, "stream": False, "options": options} | more)

    whole = ask(4096)
    assert whole.status_code == 200
    assert whole.json()["prompt_eval_count"] > 1500
    assert 400 < ask(1024).json()["prompt_eval_count"] < 1024
    refused = ask(1024, truncate=False)
    assert refused.status_code == 400
    assert "longer than the context length" in refused.json()["error"]
    assert ask(4096).json()["prompt_eval_count"] == whole.json()["prompt_eval_count"]
