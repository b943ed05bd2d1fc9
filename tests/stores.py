"""Stores for tests: with real weights, whose blobs are hard links to a copy kept between runs, or with echo models.

An echo model is a GGUF file with a head and no weights, which `create` refuses, and a config whose `model_format` is `echo`.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

from ndani import names
from ndani.store import Store, layout

REAL = "smollm2:135m"
EMBEDDER = "all-minilm"


def link(source: Path, target: Path, *more: str) -> Path:
    """A store at `target` with every model of `source`, by hard links, for blobs never change. `more` names copies of REAL."""
    for path in source.rglob("*"):
        if path.is_file() and not path.relative_to(source).parts[0].startswith(".") and "partial" not in path.name:
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, place)
            except OSError:  # another disk
                shutil.copy2(path, place)
    store = Store(target)
    for name in more:
        store.copy(names.parse(REAL), names.parse(name))
    return target


#: Names and shapes of the tensors of a made-up model, and of an adapter for it.
EMBEDDING = {"token_embd.weight": (64, 4)}
LORA = {"token_embd.weight.lora_a": (2, 4), "token_embd.weight.lora_b": (2, 64)}


def gguf(
    salt: str = "", context: int = 8192, template: str = "echo", tensors: dict[str, tuple[int, int]] | None = None, **more: int | str
) -> bytes:
    """A GGUF file with one small tensor (F16), or with `tensors`. Each `salt` gives another digest, so another model."""
    keys: dict[str, int | str] = {
        "general.architecture": "llama",
        "general.name": f"echo {salt}",
        "llama.context_length": context,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 4,
        "tokenizer.ggml.model": "gpt2",
    }
    if template:
        keys["tokenizer.chat_template"] = template
    keys |= more
    tensors = EMBEDDING if tensors is None else tensors
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    for key, value in keys.items():
        head += _text(key)
        head += struct.pack("<II", 4, value) if isinstance(value, int) else struct.pack("<I", 8) + _text(value)
    at = 0
    for tensor, shape in tensors.items():
        head += _text(tensor) + struct.pack("<IQQIQ", 2, *shape, 1, at)
        at += 2 * shape[0] * shape[1]
        at += -at % 32
    return head + bytes(-len(head) % 32 + at) if tensors else head


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def put_echo(
    root: Path, name: str, weights: bytes | None = None, engine: str = "echo", config: dict[str, str] | None = None, **layers: object
) -> str:
    """Put an echo model into a store; its weights' digest. `layers`: system, params, messages, license, template; `config`: more of it."""
    store = Store(root)
    weights = gguf(salt=name, tensors={}) if weights is None else weights

    def layer(kind: str, content: bytes) -> dict[str, Any]:
        return {"mediaType": kind, "digest": store.blobs.put(content), "size": len(content)}

    said = {"model_format": engine, "model_family": "llama", "model_type": "1M", "file_type": "F16"} | (config or {})
    model = layer(layout.MODEL, weights)
    texts = [layer(layout.media_type_of(k), v.encode() if isinstance(v, str) else json.dumps(v).encode()) for k, v in layers.items()]
    manifest = {
        "schemaVersion": 2,
        "mediaType": layout.MANIFEST,
        "config": layer(layout.CONFIG, json.dumps(said).encode()),
        "layers": [model, *texts],
    }
    store.commit(names.parse(name), json.dumps(manifest).encode())
    return str(model["digest"])


def shorten(root: Path, tokens: int, model: str = REAL) -> None:
    """Limit the answers of a model to a few tokens, for tests of commands that cannot set a limit."""
    store, name = Store(root), names.parse(model)
    manifest = json.loads(store.layout.manifest(name).read_bytes())
    layer = next(part for part in manifest["layers"] if part["mediaType"] == layout.PARAMS)
    params = json.dumps(json.loads(store.blobs.read(layer["digest"])) | {"num_predict": tokens}).encode()
    layer |= {"digest": store.blobs.put(params), "size": len(params)}
    store.commit(name, json.dumps(manifest).encode())
