"""Which type each tensor gets when a model is quantised: the same choices as llama.cpp, which Ollama uses. Pure.

A kind such as Q4_K_M is a mixture of types. The tensors that the quality depends on most get more bits: the output, the
values of the attention, the first and the last blocks. A tensor whose rows do not fill the blocks of its type gets another
type. The rules come from llama.cpp's quantiser, and tests compare them with its output (tests/golden/quantised*.json).
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

#: The types that are not quantised; only tensors of these types can be quantised.
PLAIN = ("F32", "F16", "BF16")

#: The kinds, with the default type of their tensors.
KINDS = {
    "F32": "F32", "F16": "F16", "BF16": "BF16", "Q4_0": "Q4_0", "Q4_1": "Q4_1", "Q5_0": "Q5_0", "Q5_1": "Q5_1", "Q8_0": "Q8_0",
    "Q2_K": "Q2_K", "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K", "Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K", "Q5_K_S": "Q5_K",
    "Q5_K_M": "Q5_K", "Q6_K": "Q6_K", "IQ4_NL": "IQ4_NL", "IQ4_XS": "IQ4_XS",
}  # fmt: skip
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
#: Kinds of so few bits that they need an importance matrix, measured by running the model over a text.
_NEED_IMPORTANCE_MATRIX = ("Q2_K_S", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS")

#: The replacement of a type whose blocks a row does not fill. Without a replacement that fits, the tensor becomes F16.
_FALLBACK_TYPES = {"IQ4_XS": "IQ4_NL", "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}

#: Matrices whose names contain one of these stay unchanged: they are small and sensitive.
_UNCHANGED_PARTS = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj", "ssm_conv1d",
    "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "time_mix_first.weight", "time_mix_w0.weight",
    "time_mix_w1.weight", "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight",
    "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight", "time_mix_g2.weight",
    "time_mix_decay_w1.weight", "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight", "attn_rel_b.weight",
    ".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger", "a.rvq.codebook",
    "mm.a.code_embd",
)  # fmt: skip
_UNCHANGED_NAMES = ("position_embd.weight", "token_types.weight")

#: The role of a tensor, by a part of its name; the first match counts.
_ROLES = (
    ("attn_qkv.weight", "values"), ("attn_kv_b.weight", "values"), ("attn_v.weight", "values"), ("attn_k.weight", "keys"),
    ("attn_q.weight", "queries"), ("attn_output.weight", "join"), ("ffn_up", "up"), ("ffn_gate", "gate"), ("ffn_down", "down"),
)  # fmt: skip
_BLOCK = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the choice depends on beside the tensors. `sharing` is how many query heads share one key/value head."""

    architecture: str
    blocks: int
    experts: int
    heads: int
    sharing: int

    @property
    def huge(self) -> bool:
        """Whether llama.cpp treats the model as one of 70 billion parameters, whose attention values are few and matter more."""
        if self.architecture == "llama":
            return self.blocks == 80 and self.sharing != 1
        return (self.architecture, self.blocks) in (("qwen2", 80), ("deci", 80), ("olmo", 80), ("jais2", 68))


def parse_kind(text: str) -> str:
    """The kind in the spelling of KINDS, from text in any case; Q4_K means Q4_K_M. Raises BadRequest, which lists the kinds."""
    kind = text.strip().upper()
    kind = _ALIASES.get(kind, kind)
    if kind in _NEED_IMPORTANCE_MATRIX:
        raise BadRequest(
            f"{kind} has so few bits that it needs an importance matrix, which this version cannot make; "
            "the smallest kind without one is Q2_K"
        )
    if kind not in KINDS:
        raise BadRequest(f"unsupported quantization type {kind} - supported types are {', '.join(KINDS)}")
    return kind


def file_type(kind: str) -> int:
    """The value of `general.file_type` for a kind."""
    return next(number for number, name in FILE_TYPES.items() if name == kind)


def read_facts(keys: Mapping[str, Any]) -> ModelFacts:
    """The facts in a model's header that the choice depends on, with llama.cpp's defaults."""
    architecture = str(keys.get("general.architecture", ""))

    def number(key: str, default: int) -> int:
        value = keys.get(f"{architecture}.{key}", default)
        if isinstance(value, list):  # a value per block: the first is used for all
            value = value[0] if value else default
        return value if isinstance(value, int) else default

    heads = number("attention.head_count", 0)
    kv_heads = number("attention.head_count_kv", heads)
    return ModelFacts(architecture, number("block_count", 0), number("expert_count", 0), heads, heads // kv_heads if kv_heads else 0)


def in_order(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Tensors in llama.cpp's order: those outside of blocks, then block by block, by name."""
    return sorted(tensors, key=lambda tensor: (_block(tensor.name), tensor.name.encode()))


def choose_types(kind: str, model: ModelFacts, tensors: Sequence[Tensor]) -> dict[str, str]:
    """The type of each tensor, by name, when a model is quantised to `kind`. A quantised tensor keeps its type."""
    chooser = _TypeChooser(kind, model, [tensor.name for tensor in tensors])
    return {tensor.name: chooser.next_type(tensor) for tensor in in_order(tensors)}


class _TypeChooser:
    """Chooses the types of one model's tensors, in order; it counts those whose position matters."""

    def __init__(self, kind: str, model: ModelFacts, names: Sequence[str]) -> None:
        self._kind, self._model = kind, model
        self._tied = "output.weight" not in names  # then the embeddings are the output as well
        self._value_count = sum(_role(name) == "values" for name in names)
        self._seen_values = self._seen_downs = 0

    def next_type(self, tensor: Tensor) -> str:
        """The next tensor's type. The caller must follow the order."""
        default = KINDS[self._kind]
        if tensor.type not in PLAIN or not _may_change(tensor):
            return tensor.type
        return default if default in PLAIN else _fitting_type(self._mixed_type(tensor), tensor.shape[0])

    def _mixed_type(self, tensor: Tensor) -> str:
        default, eight_experts = KINDS[self._kind], self._model.experts == 8
        role = _role(tensor.name)
        if role == "output" or (role == "embedding" and self._tied):
            if self._model.architecture == "falcon" or tensor.shape[0] % BLOCKS[default][0]:
                return "Q8_0"
            return default if default == "Q8_0" else "Q6_K"
        if role == "values":
            self._seen_values += 1
            chosen = self._values_type(self._seen_values - 1) or default
            if self._model.huge and chosen in ("Q3_K", "Q4_K"):
                chosen = "Q5_K"
            return "Q8_0" if eight_experts else chosen
        if role == "keys" and eight_experts:
            return "Q8_0"
        if role == "down":
            self._seen_downs += 1
            block = _block(tensor.name) if self._model.experts > 1 else self._seen_downs - 1
            return self._down_type(block) or default
        return (self._join_type(eight_experts) or default) if role == "join" else default

    def _values_type(self, index: int) -> str | None:
        """For an attention-values tensor, the `index`th of them; None for the default."""
        match self._kind:
            case "Q2_K":
                return "Q4_K" if self._model.sharing >= 4 else "Q3_K"
            case "Q3_K_M":
                return "Q5_K" if index < 2 else "Q4_K"
            case "Q3_K_L":
                return "Q5_K"
            case "IQ4_NL" | "IQ4_XS" if self._model.sharing >= 4:
                return "Q5_K"
            case "Q4_K_M" | "Q5_K_M" if _gets_more_bits(index, self._value_count):
                return "Q6_K"
            case "Q4_K_S" if index < 4:
                return "Q5_K"
        return None

    def _down_type(self, block: int) -> str | None:
        """For the feed-forward network's down projection of a block; None for the default."""
        blocks, falcon = self._model.blocks, self._model.architecture == "falcon"
        match self._kind:
            case "Q2_K":
                return "Q3_K"
            case "Q3_K_M":
                if block < blocks // 16:
                    return "Q5_K"
                return "Q4_K" if not falcon or _gets_more_bits(block, blocks) else "Q3_K"
            case "Q3_K_L":
                return "Q4_K" if falcon else "Q5_K"
            case "Q4_K_M" if falcon and block >= blocks // 16:
                return "Q5_K" if _gets_more_bits(block, blocks) else "Q4_K"
            case "Q4_K_M" | "Q5_K_M" if _gets_more_bits(block, blocks):
                return "Q6_K"
            case "IQ4_NL" | "IQ4_XS" if block < blocks // 8:
                return "Q5_K"
            case "Q4_K_S" if block < blocks // 8 and not falcon:
                return "Q5_K"
        return None

    def _join_type(self, eight_experts: bool) -> str | None:
        """For the attention's output projection; None for the default."""
        if self._model.architecture == "falcon":
            return "Q4_K" if self._kind == "Q3_K_L" else None
        if eight_experts:
            return "Q5_K" if KINDS[self._kind] in ("Q2_K", "Q4_K", "IQ4_NL", "IQ4_XS") or self._kind in ("Q3_K_S", "Q3_K_M") else None
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(self._kind)


def _gets_more_bits(index: int, count: int) -> bool:
    """Whether a block is in the first eighth, in the last eighth, or every third one between."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


def _may_change(tensor: Tensor) -> bool:
    name = tensor.name
    is_matrix = any(size > 1 for size in tensor.shape[1:])
    if not name.endswith("weight") or name in _UNCHANGED_NAMES or not is_matrix:
        return False
    return not any(part in name for part in _UNCHANGED_PARTS)


def _fitting_type(tensor_type: str, columns: int) -> str:
    if columns % BLOCKS[tensor_type][0]:
        tensor_type = _FALLBACK_TYPES.get(tensor_type, "F16")
    return "F16" if columns % BLOCKS[tensor_type][0] else tensor_type


def _role(name: str) -> str:
    if name == "output.weight":
        return "output"
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "embedding"
    return next((role for part, role in _ROLES if part in name), "")


def _block(name: str) -> int:
    match = _BLOCK.match(name)
    return int(match[1]) if match else -1
