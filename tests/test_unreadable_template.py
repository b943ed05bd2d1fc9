"""Weights whose chat template the engine cannot read: they load, and whoever needs that template is told so."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from conftest import Start
from ndani import names
from ndani.store import Store
from stores import REAL, put_echo

pytestmark = [pytest.mark.weights, pytest.mark.slow]

_KEY = b"tokenizer.chat_template"
UNREADABLE = [
    "{{- if .System }}{{ .System }}{{ end }}{{ .Prompt }}",
    "{% call say() %}x{% endcall %}",
    "{{ messages | no_such_filter }}",
]
SAYS = "the chat template cannot be read that this model's file carries; create the model again with a TEMPLATE of its own"


def spoiled(models: Path, template: str) -> bytes:
    """The real model with another chat template in the same room."""
    raw = Store(models).find(names.parse(REAL)).weights_path.read_bytes()
    at = raw.index(_KEY) + len(_KEY) + 4
    (size,) = struct.unpack_from("<Q", raw, at)
    return raw[: at + 8] + template.encode().ljust(size) + raw[at + 8 + size :]


@pytest.mark.parametrize("template", UNREADABLE)
def test_it_loads_and_says_so_only_where_it_is_needed(start: Start, models: Path, tmp_path: Path, template: str) -> None:
    store = tmp_path / "models"
    weights = spoiled(models, template)
    put_echo(store, "bare", weights, engine="gguf")
    put_echo(store, "own", weights, engine="gguf", template="{{ .Prompt }}")
    server = start(store)
    few = {"options": {"num_predict": 3, "temperature": 0}, "stream": False}
    chat = {"messages": [{"role": "user", "content": "One, two, three,"}], **few}
    for path, body in (("/api/chat", chat), ("/api/generate", {"prompt": "One, two,", **few})):
        refused = server.post(path, {"model": "bare", **body})
        assert (refused.status_code, refused.json()) == (400, {"error": SAYS})
    assert server.ask("/api/generate", {"model": "bare", "prompt": "One, two,", "raw": True, **few})["eval_count"] == 3
    assert server.ask("/api/generate", {"model": "bare", "prompt": "One, two,", "template": "{{ .Prompt }}", **few})["eval_count"] == 3
    assert server.ask("/api/chat", {"model": "own", **chat})["eval_count"] == 3
    assert len(server.runners()) == 1, "one runner for both, and it is well"
    assert server.ask("/api/embed", {"model": "bare", "input": "One, two"})["embeddings"]
