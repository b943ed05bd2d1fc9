"""Weights that say one given text to every prompt, and run in the real engine.

Each token of the text makes the next one certain: the embeddings are unit vectors, the only block adds nothing to them, and the
output is a shift. Whatever a prompt ends with makes the first token certain. So what an engine does with a model's answer can be
tested without a model that is able to give it.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator

import numpy as np

from ndani.convert.gguf_writer import GgufValue, TargetTensor, encode_head, write

_NORMAL, _CONTROL = 1, 3
#: How sure it is: the difference of the logits is a multiple of this.
_SURE = 4.0


def scripted(text: str, *, special: Collection[str] = (), chat_template: str | None = None, width: int = 256) -> bytes:
    """A GGUF file that answers with `text`. Where one of `special` first occurs in it, that is a control token."""
    pieces = _pieces(text, special)
    assert pieces, "the text cannot be cut into pieces that are all different; change it"
    assert len(pieces) < width - 1, "the text is too long; give a greater width"
    letters = [letter for _, letter in sorted(_BYTES.items())]
    tokens = [*letters, *("".join(_BYTES[byte] for byte in piece.encode()) for piece in pieces), "<end>"]
    tokens = [piece if piece in special else token for token, piece in zip(tokens, [*letters, *pieces, ""], strict=True)]
    keys: dict[str, GgufValue] = {
        "general.architecture": "llama",
        "general.name": "scripted",
        "general.file_type": 0,
        "llama.context_length": 8192,
        "llama.embedding_length": width,
        "llama.block_count": 1,
        "llama.feed_forward_length": 32,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 4,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": width // 4,
        "llama.vocab_size": len(tokens),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [*[_NORMAL] * 256, *(_CONTROL if piece in special else _NORMAL for piece in pieces), _CONTROL],
        "tokenizer.ggml.merges": ["Ġ Ġ"],
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
        "tokenizer.ggml.add_bos_token": False,
    }
    if chat_template is not None:
        keys["tokenizer.chat_template"] = chat_template
    targets = [TargetTensor(name, "F32", values) for name, values in _weights(len(pieces), len(tokens), width)]
    out = io.BytesIO()
    for _ in write(out, encode_head(keys, targets), targets):
        pass
    return out.getvalue()


def _weights(count: int, tokens: int, width: int) -> Iterator[tuple[str, np.typing.NDArray[np.float32]]]:
    def zeros(*shape: int) -> np.typing.NDArray[np.float32]:
        return np.zeros(shape, np.float32)

    embeddings, output = zeros(tokens, width), zeros(tokens, width)
    embeddings[:256, 0] = 1  # all bytes are one state: before the text
    for state in range(count + 1):
        embeddings[256 + state, state + 1] = 1
        output[256 + state, state] = _SURE
    yield "token_embd.weight", embeddings
    yield "output.weight", output
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        yield f"{name}.weight", np.ones(width, np.float32)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        yield f"blk.0.{name}.weight", zeros(width, width)
    for name in ("ffn_gate", "ffn_up"):
        yield f"blk.0.{name}.weight", zeros(32, width)
    yield "blk.0.ffn_down.weight", zeros(width, 32)


def _pieces(text: str, special: Collection[str], used: frozenset[str] = frozenset()) -> list[str] | None:
    """The text in pieces of two characters or more, none of them twice: a token is what tells the place in the text."""
    if not text:
        return []
    unused = [mark for mark in special if mark not in used]
    marks = [mark for mark in unused if text.startswith(mark)]
    limit = min([len(text), *(at for mark in unused if (at := text.find(mark)) > 0)])
    for piece in marks or [text[:length] for length in range(2, limit + 1)]:
        if piece not in used and (rest := _pieces(text[len(piece) :], special, used | {piece})) is not None:
            return [piece, *rest]
    return None


def _byte_letters() -> dict[int, str]:
    """The letter that stands for each byte in a byte-level vocabulary."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}


_BYTES = _byte_letters()
