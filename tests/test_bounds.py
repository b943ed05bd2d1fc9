"""Bounds on what a model may say and hold: what no reader could take is refused, and not kept or passed on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ndani import names
from ndani.errors import BadRequest
from ndani.store import Store
from ndani.store.create import Recipe, create
from ndani.store.weights_info import WeightsInfo
from ndani.types import Message
from steps import listed
from stores import put_echo


@pytest.fixture
def store(tmp_path: Path) -> Store:
    put_echo(tmp_path / "models", "a")
    return Store(tmp_path / "models")


def test_a_size_that_no_client_could_read_is_no_size(store: Store) -> None:
    put_echo(store.layout.root, "huge")
    path = store.layout.manifest(names.parse("huge"))
    said = json.loads(path.read_bytes())
    said["layers"][0]["size"] = 10**30
    path.write_text(json.dumps(said))
    assert [model.name for model in store.list_models()] == ["a:latest"]
    assert store.damaged == [
        "the manifest of huge:latest is damaged in the store; run `ndani verify --repair`, or remove it with `ndani rm`"
    ]


def test_lengths_below_nothing_count_as_not_said() -> None:
    keys = {"general.architecture": "llama", "llama.block_count": 2, "llama.attention.head_count": 4}
    odd = {"llama.context_length": -1, "llama.attention.key_length": -8, "llama.attention.head_count_kv": [-4, 2]}
    header = WeightsInfo(Path("-"), {**keys, **odd, "llama.embedding_length": 64}, ())
    assert (header.context_length, header.key_length, header.head_count_kv) == (0, 16, 2)
    assert header.kv_bytes_per_token() == 2 * (16 + 16) * 2


LONG = "x" * (17 << 20)


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        (Recipe(system=LONG), "the system would take 17825792 bytes, and no more than 16777216 are ever read of it; make it shorter"),
        (Recipe(licenses=(LONG,)), "the license would take 17825792 bytes"),
        (Recipe(template=LONG), "the template would take 17825792 bytes"),
        (Recipe(messages=(Message("user", LONG),)), "the messages would take 17825823 bytes"),
        (Recipe(licenses=tuple(map(str, range(1000)))), "the model would have 1001 parts, each license one of them, and may have 1000"),
    ],
    ids=["system", "license", "template", "messages", "licenses"],
)
def test_what_could_not_be_read_again_is_not_stored(store: Store, recipe: Recipe, sentence: str) -> None:
    before = set(store.layout.root.rglob("*"))
    with pytest.raises(BadRequest) as caught:
        listed(create, store, names.parse("new"), replace(recipe, base=store.find(names.parse("a"))))
    assert str(caught.value).startswith(sentence)
    assert set(store.layout.root.rglob("*")) == before


def test_what_can_be_read_is(store: Store) -> None:
    listed(create, store, names.parse("new"), Recipe(base=store.find(names.parse("a")), system="x" * (16 << 20)))
    assert len(store.find(names.parse("new")).system or "") == 16 << 20
