"""An answer with a constraint after thoughts is made in two passes: what the second one goes on from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scripted_model import scripted
from server import Server, serving
from stores import put_echo

pytestmark = pytest.mark.slow

TEMPLATE = (
    "{{ range .Messages }}<|{{ .Role }}|>{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}{{ end }}"
    "<|assistant|>{{ if and .IsThinkSet .Think }}<think>{{ end }}"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("passes")
    put_echo(folder / "models", "closes", scripted("Hm, so.</think>7"), engine="gguf", template=TEMPLATE)
    put_echo(folder / "models", "ends", scripted("Hm, so."), engine="gguf", template=TEMPLATE)
    with serving(folder, folder / "models", NDANI_OFFLINE="1") as started:
        yield started


@pytest.mark.parametrize("model", ["closes", "ends"])
def test_the_second_pass_goes_on_from_thoughts_that_are_closed_once(server: Server, model: str) -> None:
    body = {"model": model, "prompt": "a", "think": True, "format": {"const": 7}, "options": {"num_predict": 40}}
    answer = server.ask("/api/generate", body)
    assert (answer["thinking"].strip(), answer["response"], answer["done_reason"]) == ("Hm, so.", "7", "stop")
    text = server.ask("/api/detokenize", {"model": model, "tokens": answer["context"]})["content"]
    assert text.count("</think>") == 1
    assert "<end>" not in text.split("</think>")[0]


@pytest.mark.parametrize("limit", range(1, 13))
def test_both_passes_together_have_no_more_tokens_than_are_wanted(server: Server, limit: int) -> None:
    body = {"model": "closes", "prompt": "a", "think": True, "format": {"const": 7}, "options": {"num_predict": limit}}
    answer = server.ask("/api/generate", body)
    assert answer["eval_count"] <= limit
    assert answer["done_reason"] == ("stop" if limit > 9 else "length")
    assert answer["response"] == ("7" if limit > 8 else "")


def test_a_bias_for_a_token_that_does_not_exist_is_refused(server: Server) -> None:
    body = {"model": "ends", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
    assert server.post("/v1/chat/completions", body | {"logit_bias": {"5": -1}}).status_code == 200
    refused = server.post("/v1/chat/completions", body | {"logit_bias": {"5": -1, "999999": 1}})
    assert refused.status_code == 400
    assert "logit_bias has token ids" in refused.json()["error"]["message"]
