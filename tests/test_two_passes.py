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
