"""Ways to spoil a checkpoint for a test: each takes the folder of one and changes a thing in it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints import LLAMA3, read_safetensors, write_safetensors

Spoil = Callable[[Path], object]


def rewrite(name: str, **more: Any) -> Spoil:
    """Change keys of a JSON file; None takes them out."""

    def spoil(folder: Path) -> None:
        said = json.loads((folder / name).read_text()) | more
        (folder / name).write_text(json.dumps({key: item for key, item in said.items() if item is not None}))

    return spoil


def raw(header: bytes, data: bytes = b"", length: int | None = None) -> Spoil:
    content = struct.pack("<Q", len(header) if length is None else length) + header + data
    return lambda folder: (folder / "model.safetensors").write_bytes(content)


def one(**said: Any) -> bytes:
    return json.dumps({"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | said}).encode()


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def reweigh(change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        weights = read_safetensors(folder / "model.safetensors")
        change(weights)
        write_safetensors(folder / "model.safetensors", weights)

    return spoil


def changed(name: str, numbers: Any) -> Spoil:
    return reweigh(lambda weights: weights.update({name: numbers}))


def resized(rows: int, *stems: str) -> Spoil:
    return reweigh(lambda weights: weights.update({f"{stem}.weight": np.zeros((rows, 64), np.float32) for stem in stems}))


def shaped(name: str, *shape: int) -> Spoil:
    return changed(name, np.ones(shape, np.float32))


def edit(*path: Any, to: Any) -> Spoil:
    """Set one thing deep inside tokenizer.json."""

    def spoil(folder: Path) -> None:
        said = json.loads((folder / "tokenizer.json").read_text())
        place = said
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = to
        (folder / "tokenizer.json").write_text(json.dumps(said))

    return spoil


def both(*spoils: Spoil) -> Spoil:
    return lambda folder: [spoil(folder) for spoil in spoils]


def split_by(*before: dict[str, Any], **step: Any) -> Spoil:
    """Llama 3's steps, its expression's changed, and others in front of them."""
    said = {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False} | step
    return edit("pre_tokenizer", to={"type": "Sequence", "pretokenizers": [*before, said, BYTES]})


def steps(*before: dict[str, Any], **own: Any) -> Spoil:
    return edit("pre_tokenizer", to={"type": "Sequence", "pretokenizers": [*before, BYTES | {"use_regex": True} | own]})


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def wordpiece(normalizer: Any, pre: Any = {"type": "BertPreTokenizer"}) -> Spoil:  # noqa: B006 - it is only read
    """A tokenizer.json beside a BERT, with the words of its vocab.txt."""

    def spoil(folder: Path) -> None:
        words = (folder / "vocab.txt").read_text().split()
        model = {"type": "WordPiece", "vocab": {word: number for number, word in enumerate(words)}}
        (folder / "tokenizer.json").write_text(json.dumps({"model": model, "normalizer": normalizer, "pre_tokenizer": pre}))

    return spoil


def letters(**said: Any) -> dict[str, Any]:
    return {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True} | said


def stretched(**more: Any) -> Spoil:
    return rewrite("config.json", rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64} | more)


#: What weights are called that come in parts.
PART = "model-00001-of-00001.safetensors"


def as_part(spoil: Spoil) -> Spoil:
    """Done to a checkpoint whose weights come in one part."""

    def first(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / PART)
        spoil(folder)

    return first


def index(**places: str | None) -> Spoil:
    """One part, and an index that is right but for these; None takes a name out."""

    def spoil(folder: Path) -> None:
        part = (folder / "model.safetensors").rename(folder / PART)
        said = dict.fromkeys(read_safetensors(part), PART) | places
        kept = {name: file for name, file in said.items() if file}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": kept}))

    return spoil


def gone(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def text(name: str, content: str) -> Spoil:
    return lambda folder: (folder / name).write_text(content)
