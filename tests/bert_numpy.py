"""A BERT in numpy, straight from its paper and its published weights: what the vectors of the engine are held against.

It shares nothing with ndani: the weights are read here, the text is cut by the `tokenizers` library.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from checkpoints import read_safetensors

# erf by Abramowitz and Stegun 7.1.26, exact to 1.5e-7: numpy has none of its own.
_A = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def _erf(x: Any) -> Any:
    t = 1 / (1 + 0.3275911 * np.abs(x))
    return np.sign(x) * (1 - sum(a * t ** (n + 1) for n, a in enumerate(_A)) * np.exp(-x * x))


def _norm(x: Any, weight: Any, bias: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * weight + bias


class Bert:
    """One model out of a folder; `vector` gives a text's mean vector, of length 1."""

    def __init__(self, folder: Path) -> None:
        self.weights = {name: tensor.astype(np.float32) for name, tensor in read_safetensors(folder / "model.safetensors").items()}
        config = json.loads((folder / "config.json").read_text())
        self.blocks, self.heads = config["num_hidden_layers"], config["num_attention_heads"]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    def vector(self, text: str) -> Any:
        ids, w = self.tokenizer.encode(text).ids, self.weights
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
        x = _norm(x + w["embeddings.token_type_embeddings.weight"][0], w["embeddings.LayerNorm.weight"], w["embeddings.LayerNorm.bias"])
        for block in range(self.blocks):
            x = self._block(x, f"encoder.layer.{block}")
        mean = x.mean(0)
        return mean / np.linalg.norm(mean)

    def _block(self, x: Any, at: str) -> Any:
        def dense(y: Any, name: str) -> Any:
            return y @ self.weights[f"{at}.{name}.weight"].T + self.weights[f"{at}.{name}.bias"]

        def norm(y: Any, name: str) -> Any:
            return _norm(y, self.weights[f"{at}.{name}.weight"], self.weights[f"{at}.{name}.bias"])

        def heads(y: Any) -> Any:
            return y.reshape(len(y), self.heads, -1).swapaxes(0, 1)

        q, k, v = (heads(dense(x, f"attention.self.{part}")) for part in ("query", "key", "value"))
        scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        seen = (scores / scores.sum(-1, keepdims=True)) @ v
        x = norm(x + dense(seen.swapaxes(0, 1).reshape(x.shape), "attention.output.dense"), "attention.output.LayerNorm")
        inner = dense(x, "intermediate.dense")
        inner = inner * 0.5 * (1 + _erf(inner / math.sqrt(2)))
        return norm(x + dense(inner, "output.dense"), "output.LayerNorm")
