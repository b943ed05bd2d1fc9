"""One store for two programs: what ours makes of the recorded request has the bytes that a real Ollama made, weights apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from conftest import ROOT
from ndani import names
from ndani.store import Store, layout
from ndani.store.create import Recipe, create
from steps import listed
from stores import REAL

GOLDEN = ROOT.parent / "shared" / "golden"


@pytest.mark.weights
@pytest.mark.skipif(not GOLDEN.exists(), reason="the recordings of the real Ollama are not beside this repository")
def test_a_model_of_the_same_file_has_ollamas_config_and_layers(models: Path, tmp_path: Path) -> None:
    recorded = json.loads((GOLDEN / "ollama.json").read_text())["exchanges"]
    said = next(step for step in recorded if step["name"] == "create")["request"]["body"]
    theirs = Store(GOLDEN / "ollama-store").find(names.parse("smollm2"))
    ours = Store(tmp_path / "models")
    weights = Store(models).find(names.parse(REAL))
    place = ours.layout.blob(weights.weights.digest)
    place.parent.mkdir(parents=True)
    shutil.copyfile(weights.weights_path, place)
    recipe = Recipe(
        files={"smollm2.gguf": weights.weights.digest},
        template=said["template"],
        licenses=(said["license"],),
        parameters=said["parameters"],
    )
    listed(create, ours, names.parse("smollm2"), recipe)
    made = ours.find(names.parse("smollm2"))
    assert made.manifest.config == theirs.manifest.config, "the same config, byte for byte"
    assert (made.manifest.schema_version, made.manifest.media_type) == (theirs.manifest.schema_version, theirs.manifest.media_type)
    rest = [
        [(layer.media_type, layer.digest, layer.size) for layer in entry.layers if layer.media_type != layout.MODEL]
        for entry in (made, theirs)
    ]
    assert sorted(rest[0]) == sorted(rest[1])
    assert len(rest[0]) == 3
    assert made.layers[0].media_type == theirs.layers[0].media_type == layout.MODEL
    assert made.weights.size == theirs.weights.size
    raw = json.loads(made.path.read_bytes())
    assert list(raw) == list(json.loads(theirs.path.read_bytes()))
    assert list(raw["config"]) == ["mediaType", "digest", "size"]
    assert {path.name for path in ours.layout.root.iterdir()} <= {"blobs", "manifests", ".locks"}, "ours alone begins with a dot"
