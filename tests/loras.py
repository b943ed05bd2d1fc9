"""Real LoRA adapters for tests: GGUF files written with `struct` alone, small enough to make anew each time."""

from __future__ import annotations

import random
import struct

_ALIGNMENT = 32


def lora(
    blocks: int = 4,
    inside: int = 576,
    outside: int = 576,
    rank: int = 4,
    strength: float = 0.3,
    seed: int = 1,
    tensor: str = "attn_q",
    **keys: str | float,
) -> bytes:
    """An adapter for one tensor of every block (SmolLM2's by default); with `strength` 0 it changes nothing."""
    chance = random.Random(seed)
    tensors: list[tuple[str, tuple[int, int], list[float]]] = []
    for block in range(blocks):
        name = f"blk.{block}.{tensor}.weight"
        tensors.append((f"{name}.lora_a", (inside, rank), [chance.gauss(0, 0.3) for _ in range(inside * rank)]))
        tensors.append((f"{name}.lora_b", (rank, outside), [chance.gauss(0, 1) * strength for _ in range(rank * outside)]))
    said: dict[str, str | float] = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    said |= {"adapter.lora.alpha": float(rank)} | {key.replace("__", "."): value for key, value in keys.items()}
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(said))
    for key, value in said.items():
        head += _text(key) + (struct.pack("<I", 8) + _text(value) if isinstance(value, str) else struct.pack("<If", 6, value))
    body = b""
    for name, shape, numbers in tensors:
        head += _text(name) + struct.pack("<IQQIQ", 2, *shape, 0, len(body))
        body += struct.pack(f"<{len(numbers)}f", *numbers)
        body += bytes(-len(body) % _ALIGNMENT)
    return head + bytes(-len(head) % _ALIGNMENT) + body


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw
