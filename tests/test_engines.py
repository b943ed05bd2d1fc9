"""What an engine says of itself decides what is refused; nobody asks for its name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ndani import engines, names
from ndani.api.ollama.requests import parse_chat, parse_generate
from ndani.engines import ENGINES, EngineSpec, engine_for
from ndani.errors import Misconfigured, Unsupported
from ndani.service.answers import UNSUPPORTED_FEATURES, _features, _reject_unsupported
from ndani.service.resolver import ModelResolver, ResolvedModel
from ndani.settings import Settings
from ndani.store import Store
from stores import put_echo

TURN = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}], "images": ["aGk="]}
ALL = {
    "model": "m",
    "messages": [TURN],
    "think": True,
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "images": ["aGk="],
    "format": "json",
    "logprobs": True,
    "prompt": "x",
}


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_is_found_by_its_name_and_by_its_weights(name: str) -> None:
    spec = ENGINES[name]
    assert spec.name == name
    assert spec.formats
    assert all(engine_for(weights_format) is spec for weights_format in spec.formats)
    assert callable(engines.host(name).prepare)
    assert spec.features <= set(UNSUPPORTED_FEATURES)


def test_what_nobody_knows_is_said_or_left_to_llama() -> None:
    with pytest.raises(Misconfigured, match="there is no engine 'steam'"):
        engines.host("steam")
    assert engine_for("") is engine_for("of another kind") is ENGINES["llama"]


async def resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: EngineSpec, **layers: object) -> ResolvedModel:
    """A model of the echo engine, had that been able to do what `spec` says."""
    monkeypatch.setattr(engines, "ENGINES", {"echo": spec})
    put_echo(tmp_path, "m", **layers)
    store = Store(tmp_path)
    return await ModelResolver(Settings(models=tmp_path), store).resolve(store.find(names.parse("m")))


async def test_all_that_can_be_asked_for_is_refused_unless_the_engine_serves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [parse_chat(ALL)[0], parse_generate(ALL)[0]]
    features = _features(requests[0]) | _features(requests[1])
    assert features == set(UNSUPPORTED_FEATURES), "each has a sentence, and no sentence is for nothing"
    for served in sorted(features):
        model = await resolved(tmp_path, monkeypatch, replace(ENGINES["echo"], features=features - {served}))
        for request in requests:
            if served in _features(request):
                with pytest.raises(Unsupported, match=UNSUPPORTED_FEATURES[served]):
                    _reject_unsupported(model, request)
            else:
                _reject_unsupported(model, request)


async def test_vectors_and_adapters_are_for_engines_that_have_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = {"adapter": json.dumps({"not": "looked at"})}
    bare = replace(ENGINES["echo"], adapters=False, embeddings=True)
    with pytest.raises(Unsupported, match="models with an adapter are not in this version of the engine echo"):
        await resolved(tmp_path, monkeypatch, bare, **layers)
    with pytest.raises(Unsupported, match="models with an adapter are not in this version of the engine echo"):
        await resolved(tmp_path, monkeypatch, ENGINES["echo"], **layers)  # it has no weights for one to be laid over
    model = await resolved(tmp_path, monkeypatch, bare)
    resolver = ModelResolver(Settings(models=tmp_path), Store(tmp_path))
    assert resolver.spec_for_vectors(model, model.options).embedding
    with pytest.raises(Unsupported, match='"m:latest" does not support embeddings'):
        resolver.spec_for_vectors(replace(model, engine=ENGINES["echo"]), model.options)
