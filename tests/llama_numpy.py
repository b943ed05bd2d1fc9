"""A Llama in numpy, as its publishers' library runs it: what the engine makes of a converted checkpoint is held against it.

It shares nothing with ndani: config.json and the weights are read here, and mean what `transformers` takes them to mean.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints import read_safetensors


class Llama:
    """One model out of a folder; `state` is what the last of these tokens becomes, before the output and of length 1."""

    def __init__(self, folder: Path) -> None:
        # The converted weights are F16, but for vectors.
        stored = read_safetensors(folder / "model.safetensors")
        self.weights = {name: (w.astype(np.float16) if w.ndim > 1 else w).astype(np.float64) for name, w in stored.items()}
        self.config = json.loads((folder / "config.json").read_text())
        self.heads = self.config["num_attention_heads"]
        self.size = self.config.get("head_dim") or self.config["hidden_size"] // self.heads
        self.kv_heads = self.config.get("num_key_value_heads") or self.heads

    def state(self, ids: list[int]) -> Any:
        x = self.weights["model.embed_tokens.weight"][ids]
        for block in range(self.config["num_hidden_layers"]):
            at = f"model.layers.{block}"
            x = x + self._attention(self._norm(x, f"{at}.input_layernorm"), f"{at}.self_attn", block)
            y = self._norm(x, f"{at}.post_attention_layernorm")
            gate = self._dense(y, f"{at}.mlp.gate_proj")
            x = x + self._dense(gate / (1 + np.exp(-gate)) * self._dense(y, f"{at}.mlp.up_proj"), f"{at}.mlp.down_proj")
        last = self._norm(x, "model.norm")[-1]
        return last / np.linalg.norm(last)

    def best(self, ids: list[int]) -> list[int]:
        """The ids that the output likes most, the best first."""
        name = "model.embed_tokens.weight" if self.config.get("tie_word_embeddings") else "lm_head.weight"
        return [int(one) for one in np.argsort(-(self.weights[name] @ self.state(ids)))]

    def _norm(self, x: Any, name: str) -> Any:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.config["rms_norm_eps"]) * self.weights[f"{name}.weight"]

    def _dense(self, x: Any, name: str) -> Any:
        made = x @ self.weights[f"{name}.weight"].T
        return made + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else made

    def _attention(self, x: Any, at: str, block: int) -> Any:
        q, k, v = (self._dense(x, f"{at}.{part}_proj").reshape(len(x), -1, self.size).swapaxes(0, 1) for part in "qkv")
        q, k = self._turned(q), self._turned(k)
        k, v = (np.repeat(one, self.heads // self.kv_heads, axis=0) for one in (k, v))
        far = np.arange(len(x))[:, None] - np.arange(len(x))[None, :]
        seen = far >= 0
        if self._slides(block):
            seen &= far < self.config["sliding_window"]
        scores = np.where(seen, q @ k.swapaxes(1, 2) / math.sqrt(self.size), -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        made = (scores / scores.sum(-1, keepdims=True)) @ v
        return self._dense(made.swapaxes(0, 1).reshape(len(x), -1), f"{at}.o_proj")

    def _slides(self, block: int) -> bool:
        kind = self.config["architectures"][0]
        if kind == "Qwen2ForCausalLM":
            return bool(self.config.get("use_sliding_window")) and block >= self.config.get("max_window_layers", 28)
        return kind == "MistralForCausalLM" and self.config.get("sliding_window") is not None

    def _turned(self, x: Any) -> Any:
        """Places in the text, as turns of the two halves of each head's numbers."""
        waves, strength = self._waves()
        angles = np.concatenate(2 * [np.arange(x.shape[1])[:, None] * waves], axis=1)
        one, other = np.split(x, 2, axis=-1)
        return (x * np.cos(angles) + np.concatenate([-other, one], axis=-1) * np.sin(angles)) * strength

    def _waves(self) -> tuple[Any, float]:
        said = self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}
        base = said.get("rope_theta") or self.config.get("rope_theta") or 10000.0
        waves = base ** -(np.arange(0, self.size, 2) / self.size)
        kind, factor = said.get("rope_type") or said.get("type") or "default", said.get("factor")
        if kind == "linear":
            return waves / factor, 1.0
        if kind == "llama3":
            low, high, trained = (said[name] for name in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"))
            lengths = 2 * math.pi / waves
            smooth = (trained / lengths - low) / (high - low)
            between = (1 - smooth) * waves / factor + smooth * waves
            return np.where(lengths < trained / high, waves, np.where(lengths > trained / low, waves / factor, between)), 1.0
        if kind == "yarn":
            trained = said["original_max_position_embeddings"]

            def turns(number: float) -> float:
                return self.size * math.log(trained / (number * 2 * math.pi)) / (2 * math.log(base))

            low, high = max(math.floor(turns(32)), 0), min(math.ceil(turns(1)), self.size - 1)
            ramp = np.clip((np.arange(self.size // 2) - low) / max(high - low, 0.001), 0, 1)
            strength = said.get("attention_factor") or 0.1 * math.log(factor) + 1
            return waves / factor * ramp + waves * (1 - ramp), strength
        assert kind == "default"
        return waves, 1.0
