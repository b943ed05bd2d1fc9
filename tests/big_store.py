"""A store of many large models in a second or two: real GGUF heads with a tokenizer of real size, weights that are holes.

    python tests/big_store.py FOLDER [--models 300] [--bytes 40000000000] [--true]

Sparse files have their length and take no room. Without --true the weights' digests are made up (hashing forty gigabytes
takes a minute): such a store can be listed, shown, pruned, and `verify` reports every one of its weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import struct
from pathlib import Path

from ndani import names
from ndani.store import Store, layout
from ndani.store.layout import digest_of

TOKENS = 49152  # SmolLM2's
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n" * 4
LAYERS = 30


def head(salt: int, tokens: int = TOKENS) -> bytes:
    """The head of a model of SmolLM2's shape."""
    vocabulary = [f"token{number}" for number in range(tokens)]
    keys: list[tuple[str, bytes]] = [
        ("general.architecture", _string("llama")),
        ("general.name", _string(f"big {salt}")),
        ("general.file_type", struct.pack("<II", 4, 2)),
        ("llama.context_length", struct.pack("<II", 4, 8192)),
        ("llama.embedding_length", struct.pack("<II", 4, 576)),
        ("llama.block_count", struct.pack("<II", 4, LAYERS)),
        ("llama.attention.head_count", struct.pack("<II", 4, 9)),
        ("llama.attention.head_count_kv", struct.pack("<II", 4, 3)),
        ("tokenizer.ggml.model", _string("gpt2")),
        ("tokenizer.ggml.tokens", _strings(vocabulary)),
        ("tokenizer.ggml.merges", _strings(vocabulary[1:])),
        ("tokenizer.ggml.token_type", struct.pack(f"<IIQ{tokens}i", 9, 5, tokens, *[1] * tokens)),
        ("tokenizer.chat_template", _string(TEMPLATE)),
    ]
    tensors = [(f"blk.{layer}.{part}.weight", (576, 576)) for layer in range(LAYERS) for part in ("attn_q", "attn_k", "ffn_up", "ffn_down")]
    raw = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    raw += b"".join(_text(key) + value for key, value in keys)
    return raw + b"".join(_text(name) + struct.pack("<IQQIQ", 2, *shape, 2, 0) for name, shape in tensors)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _string(text: str) -> bytes:
    return struct.pack("<I", 8) + _text(text)


def _strings(texts: list[str]) -> bytes:
    return struct.pack("<IIQ", 9, 8, len(texts)) + b"".join(map(_text, texts))


def build(root: Path, models: int, size: int, *, true: bool = False, tokens: int = TOKENS) -> Store:
    """Put `models` models of together `size` bytes into a store; their names are `big/model-N:latest`."""
    store = Store(root)
    store.layout.blobs.mkdir(parents=True, exist_ok=True)
    common, first = head(0, tokens), head(0, tokens).index(b"big 0")
    each = max(size // models, len(common) + 16)
    for number in range(models):
        # The name in the head is what makes the weights others; its length stays.
        raw = common[: first - 8] + _text(f"b{number:04d}") + common[first + 5 :]
        weights = _hashed(raw, each) if true else digest_of(raw)
        with store.layout.blob(weights).open("wb") as file:
            file.write(raw)
            file.truncate(each)
        config = {"model_format": "gguf", "model_family": "llama", "model_type": "134.52M", "file_type": "Q4_0", "number": number}
        parts = [
            (layout.TEMPLATE, "{{ .Prompt }}"),
            (layout.PARAMS, json.dumps({"num_ctx": 2048, "seed": number})),
            (layout.LICENSE, "MIT"),
        ]
        layers = [{"mediaType": layout.MODEL, "digest": weights, "size": each}]
        layers += [{"mediaType": kind, "digest": _put(store, text), "size": len(text.encode())} for kind, text in parts]
        head_layer = {"mediaType": layout.CONFIG, "digest": _put(store, json.dumps(config)), "size": len(json.dumps(config))}
        manifest = {"schemaVersion": 2, "mediaType": layout.MANIFEST, "config": head_layer, "layers": layers}
        path = store.layout.manifest(names.parse(f"big/model-{number:04d}"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(manifest))
        os.utime(path, (1_700_000_000 + number, 1_700_000_000 + number))
    return store


def _put(store: Store, text: str) -> str:
    digest = digest_of(text.encode())
    store.layout.blob(digest).write_bytes(text.encode())  # without the fsync of a real one
    return digest


def _hashed(raw: bytes, size: int) -> str:
    seen, zeros, left = hashlib.sha256(raw), bytes(1 << 20), size - len(raw)
    while left:
        seen.update(zeros[: min(left, len(zeros))])
        left -= min(left, len(zeros))
    return f"sha256:{seen.hexdigest()}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="build a store of many large models out of holes")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", type=int, default=300)
    parser.add_argument("--bytes", type=int, default=40 * 10**9)
    parser.add_argument("--true", action="store_true", help="digests that are right")
    said = parser.parse_args()
    build(said.folder, said.models, said.bytes, true=said.true)
    print(f"{said.models} models, {said.bytes} bytes in {said.folder}")
