"""Create: layers, order, statuses and ids as the real Ollama's, everything wrong found before anything is written."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

import gguf_files
from conftest import ROOT
from ndani import names
from ndani.convert import kernels
from ndani.errors import BadRequest, NdaniError, StoreFailed, Unsupported
from ndani.store import Store, layout
from ndani.store.architectures import ARCHITECTURES
from ndani.store.create import Recipe, create
from ndani.store.modelfile import Modelfile, parse, print_modelfile, to_request
from ndani.types import Message, Progress
from steps import Left, listed
from stores import LORA, gguf

GOLDEN = ROOT.parent / "shared" / "golden"
recorded = pytest.mark.skipif(not GOLDEN.exists(), reason="the recordings of the real Ollama are not beside this repository")


def create_model(store: Store, name: str, recipe: Recipe) -> list[str]:
    return [step.status for step in listed(create, store, names.parse(name), recipe)]


def find(store: Store, name: str) -> Any:
    return store.find(names.parse(name))


def put_gguf(store: Store, **more: int | str) -> str:
    """The digest of a small GGUF file that a client has sent."""
    return store.blobs.put(gguf(**more))  # type: ignore[arg-type]


def damaged() -> dict[str, bytes]:
    """GGUF files of which an engine could make nothing."""
    whole = bytearray(gguf_files.gguf({"a.weight": bytes(100), "b.weight": bytes(100)}))
    place = whole.index(b"b.weight") + len("b.weight")  # its dimensions, its one size, its type, its offset

    def changed(at: int, content: bytes) -> bytes:
        return bytes(whole[:at] + content + whole[at + len(content) :])

    key = whole[:16] + struct.pack("<QQ", 1, 1) + b"k"
    return {
        "version": changed(4, struct.pack("<I", 99)),
        "nested": bytes(key + struct.pack("<IIQ", 9, 9, 1) + bytes(64)),
        "unknown": bytes(key + struct.pack("<I", 99) + bytes(64)),
        "lost": bytes(whole[:-64]),
        "far": changed(place + 16, struct.pack("<Q", 2**64 - 1)),
        "over": changed(place + 16, struct.pack("<Q", 32)),
        "twice": changed(place - 8, b"a"),
        "none": changed(place + 4, bytes(8)),
        "type": changed(place + 12, struct.pack("<I", 255)),
    }


def base(store: Store) -> Any:
    recipe = Recipe(
        files={"m.gguf": put_gguf(store, salt="base")}, template="{{ .Prompt }}", system="old", licenses=("free",),
        parameters={"stop": ["<a>"], "num_ctx": 2048}, messages=(Message("user", "hi"),),
    )  # fmt: skip
    create_model(store, "base:1", recipe)
    return find(store, "base:1")


@pytest.fixture
def real(tmp_path: Path) -> Store:
    """The recorded store; the weights, which were left out, as a file of the right name and length with nothing in it."""
    shutil.copytree(GOLDEN / "ollama-store", tmp_path / "real", copy_function=shutil.copyfile)
    for path in (tmp_path / "real").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    store = Store(tmp_path / "real")
    for layer in find(store, "smollm2").layers:
        if layer.media_type == layout.MODEL:
            place = store.layout.blob(layer.digest)
            place.touch()
            os.truncate(place, layer.size)
    return store


@recorded
def test_a_model_made_from_another_has_the_real_ones_bytes(real: Store) -> None:
    for name, recipe in {
        "terse": Recipe(
            system="You are terse.", parameters={"temperature": 0.0, "seed": 1, "num_predict": 8},
            messages=(Message("user", "Hi"), Message("assistant", "Yes?")),
        ),
        "thinky": Recipe(template=find(real, "thinky").template),
        "ns/tooly:v1": Recipe(template=find(real, "ns/tooly:v1").template),
    }.items():  # fmt: skip
        want = real.layout.manifest(names.parse(name)).read_bytes()
        create_model(real, f"other/{names.parse(name).model}", _from(real, "smollm2", recipe))
        got = real.layout.manifest(names.parse(f"other/{names.parse(name).model}")).read_bytes()
        # Recorded: where only the template was new, the parameters' layer went behind it and kept nothing of its past.
        assert json.loads(got) == json.loads(want)
        assert got == want


def _from(store: Store, name: str, recipe: Recipe) -> Recipe:
    return Recipe(base=find(store, name), **{key: getattr(recipe, key) for key in ("template", "system", "parameters", "messages")})


@recorded
def test_the_statuses_are_the_recorded_ones(real: Store, store: Store) -> None:
    exchanges = {e["name"]: e for e in json.loads((GOLDEN / "ollama.json").read_text())["exchanges"]}
    asked, answered = (exchanges["create-from"][side] for side in ("request", "response"))
    body = asked["body"]
    talk = tuple(Message(**message) for message in body["messages"])
    recipe = Recipe(base=find(real, "smollm2"), system=body["system"], parameters=body["parameters"], messages=talk)
    assert create_model(real, "pirate", recipe) == [step["status"] for step in answered["body"]]

    body = exchanges["create"]["request"]["body"]
    digest = put_gguf(store)
    recipe = Recipe(files={"smollm2.gguf": digest}, template=body["template"], licenses=(body["license"],), parameters=body["parameters"])
    wanted = [step["status"] for step in exchanges["create"]["response"]["body"]]
    # Our weights are not rewritten: there is no conversion to verify, and the file that was sent is the layer.
    wanted = [wanted[0], f"using existing layer {digest}", *wanted[3:]]
    assert create_model(store, "smollm2", recipe) == wanted


def test_from_a_file(store: Store) -> None:
    digest = put_gguf(store, salt="x", **{"general.file_type": 15})
    steps = create_model(store, "new", Recipe(files={"dir/m.gguf": digest.replace(":", "-").replace("sha256", "sha256")}))
    assert steps == ["parsing GGUF", f"using existing layer {digest}", "writing manifest", "success"]
    entry = find(store, "new")
    assert [(layer.media_type, layer.digest, layer.source) for layer in entry.layers] == [(layout.MODEL, digest, "")]
    assert json.loads(store.blobs.read(entry.manifest.config.digest)) == {
        "model_format": "gguf", "model_family": "llama", "model_families": ["llama"], "model_type": "256", "file_type": "Q4_K_M",
        "architecture": "amd64", "os": "linux",
    }  # fmt: skip
    assert (entry.template, entry.system, entry.params, entry.messages, entry.licenses, entry.parent) == (None, None, {}, (), (), "")


def test_what_is_not_said_is_the_bases_own_and_what_is_said_wins(store: Store) -> None:
    old = base(store)
    steps = create_model(store, "new", Recipe(base=old, system="new", licenses=("more", "free"), parameters={"num_ctx": 4096, "top_k": 3}))
    assert [step.split(" ")[0] for step in steps] == ["using"] * 4 + ["creating"] * 3 + ["writing", "success"]
    new = find(store, "new")
    assert (new.template, new.system, new.licenses) == ("{{ .Prompt }}", "new", ("free", "more"))
    assert new.params == {"stop": ["<a>"], "num_ctx": 4096, "top_k": 3}
    assert (new.messages, new.parent) == (old.messages, "base:1")
    assert new.manifest.config == old.manifest.config
    assert (find(store, "base:1").system, find(store, "base:1").digest) == ("old", old.digest)


def test_over_itself(store: Store) -> None:
    old = base(store)
    before = {layer.digest for layer in old.layers}
    create_model(store, "Base:1", Recipe(base=old, system="new"))
    new = find(store, "base:1")
    assert (str(new.name), new.system, new.parent, new.template) == ("base:1", "new", "", "{{ .Prompt }}")
    gone = before - {layer.digest for layer in new.layers}
    assert len(gone) == 1
    assert not any(store.blobs.has(digest) for digest in gone)


def test_adapters_and_projectors(store: Store) -> None:
    old = base(store)
    adapter = store.blobs.put(gguf("lora", tensors=LORA, **{"general.type": "adapter", "adapter.type": "lora"}))
    eyes = put_gguf(store, salt="eyes", **{"general.type": "mmproj"})
    create_model(store, "both", Recipe(base=old, files={"eyes.gguf": eyes}, adapters={"lora.gguf": adapter}))
    both = find(store, "both")
    assert both.adapter == store.layout.blob(adapter)
    assert both.projector == store.layout.blob(eyes)
    create_model(store, "together", Recipe(files={"eyes.gguf": eyes, "m.gguf": old.weights.digest}))
    assert find(store, "together").weights.digest == old.weights.digest
    assert find(store, "together").projector
    other = store.blobs.put(gguf("other", tensors=LORA, **{"general.type": "adapter", "adapter.type": "lora"}))
    create_model(store, "again", Recipe(base=both, adapters={"other.gguf": other}))
    assert find(store, "again").adapter == store.layout.blob(other)
    assert [layer.media_type for layer in find(store, "again").layers].count(layout.ADAPTER) == 1


def test_a_deprecated_parameter_is_said_and_left_out(store: Store) -> None:
    steps = create_model(store, "new", Recipe(files={"m.gguf": put_gguf(store)}, parameters={"mirostat": 2, "context_length": 4096}))
    assert steps[1] == "warning: parameter mirostat is deprecated: nothing obeys it, and it is left out"
    assert find(store, "new").params == {"num_ctx": 4096}


def test_requires_is_kept_in_the_config_and_keys_of_versions_to_come_too(store: Store) -> None:
    old = base(store)
    config = json.loads(store.blobs.read(old.manifest.config.digest)) | {"to_come": {"a": 1}, "renderer": "r"}
    raw = json.loads(store.layout.manifest(old.name).read_text())
    content = json.dumps(config).encode()
    raw["config"] |= {"digest": store.blobs.put(content), "size": len(content)}
    store.commit(old.name, json.dumps(raw).encode())
    create_model(store, "new", Recipe(base=find(store, "base:1"), requires="v0.14.0"))
    found = json.loads(store.blobs.read(find(store, "new").manifest.config.digest))
    assert found == config | {"requires": "0.14.0"}
    assert list(found)[4:7] == ["file_type", "renderer", "requires"]
    assert list(found)[-1] == "to_come"


NOT_HERE = "{} is not in this version of ndani; take the line out: the {}"
OWN, SAME = "model's own chat template is used", "answers are the same without it"
SECOND = "b.gguf is a second model; FROM takes one model, and the projector that belongs to it"

AGAIN, OTHER = "; send the whole file again", "; get it again, or convert it again with a tool of today"
HOLLOW, MUTE = "it has no tensors, and so no weights", "it has no vocabulary, without which no text can be read"
RED = r"a.gguf was made for a model of the kind \x1b[31mred, and this one is llama"

WRONG: list[tuple[dict[str, Any], type[NdaniError], str]] = [
    ({}, BadRequest, "neither 'from' or 'files' was specified"),
    ({"files": {"/m.gguf": "model"}}, BadRequest, "file path must be relative"),
    ({"files": {"../m.gguf": "model"}}, BadRequest, "file path must be relative"),
    ({"files": {"a/../m.gguf": "model"}}, BadRequest, "file path must be relative"),
    ({"files": {"C:\\m.gguf": "model"}}, BadRequest, "file path must be relative"),
    ({"files": {"": "model"}}, BadRequest, "file path must be relative"),
    ({"files": {"m.gguf": "sha256:12"}}, BadRequest, "invalid digest format"),
    ({"files": {"m.gguf": "missing"}}, BadRequest, "the file m.gguf (sha256:{1}) is not here; send it to /api/blobs/sha256:{1} first"),
    ({"files": {"m.txt": "text"}}, BadRequest, "supplied file was not in GGUF format: m.txt"),
    ({"files": {"m.gguf": "empty"}}, BadRequest, "supplied file was not in GGUF format: m.gguf"),
    ({"files": {"m.gguf": "cut"}}, BadRequest, "m.gguf is not a usable GGUF file: it ends too early; send the whole file again"),
    ({"files": {"m.gguf": "version"}}, BadRequest, f"m.gguf is not a usable GGUF file: its version is 99, and 2 or 3 can be read{OTHER}"),
    ({"files": {"m.gguf": "nested"}}, BadRequest, f"m.gguf is not a usable GGUF file: it has an array of arrays{OTHER}"),
    ({"files": {"m.gguf": "unknown"}}, BadRequest, f"m.gguf is not a usable GGUF file: it has a value of the unknown kind 99{OTHER}"),
    ({"files": {"m.gguf": "lost"}}, BadRequest, f"m.gguf is not a usable GGUF file: the tensor b.weight is cut off{AGAIN}"),
    ({"files": {"m.gguf": "far"}}, BadRequest, f"m.gguf is not a usable GGUF file: the tensor b.weight is cut off{AGAIN}"),
    ({"files": {"m.gguf": "over"}}, BadRequest, f"m.gguf is not a usable GGUF file: the tensor b.weight lies over another one{OTHER}"),
    ({"files": {"m.gguf": "twice"}}, BadRequest, f"m.gguf is not a usable GGUF file: it has the tensor a.weight twice{OTHER}"),
    ({"files": {"m.gguf": "none"}}, BadRequest, f"m.gguf is not a usable GGUF file: the tensor b.weight is empty{OTHER}"),
    ({"files": {"m.gguf": "hollow"}}, BadRequest, f"m.gguf is not a usable GGUF file: {HOLLOW}{OTHER}"),
    ({"files": {"m.gguf": "model", "e.gguf": "blind"}}, BadRequest, f"e.gguf is not a usable GGUF file: {HOLLOW}{OTHER}"),
    ({"base": True, "adapters": {"a.gguf": "idle"}}, BadRequest, f"a.gguf is not a usable GGUF file: {HOLLOW}{OTHER}"),
    ({"files": {"m.gguf": "mute"}}, BadRequest, f"m.gguf is not a usable GGUF file: {MUTE}{OTHER}"),
    ({"files": {"m.gguf": "type"}}, BadRequest, "m.gguf holds weights of the type 255, which this version does not know; update ndani"),
    ({"files": {"m\x1b[2J.gguf": "model"}}, BadRequest, "a file's path holds control characters, and would be shown; rename the file"),
    ({"base": True, "adapters": {"a.gguf": "red"}}, BadRequest, RED),
    ({"files": {"m.gguf": "part"}}, BadRequest, "m.gguf is one of 3 parts of a model; join them into one file and send that"),
    ({"files": {"m.gguf": "adapter"}}, BadRequest, "m.gguf is an adapter, not a model; name it with ADAPTER"),
    ({"files": {"m.gguf": "eyes"}}, BadRequest, "there is a projector, but no model; give the model's own file as well"),
    ({"files": {"a.gguf": "model", "b.gguf": "model"}}, BadRequest, SECOND),
    ({"base": True, "files": {"a.gguf": "model"}}, BadRequest, "a.gguf and base:1 are both models; FROM takes one of them"),
    ({"base": True, "adapters": {"a": "adapter", "b": "adapter"}}, BadRequest, "only one adapter is currently supported"),
    ({"base": True, "adapters": {"a.gguf": "model"}}, BadRequest, "a.gguf is not an adapter; ADAPTER takes a LoRA in GGUF format"),
    ({"base": True, "adapters": {"a.gguf": "qwen"}}, BadRequest, "a.gguf was made for a model of the kind qwen2, and this one is llama"),
    ({"base": True, "adapters": {"/a": "adapter"}}, BadRequest, "file path must be relative"),
    ({"base": True, "parameters": {"num_ctx": "many"}}, BadRequest, 'option "num_ctx" must be of type integer'),
    ({"base": True, "parameters": {"foo_bar": 3}}, BadRequest, "unknown parameter 'foo_bar'"),
    ({"base": True, "messages": (Message("robot", "x"),)}, BadRequest, 'message role must be one of "system", "user", or "assistant"'),
    ({"base": True, "requires": "soon"}, BadRequest, "requires must be a valid semver (e.g. 0.14.0)"),
    ({"base": True, "renderer": "r"}, Unsupported, NOT_HERE.format("RENDERER", OWN)),
    ({"base": True, "parser": "p"}, Unsupported, NOT_HERE.format("PARSER", OWN)),
    ({"base": True, "drafts": {"d": "model"}}, Unsupported, NOT_HERE.format("DRAFT", SAME)),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "kind", "sentence"), WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_what_is_wrong_is_said_before_anything_is_written(
    store: Store, asked: dict[str, Any], kind: type[NdaniError], sentence: str
) -> None:
    blobs = {
        "model": put_gguf(store, salt="m"), "text": store.blobs.put(b"hello, world"), "empty": store.blobs.put(b""),
        "cut": store.blobs.put(gguf()[:60]), "part": put_gguf(store, salt="p", **{"split.count": 3}), "missing": "sha256:" + "1" * 64,
        "adapter": put_gguf(store, salt="a", **{"general.type": "adapter", "adapter.type": "lora"}),
        "eyes": put_gguf(store, salt="e", **{"general.type": "projector"}),
        "red": put_gguf(store, salt="r", **{"general.type": "adapter", "adapter.type": "lora", "general.architecture": "\x1b[31mred"}),
        "qwen": put_gguf(store, salt="q", **{"general.type": "adapter", "adapter.type": "lora", "general.architecture": "qwen2"}),
        "hollow": store.blobs.put(gguf("h", tensors={})), "blind": store.blobs.put(gguf("b", tensors={}, **{"general.type": "mmproj"})),
        "idle": store.blobs.put(gguf("i", tensors={}, **{"general.type": "adapter", "adapter.type": "lora"})),
        "mute": store.blobs.put(gguf("m").replace(b"tokenizer.ggml.model", b"tokenizer.ggml.other")),
    }  # fmt: skip
    blobs |= {name: store.blobs.put(content) for name, content in damaged().items()}
    asked = {key: base(store) if key == "base" else value for key, value in asked.items()}
    for key in ("files", "adapters", "drafts"):
        if key in asked:
            asked[key] = {path: blobs.get(digest, digest) for path, digest in asked[key].items()}
    before = sorted(path for path in store.layout.root.rglob("*"))
    with pytest.raises(kind) as found:
        listed(create, store, names.parse("new"), Recipe(**asked))
    assert str(found.value) == sentence.replace("{1}", "1" * 64)
    assert str(store.layout.root) not in str(found.value)
    assert sorted(path for path in store.layout.root.rglob("*")) == before


def test_a_kind_that_the_engine_does_not_know_is_said(store: Store) -> None:
    steps = create_model(store, "odd", Recipe(files={"m.gguf": put_gguf(store, **{"general.architecture": "mystery"})}))
    assert steps[1] == "warning: the engine is not known to run models of the kind mystery; it may not load"
    assert steps[-1] == "success"
    assert not any(step.startswith("warning") for step in create_model(store, "even", Recipe(files={"m.gguf": put_gguf(store)})))
    assert not any(step.startswith("warning") for step in create_model(store, "more", Recipe(base=find(store, "odd"), system="x")))


def test_the_kinds_that_are_known_are_the_engines_own() -> None:
    """Its table is read where it stands: by the function that gives a kind its name, in the wheel's shared object."""
    library = ctypes.CDLL(str(kernels._shared_object()))
    name = getattr(library, "_Z13llm_arch_name8llm_arch", None)
    if name is None:
        pytest.skip("this build of the engine does not show its table")
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.c_int]
    theirs = {found.decode() for found in map(name, range(400))} - {"unknown", "(unknown)", "clip"}
    assert len(theirs) > 100
    assert theirs <= ARCHITECTURES


def test_a_base_without_its_weights_is_refused(store: Store) -> None:
    old = base(store)
    old.weights_path.unlink()
    with pytest.raises(StoreFailed, match=r"^the model base:1 lacks a file in the store; pull it again$"):
        create_model(store, "new", Recipe(base=old))


@pytest.mark.parametrize("lost", ["weights", "config"])
def test_a_base_that_is_of_no_use_is_refused(store: Store, lost: str) -> None:
    old = base(store)
    raw = json.loads(store.layout.manifest(old.name).read_text())
    if lost == "weights":
        raw["layers"] = [layer for layer in raw["layers"] if layer["mediaType"] != layout.MODEL]
    else:
        raw["config"] |= {"digest": store.blobs.put(b'{"model_families": 1}'), "size": 21}
    store.commit(old.name, json.dumps(raw).encode())
    with pytest.raises(StoreFailed, match="has no weights in the store" if lost == "weights" else "the config of base:1 is damaged"):
        create_model(store, "new", Recipe(base=find(store, "base:1"), system="x"))


def test_a_listing_shows_no_control_characters_of_a_file(store: Store) -> None:
    create_model(store, "red", Recipe(files={"m.gguf": put_gguf(store, **{"general.architecture": "\x1b[31mred"})}))
    assert [(m.details.family, m.details.families) for m in store.list_models()] == [(r"\x1b[31mred", (r"\x1b[31mred",))]


def test_a_head_is_read_once(store: Store) -> None:
    recipe = Recipe(files={"m.gguf": put_gguf(store)})
    create_model(store, "one", recipe)
    place = find(store, "one").weights_path
    size = place.stat().st_size
    place.write_bytes(b"GGUF" + bytes(size - 4))  # who reads it again finds nothing
    assert create_model(store, "two", recipe)[-1] == "success"
    assert store.header(find(store, "two")).architecture == "llama"


def test_a_create_that_is_left_half_way_leaves_no_name_and_no_claim(store: Store) -> None:
    old = base(store)

    def leave(step: Progress) -> None:
        assert list(store.layout.locks.glob("claim-*"))
        store.delete(old.name)  # what the create has claimed of it stays
        kept = {layer.media_type: store.blobs.has(layer.digest) for layer in old.layers}
        assert [kind for kind, here in kept.items() if not here] == [layout.SYSTEM]
        raise Left

    with pytest.raises(Left):
        create(store, names.parse("new"), Recipe(base=old, system="half"), leave)
    assert not list(store.layout.locks.glob("claim-*"))
    assert store.list_models() == []


def test_a_modelfile_becomes_a_model_that_shows_the_same_modelfile(store: Store) -> None:
    text = (
        'FROM base:1\nTEMPLATE """{{ if .System }}"{{ .System }}"\n{{ end }}{{ .Prompt }}"""\nSYSTEM " edges "\nPARAMETER num_ctx 512\n'
        'PARAMETER stop <a>\nPARAMETER temperature 0.25\nLICENSE <free> & easy\nMESSAGE user "\nMESSAGE assistant\n"\n'
    )
    wanted = parse(text)
    body = to_request(wanted)
    body["messages"] = tuple(Message(**message) for message in body["messages"])
    create_model(store, "plain", Recipe(files={"m.gguf": put_gguf(store)}))
    create_model(store, "new", Recipe(base=find(store, "plain"), licenses=tuple(body.pop("license")), **body))
    new = find(store, "new")
    params = tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in new.params.items())
    shown = Modelfile(("base:1",), new.template, new.system, params, (), new.licenses, new.messages)
    assert shown == wanted
    assert print_modelfile(shown) == text
