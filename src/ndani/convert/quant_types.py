"""Which type each tensor of a model gets when the model is quantised: llama.cpp's choices, which Ollama's are. Pure.

A kind such as Q4_K_M is a mixture. What answers suffer most from gets more bits: the output, the values of the
attention, the first and the last blocks. A tensor whose rows do not fill the blocks of its type gets another one.
The rules were learnt from llama.cpp's quantiser and are held against what it made (tests/golden/quantised*.json).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ndani.errors import BadRequest
from ndani.store.extents import BLOCKS
from ndani.store.gguf import Tensor
from ndani.store.weights_info import FILE_TYPES

#: What weights can be made of, and what every kind is made from.
PLAIN = ("F32", "F16", "BF16")

#: The kinds, with the type that a tensor has unless a rule says another.
KINDS = {
    "F32": "F32", "F16": "F16", "BF16": "BF16", "Q4_0": "Q4_0", "Q4_1": "Q4_1", "Q5_0": "Q5_0", "Q5_1": "Q5_1", "Q8_0": "Q8_0",
    "Q2_K": "Q2_K", "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K", "Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K", "Q5_K_S": "Q5_K",
    "Q5_K_M": "Q5_K", "Q6_K": "Q6_K", "IQ4_NL": "IQ4_NL", "IQ4_XS": "IQ4_XS",
}  # fmt: skip
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
#: So few bits that it must be known which weights matter, from a run of the model over a text.
_GUIDED = ("Q2_K_S", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS")

#: The type in the place of one whose blocks a row does not fill. What is not here, or does not fit either, becomes F16.
_SMALLER = {"IQ4_XS": "IQ4_NL", "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}

#: Matrices that stay as they are wherever these letters stand in their names: small, and delicate.
_KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj", "ssm_conv1d",
    "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "time_mix_first.weight", "time_mix_w0.weight",
    "time_mix_w1.weight", "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight",
    "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight", "time_mix_g2.weight",
    "time_mix_decay_w1.weight", "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight", "attn_rel_b.weight",
    ".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger", "a.rvq.codebook",
    "mm.a.code_embd",
)  # fmt: skip
_KEPT_NAMES = ("position_embd.weight", "token_types.weight")

#: What a tensor is for, by the letters in its name; the first that is found counts.
_ROLES = (
    ("attn_qkv.weight", "values"), ("attn_kv_b.weight", "values"), ("attn_v.weight", "values"), ("attn_k.weight", "keys"),
    ("attn_q.weight", "queries"), ("attn_output.weight", "join"), ("ffn_up", "up"), ("ffn_gate", "gate"), ("ffn_down", "down"),
)  # fmt: skip
_BLOCK = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the choice depends on beside the tensors. `sharing` is how many heads share one head's keys and values."""

    architecture: str
    blocks: int
    experts: int
    heads: int
    sharing: int

    @property
    def huge(self) -> bool:
        """What llama.cpp takes for a model of 70 billion, where the attention's values are few and matter more."""
        if self.architecture == "llama":
            return self.blocks == 80 and self.sharing != 1
        return (self.architecture, self.blocks) in (("qwen2", 80), ("deci", 80), ("olmo", 80), ("jais2", 68))


def parse_kind(text: str) -> str:
    """A kind as KINDS spells it, out of any case and of Q4_K for Q4_K_M. Raises BadRequest, naming those that there are."""
    word = text.strip().upper()
    word = _ALIASES.get(word, word)
    if word in _GUIDED:
        raise BadRequest(
            f"{word} has so few bits that it needs an importance matrix, which this version cannot make; "
            "the smallest kind without one is Q2_K"
        )
    if word not in KINDS:
        raise BadRequest(f"unsupported quantization type {word} - supported types are {', '.join(KINDS)}")
    return word


def file_type(kind: str) -> int:
    """The number of a kind in a file's `general.file_type`."""
    return next(number for number, name in FILE_TYPES.items() if name == kind)


def read_facts(keys: Mapping[str, Any]) -> ModelFacts:
    """What a model's head says that the choice depends on. What is not said counts as in llama.cpp."""
    architecture = str(keys.get("general.architecture", ""))

    def number(key: str, default: int) -> int:
        found = keys.get(f"{architecture}.{key}", default)
        if isinstance(found, list):  # one per block: the first speaks for all
            found = found[0] if found else default
        return found if isinstance(found, int) else default

    heads = number("attention.head_count", 0)
    shared = number("attention.head_count_kv", heads)
    return ModelFacts(architecture, number("block_count", 0), number("expert_count", 0), heads, heads // shared if shared else 0)


def in_order(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Tensors in the order in which llama.cpp goes through them: what is in no block, then block by block, by name."""
    return sorted(tensors, key=lambda tensor: (_block(tensor.name), tensor.name.encode()))


def choose_types(kind: str, model: ModelFacts, tensors: Sequence[Tensor]) -> dict[str, str]:
    """The type of each tensor, by its name, when a model is made `kind`. A quantised tensor keeps its type."""
    choice = _Choice(kind, model, [tensor.name for tensor in tensors])
    return {tensor.name: choice.of(tensor) for tensor in in_order(tensors)}


class _Choice:
    """One model's choice, under way: how many of the tensors that count have been seen."""

    def __init__(self, kind: str, model: ModelFacts, names: Sequence[str]) -> None:
        self._kind, self._model = kind, model
        self._tied = "output.weight" not in names  # then the embeddings are the output as well
        self._all_values = sum(_role(name) == "values" for name in names)
        self._values = self._downs = 0

    def of(self, tensor: Tensor) -> str:
        """The next tensor's type; they must come in order."""
        plain = KINDS[self._kind]
        if tensor.type not in PLAIN or not _may_change(tensor):
            return tensor.type
        return plain if plain in PLAIN else _fitting(self._mixed(tensor), tensor.shape[0])

    def _mixed(self, tensor: Tensor) -> str:
        plain, eight = KINDS[self._kind], self._model.experts == 8
        role = _role(tensor.name)
        if role == "output" or (role == "embedding" and self._tied):
            if self._model.architecture == "falcon" or tensor.shape[0] % BLOCKS[plain][0]:
                return "Q8_0"
            return plain if plain == "Q8_0" else "Q6_K"
        if role == "values":
            self._values += 1
            found = self._of_values(self._values - 1) or plain
            if self._model.huge and found in ("Q3_K", "Q4_K"):
                found = "Q5_K"
            return "Q8_0" if eight else found
        if role == "keys" and eight:
            return "Q8_0"
        if role == "down":
            self._downs += 1
            at = _block(tensor.name) if self._model.experts > 1 else self._downs - 1
            return self._of_down(at) or plain
        return (self._of_join(eight) or plain) if role == "join" else plain

    def _of_values(self, at: int) -> str | None:
        """Of the tensors that make the attention's values, the one in the place `at`."""
        match self._kind:
            case "Q2_K":
                return "Q4_K" if self._model.sharing >= 4 else "Q3_K"
            case "Q3_K_M":
                return "Q5_K" if at < 2 else "Q4_K"
            case "Q3_K_L":
                return "Q5_K"
            case "IQ4_NL" | "IQ4_XS" if self._model.sharing >= 4:
                return "Q5_K"
            case "Q4_K_M" | "Q5_K_M" if _matters(at, self._all_values):
                return "Q6_K"
            case "Q4_K_S" if at < 4:
                return "Q5_K"
        return None

    def _of_down(self, at: int) -> str | None:
        """Of the matrices that lead out of the feed-forward part, that of the block `at`."""
        blocks, falcon = self._model.blocks, self._model.architecture == "falcon"
        match self._kind:
            case "Q2_K":
                return "Q3_K"
            case "Q3_K_M":
                if at < blocks // 16:
                    return "Q5_K"
                return "Q4_K" if not falcon or _matters(at, blocks) else "Q3_K"
            case "Q3_K_L":
                return "Q4_K" if falcon else "Q5_K"
            case "Q4_K_M" if falcon and at >= blocks // 16:
                return "Q5_K" if _matters(at, blocks) else "Q4_K"
            case "Q4_K_M" | "Q5_K_M" if _matters(at, blocks):
                return "Q6_K"
            case "IQ4_NL" | "IQ4_XS" if at < blocks // 8:
                return "Q5_K"
            case "Q4_K_S" if at < blocks // 8 and not falcon:
                return "Q5_K"
        return None

    def _of_join(self, eight: bool) -> str | None:
        """The matrices that join the attention's heads."""
        if self._model.architecture == "falcon":
            return "Q4_K" if self._kind == "Q3_K_L" else None
        if eight:
            return "Q5_K" if KINDS[self._kind] in ("Q2_K", "Q4_K", "IQ4_NL", "IQ4_XS") or self._kind in ("Q3_K_S", "Q3_K_M") else None
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(self._kind)


def _matters(at: int, count: int) -> bool:
    """Whether a block is one of those that get more bits: the first eighth, the last, and every third between."""
    return at < count // 8 or at >= 7 * count // 8 or (at - count // 8) % 3 == 2


def _may_change(tensor: Tensor) -> bool:
    name = tensor.name
    if not name.endswith("weight") or name in _KEPT_NAMES or not any(size > 1 for size in tensor.shape[1:]):
        return False
    return not any(letters in name for letters in _KEPT)


def _fitting(kind: str, columns: int) -> str:
    if columns % BLOCKS[kind][0]:
        kind = _SMALLER.get(kind, "F16")
    return "F16" if columns % BLOCKS[kind][0] else kind


def _role(name: str) -> str:
    if name == "output.weight":
        return "output"
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "embedding"
    return next((role for letters, role in _ROLES if letters in name), "")


def _block(name: str) -> int:
    found = _BLOCK.match(name)
    return int(found[1]) if found else -1
