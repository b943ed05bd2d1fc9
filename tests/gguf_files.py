"""Small GGUF files with tensors, whole and in shards, for the tests of what joins and fetches them."""

from __future__ import annotations

import random
import struct


def tensors(count: int, size: int = 3000, seed: int = 3) -> dict[str, bytes]:
    """Tensors of single bytes (type I8), of uneven lengths."""
    source = random.Random(seed)
    return {f"blk.{number}.weight": source.randbytes(size + 7 * number) for number in range(count)}


def gguf(content: dict[str, bytes], **more: int | str) -> bytes:
    """A GGUF file of a small llama with these tensors."""
    keys: dict[str, int | str] = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "llama.context_length": 512,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.attention.head_count": 4,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.chat_template": "{{ messages }}",
    }
    keys |= more
    head = b"GGUF" + struct.pack("<IQQ", 3, len(content), len(keys))
    for key, value in keys.items():
        head += _text(key)
        if isinstance(value, int):
            # As gguf-split writes them: numbers of shards in 16 bits, the tensors' count signed.
            kind, form = (2, "<H") if key in ("split.no", "split.count") else (5, "<i") if key == "split.tensors.count" else (4, "<I")
            head += struct.pack("<I", kind) + struct.pack(form, value)
        else:
            head += struct.pack("<I", 8) + _text(value)
    at, data = 0, b""
    for name, raw in content.items():
        head += _text(name) + struct.pack("<IQIQ", 1, len(raw), 24, at)
        data += raw + bytes(-len(raw) % 32)
        at = len(data)
    return head + bytes(-len(head) % 32) + data


def shards(content: dict[str, bytes], count: int) -> list[bytes]:
    """The same model in so many shards; the first has the key/values and no tensor, as large models are split."""
    names = list(content)
    runs = [[], *(names[at :: count - 1] for at in range(count - 1))]
    runs = [sorted(run, key=names.index) for run in runs]
    return [
        gguf({name: content[name] for name in run}, **{"split.no": number, "split.count": count, "split.tensors.count": len(names)})
        for number, run in enumerate(runs)
    ]


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw
