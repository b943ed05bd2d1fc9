"""A manifest of somebody else's becomes a plan, or one sentence."""

from __future__ import annotations

import json
import re

import pytest

from ndani.errors import SourceFailed
from ndani.names import parse
from ndani.sources.manifest import read_manifest
from ndani.store import layout
from registries import make_model

MANIFEST, BLOBS = make_model(b"GGUF")
NAME = parse("tiny:1")


def test_a_file_that_is_said_to_be_empty_and_is_not_is_refused() -> None:
    for size in (len(b"be nice"), len(b"GGUF")):
        odd = re.sub(rf'"size": {size}\b'.encode(), b'"size": 0', MANIFEST)
        assert odd != MANIFEST
        with pytest.raises(SourceFailed, match="says files of a size they cannot have"):
            read_manifest(odd, NAME, "here")
    with pytest.raises(SourceFailed, match="has no weights"):
        read_manifest(make_model(b"")[0], NAME, "here")


def test_a_manifest_without_a_type_and_with_an_empty_file_is_a_models() -> None:
    manifest = json.loads(MANIFEST)
    del manifest["mediaType"]
    manifest["layers"].append({"mediaType": layout.SYSTEM, "digest": layout.digest_of(b""), "size": 0})
    plan = read_manifest(json.dumps(manifest).encode(), NAME, "here")
    assert [layer.content for layer in plan.layers if not layer.parts] == [b""]


def test_digests_are_planned_as_the_store_spells_them() -> None:
    plan = read_manifest(MANIFEST.replace(b"sha256:", b"sha256-"), NAME, "here")
    assert {layer.digest for layer in plan.layers} == set(BLOBS)
