"""Known chat templates: what is recognised, how far off it may be, and what `create` makes of it."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from conftest import ROOT, Start
from ndani import names
from ndani.prompts.template import Conversation, Turn, parse
from ndani.store import Store, layout
from ndani.store.known_templates import EDIT_LIMIT, KNOWN_TEMPLATES, edit_distance, find_known_template
from server import Server
from stores import REAL, gguf

RECORDED = ROOT.parent / "shared" / "golden" / "templates.json"
[CHATML] = (chat for chat in KNOWN_TEMPLATES if chat.name == "chatml")
PLAIN = CHATML.jinja_variants[0]
STOPS = {"stop": ["<|im_start|>", "<|im_end|>"]}


def slow_edits(one: str, other: str) -> int:
    """Levenshtein's distance as it is taught, cell by cell."""
    row = list(range(len(one) + 1))
    for y, there in enumerate(other, 1):
        above, row[0] = row[0], y
        for x, here in enumerate(one, 1):
            above, row[x] = row[x], min(row[x] + 1, row[x - 1] + 1, above + (here != there))
    return row[-1]


def test_edits_are_counted_as_cell_by_cell() -> None:
    chosen = random.Random(7)
    pairs = [("", ""), ("", "abc"), ("abc", ""), ("kitten", "sitting"), ("é\n", "e\\n")]
    pairs += [("".join(chosen.choices("abcd", k=chosen.randrange(90))), "".join(chosen.choices("abcd", k=70))) for _ in range(60)]
    for one, other in pairs:
        assert edit_distance(one, other) == slow_edits(one, other) == edit_distance(other, one)


def test_near_is_known_and_far_is_not() -> None:
    assert find_known_template(PLAIN) is CHATML
    assert find_known_template(PLAIN.replace("\n", "\\n")) is CHATML
    assert find_known_template(PLAIN + "#" * (EDIT_LIMIT - 1)) is CHATML
    assert find_known_template(PLAIN + "#" * EDIT_LIMIT) is None
    assert find_known_template(None) is find_known_template("") is find_known_template("echo") is None
    # A short loop with other marks is nearer than a hundred letters, and yet another family's.
    other = PLAIN.replace("<|im_start|>", "[").replace("<|im_end|>", "]")
    assert edit_distance(PLAIN, other) < EDIT_LIMIT
    assert find_known_template(other) is None


def test_a_long_template_costs_nothing() -> None:
    began = time.perf_counter()
    assert find_known_template("{% for message in messages %}" * 400_000) is None
    assert time.perf_counter() - began < 5


def test_its_go_template_says_what_the_recorded_one_says() -> None:
    said = parse(CHATML.template).render(Conversation((Turn("system", "Be brief."), Turn("user", "Who?"))))
    assert said == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    if RECORDED.exists():
        [recorded] = [one for one in json.loads(RECORDED.read_text())["templates"] if one["name"] == "chatml"]
        assert recorded["template"] == CHATML.template


def layers(server: Server, model: str) -> dict[str, bytes]:
    entry = Store(server.models).find(names.parse(model))
    return {layer.media_type: entry.blobs.read(layer.digest) for layer in entry.layers if layer.media_type != layout.MODEL}


def create_over(server: Server, weights: bytes, **more: object) -> tuple[list[str], dict[str, bytes]]:
    digest = server.upload(weights)
    steps = [line["status"] for line in server.lines("/api/create", {"model": "made", "files": {"m.gguf": digest}, **more})]
    assert steps[-1] == "success", steps
    return steps, layers(server, "made")


def test_create_lays_them_over_a_file_and_what_is_said_over_them(start: Start, tmp_path: Path) -> None:
    server = start(tmp_path / "models")
    weights = gguf("known", template=PLAIN)
    steps, found = create_over(server, weights)
    assert steps[2] == "using autodetected template chatml"
    assert found[layout.TEMPLATE].decode() == CHATML.template
    assert json.loads(found[layout.PARAMS]) == STOPS
    steps, found = create_over(server, weights, template="{{ .Prompt }}", parameters={"num_ctx": 2048})
    assert not any("autodetected" in step for step in steps)
    assert found[layout.TEMPLATE] == b"{{ .Prompt }}"
    assert json.loads(found[layout.PARAMS]) == {"num_ctx": 2048, **STOPS}
    _, found = create_over(server, weights, parameters={"stop": ["x"]})
    assert json.loads(found[layout.PARAMS]) == {"stop": ["x"]}
    assert create_over(server, gguf("unknown"))[1] == {}
    # A model made of a model has what its base has, and no more: it was looked at when that was made.
    assert server.lines("/api/create", {"model": "second", "from": "made", "system": "Brief."})[-1]["status"] == "success"
    assert set(layers(server, "second")) == {layout.SYSTEM}


@pytest.mark.weights
def test_the_real_models_own_template_is_known(models: Path) -> None:
    store = Store(models)
    assert find_known_template(store.header(store.find(names.parse(REAL))).chat_template) is CHATML
