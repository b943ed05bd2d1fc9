"""What config.json says and the engine's answer: each key that changes one is run by the real engine and held against numpy."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import byte_level, convert, read_safetensors, tiny_llama, write_safetensors
from llama_numpy import Llama
from ndani.engines import LaunchOptions
from ndani.engines.client import PromptTooLong, RunnerClient
from ndani.engines.stream import Coalescer
from ndani.runtime.folder import runtime_folder
from ndani.runtime.runner import Runner
from ndani.store.weights_info import inspect
from server import slowness

pytestmark = pytest.mark.slow

LONG = [5 + 7 * number % 370 for number in range(60)]
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
QWEN = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}

#: What config.json says, and whether it makes another answer than a plain Llama of the same numbers would give.
CONFIGS: dict[str, tuple[dict[str, Any], bool]] = {
    "plain": ({}, False),
    "theta": ({"rope_theta": 500.0}, True),
    "theta that is null": ({"rope_theta": None}, False),
    "theta in the newer place": ({"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, True),
    "theta that is null in the newer place": ({"rope_theta": 500.0, "rope_parameters": {"rope_type": "default", "rope_theta": None}}, True),
    "linear": ({"rope_scaling": {"type": "linear", "factor": 4.0}}, True),
    "linear, newer": ({"rope_scaling": {"rope_type": "linear", "type": None, "factor": 4.0}}, True),
    "llama3": ({"rope_scaling": {"rope_type": "llama3"} | LLAMA3}, True),
    "llama3, newer": ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0} | LLAMA3}, True),
    "yarn": ({"rope_scaling": YARN}, True),
    "yarn of a strength": ({"rope_scaling": YARN | {"attention_factor": 1.5}}, True),
    "head_dim": ({"head_dim": 32}, False),
    "heads that share": ({"num_key_value_heads": 1}, False),
    "biases": ({"attention_bias": True, "mlp_bias": True}, False),
    "epsilon": ({"rms_norm_eps": 0.5}, True),
    "mistral": ({"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None}, False),
    "qwen2": (QWEN | {"rope_theta": 500.0}, False),
}  # fmt: skip


def shaped(folder: Path, **config: Any) -> Path:
    """A tiny model whose tensors are as its config.json asks, with numbers small enough that every token counts."""
    tiny_llama(folder, byte_level(), **config)
    weights = {name: w * np.float32(0.15) if w.ndim > 1 else w for name, w in read_safetensors(folder / "model.safetensors").items()}
    said = json.loads((folder / "config.json").read_text())
    size = said.get("head_dim") or 16
    random = np.random.default_rng(3)
    sizes = {"q_proj": (4 * size, 64), "k_proj": (said["num_key_value_heads"] * size, 64), "o_proj": (64, 4 * size)}
    sizes["v_proj"] = sizes["k_proj"]
    for name, stored in list(weights.items()):
        part = name.split(".")[-2]
        if part in sizes and stored.shape != sizes[part]:
            weights[name] = random.standard_normal(sizes[part], dtype=np.float32) * np.float32(0.15)
        wanted = (said.get("attention_bias") and "self_attn" in name) or (said.get("mlp_bias") and "mlp" in name)
        if wanted or (said["architectures"] == QWEN["architectures"] and part in ("q_proj", "k_proj", "v_proj")):
            weights[name.replace(".weight", ".bias")] = random.standard_normal(len(weights[name]), dtype=np.float32)
    if said.get("tie_word_embeddings"):
        del weights["lm_head.weight"]
    write_safetensors(folder / "model.safetensors", weights)
    return folder


async def engine_state(folder: Path, ids: list[int]) -> Any:
    """What the engine makes of these tokens with what became of a folder: the last one's numbers, of length 1."""
    made = folder.parent / f"{folder.name}.gguf"
    with made.open("wb") as out:
        list(convert(folder, out))
    with runtime_folder() as place:
        with made.open("rb") as held:
            launch = LaunchOptions("llama", slots=1, num_ctx=128, embedding=True, pooling="last")
            runner = await Runner.spawn(launch, held.fileno(), place)
            await asyncio.wait_for(runner.ready(), 60 * slowness())
        try:
            vectors, _ = await RunnerClient(runner.socket, Coalescer()).embed([ids])
        finally:
            await runner.stop()
    return np.frombuffer(vectors[0], "<f4")


@pytest.mark.parametrize("name", CONFIGS)
async def test_the_engine_does_what_config_json_says(name: str, tmp_path: Path) -> None:
    config, differs = CONFIGS[name]
    folder = shaped(tmp_path / "model", **config)
    want = Llama(folder).state(LONG)
    got = await engine_state(folder, LONG)
    assert float(got @ want) > 0.999, float(got @ want)
    if differs:  # else the comparison above would hold nothing
        said = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(
            json.dumps({key: said[key] for key in said if not key.startswith("rope_")} | {"rms_norm_eps": 1e-5})
        )
        assert float(got @ Llama(folder).state(LONG)) < 0.99


WINDOWED: list[dict[str, Any]] = [
    {"architectures": ["MistralForCausalLM"], "sliding_window": 24},
    QWEN | {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
]


@pytest.mark.parametrize("config", WINDOWED, ids=["mistral", "qwen2"])
async def test_a_window_that_the_engine_does_not_run_is_the_end_of_the_context(config: dict[str, Any], tmp_path: Path) -> None:
    folder = shaped(tmp_path / "model", **config)
    assert float(await engine_state(folder, LONG[:23]) @ Llama(folder).state(LONG[:23])) > 0.999
    assert inspect(tmp_path / "model.gguf").context_length == 24
    with pytest.raises(PromptTooLong):  # of which it would make another answer than the model's own
        await engine_state(folder, LONG)


@pytest.mark.parametrize("tied", [True, False])
async def test_the_output_is_the_embedding_where_that_is_said(tied: bool, tmp_path: Path) -> None:
    folder = shaped(tmp_path / "model", tie_word_embeddings=tied)
    with (tmp_path / "made.gguf").open("wb") as out:
        list(convert(folder, out))
    with runtime_folder() as place:
        with (tmp_path / "made.gguf").open("rb") as held:
            runner = await Runner.spawn(LaunchOptions("llama", slots=1, num_ctx=128), held.fileno(), place)
            await asyncio.wait_for(runner.ready(), 60 * slowness())
        try:
            options = {"n_predict": 1, "temperature": 0, "ignore_eos": True}
            async with aclosing(RunnerClient(runner.socket, Coalescer()).complete(LONG, options)) as chunks:
                got = [token for chunk in [chunk async for chunk in chunks] if not chunk.prompt_progress for token in chunk.tokens]
        finally:
            await runner.stop()
    best = Llama(folder).best(LONG)
    assert got[0] in best[:2]
    assert got[0] not in Llama(shaped(tmp_path / "other", tie_word_embeddings=not tied)).best(LONG)[:2]
