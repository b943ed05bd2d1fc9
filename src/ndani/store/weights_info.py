"""The properties of a weights file that listings, `show` and the memory estimate need.

`gguf` reads the bytes; here they are interpreted. Pure except for `inspect` and `model_info`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ndani.store.answer_formats import format_of_chat_template
from ndani.store.gguf import Tensor, read_header, translate_gguf_errors

#: Bytes per number of a key/value cache, by the type's name: block bytes over numbers per block.
CACHE_BYTES = {
    "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32, "q4_1": 20 / 32, "iq4_nl": 18 / 32,
    "q5_0": 22 / 32, "q5_1": 24 / 32,
}  # fmt: skip

#: llama.cpp's names of what a whole file is quantised to (`general.file_type`).
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
}  # fmt: skip

#: llama.cpp's number for a model that makes a score of a text's tokens.
RANK_POOLING = 4

_HIDDEN = ("general.name", "tokenizer.chat_template")


@dataclass(frozen=True, slots=True)
class WeightsInfo:
    """The header of a GGUF file. Numbers that the file does not give are 0.

    A header from a note (`header_cache`) has no tensors, and `stored_parameter_count` instead.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: tuple[Tensor, ...]
    stored_parameter_count: int | None = None
    end: int = 0  # the size of the header
    memory: int = 0  # about how many bytes of memory metadata and tensors take

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    @property
    def parameter_count(self) -> int:
        """Numbers in all tensors together."""
        if self.stored_parameter_count is not None:
            return self.stored_parameter_count
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def parameter_size(self) -> str:
        """The parameter count for a reader: `134.52M`, `1.2B`."""
        return format_count(self.parameter_count)

    @property
    def file_type(self) -> str:
        """The quantisation, in llama.cpp's words."""
        return file_type_of(self.metadata) or "unknown"

    @property
    def context_length(self) -> int:
        """The context length in tokens that the model was trained with."""
        return self._number("context_length")

    @property
    def embedding_length(self) -> int:
        return self._number("embedding_length")

    @property
    def block_count(self) -> int:
        return self._number("block_count")

    @property
    def head_count(self) -> int:
        return max(self._per_block("attention.head_count"), default=0)

    @property
    def head_count_kv(self) -> int:
        """Key/value heads of the block that has most of them."""
        return max(self._kv_heads(), default=0)

    @property
    def key_length(self) -> int:
        """Numbers in one head's key."""
        return self._number("attention.key_length") or self._head_size()

    @property
    def value_length(self) -> int:
        """Numbers in one head's value."""
        return self._number("attention.value_length") or self._head_size()

    @property
    def has_rank_head(self) -> bool:
        """Whether the model scores documents for a query (a reranker), and makes no vectors."""
        return self._number("pooling_type") == RANK_POOLING

    @property
    def chat_template(self) -> str | None:
        """The model's own chat template (jinja), or None: then it is a base model and gets raw prompts."""
        template = self.metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) and template else None

    def kv_bytes_per_token(self, cache_type: str = "f16") -> int:
        """Bytes that one token of context takes in the key/value cache, over all blocks.

        Counts every block as if it attended to the whole context; sliding windows only reduce this.
        """
        numbers = sum(self._kv_heads()) * (self.key_length + self.value_length)
        return math.ceil(numbers * CACHE_BYTES[cache_type])

    def senses(self) -> tuple[str, ...]:
        """What this file has an encoder for, as a projector or as part of the weights: any of vision, audio."""
        arch = self.architecture
        encoders = {"vision": "has_vision_encoder", "audio": "has_audio_encoder"}
        return tuple(
            word
            for word, key in encoders.items()
            if f"{arch}.{word}.block_count" in self.metadata or self.metadata.get(f"{arch}.{key}") is True
        )

    def capabilities(self, template_capabilities: Collection[str] | None, projector_senses: Collection[str] = ()) -> tuple[str, ...]:
        """The model's capabilities in Ollama's words; those of its Go template, if it has one, replace those of its chat template.

        `projector_senses` are what its projector lets it take.
        """
        arch = self.architecture
        capabilities = ["embedding" if f"{arch}.pooling_type" in self.metadata else "completion"]
        jinja = self.chat_template or ""
        if template_capabilities is None:
            calls, thinks = "tools" in jinja or "tool_call" in jinja, format_of_chat_template(jinja).thinks
            template_capabilities = {word for word, true in {"tools": calls, "thinking": thinks}.items() if true}
        capabilities += [word for word in ("vision", "audio") if word in projector_senses or word in self.senses()]
        return (*capabilities, *(word for word in ("tools", "insert", "thinking") if word in template_capabilities))

    def model_info(self, *, verbose: bool = False) -> dict[str, Any]:
        """The key/values for `show`. Arrays are None unless `verbose`, when the file is read again in full (StoreFailed)."""
        metadata = self.metadata
        if verbose:
            with translate_gguf_errors(self.path):
                metadata = read_header(self.path, verbose=True).metadata
        info = {key: value for key, value in metadata.items() if key not in _HIDDEN}
        if not verbose:
            # The real Ollama withholds every array here, short ones too (recorded: general.languages is null).
            info = {key: None if isinstance(value, list) else value for key, value in info.items()}
        info = {key: _finite(value) for key, value in info.items()}
        return dict(sorted({**info, "general.parameter_count": self.parameter_count}.items()))

    def _kv_heads(self) -> list[int]:
        return self._per_block("attention.head_count_kv") or self._per_block("attention.head_count")

    def _per_block(self, key: str) -> list[int]:
        """A number per block: some models give one for all, some a list."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        if isinstance(value, list):
            return [item for item in value if isinstance(item, int) and item >= 0]
        return [value] * self.block_count if isinstance(value, int) and value >= 0 and self.block_count <= 1 << 16 else []

    def _number(self, key: str) -> int:
        value = self.metadata.get(f"{self.architecture}.{key}")
        return value if isinstance(value, int) and value >= 0 else 0

    def _head_size(self) -> int:
        return self.embedding_length // self.head_count if self.head_count else 0


def file_type_of(metadata: Mapping[str, Any]) -> str:
    """The quantisation that a file's key/values say it has, in llama.cpp's words, or nothing."""
    file_type = metadata.get("general.file_type")
    return FILE_TYPES.get(file_type, "") if isinstance(file_type, int) else ""


def inspect(path: Path) -> WeightsInfo:
    """Read the head of a weights file. Raises ValueError with a few words on what is wrong, OSError.

    `gguf.translate_gguf_errors` and `gguf.invalid_gguf` make sentences of them.
    """
    header = read_header(path)
    # Of several parts only the first says it: gguf-split gives the others nothing but their place among them.
    if not isinstance(header.metadata.get("general.architecture"), str) and header.metadata.get("split.no", 0) == 0:
        raise ValueError("it does not say its architecture")
    return WeightsInfo(path, header.metadata, header.tensors, end=header.end, memory=header.memory)


def format_count(number: int) -> str:
    """A count as Ollama prints it: 134515008 → `134.52M`, 1235814432 → `1.2B`."""
    for step, letter, digits in ((10**12, "T", 1), (10**9, "B", 1), (10**6, "M", 2)):
        if number >= step:
            return f"{number // step}{letter}" if number % step == 0 else f"{number / step:.{digits}f}{letter}"
    return f"{number // 1000}K" if number >= 1000 else str(number)


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN; a file may. A whole number has no point, as Go writes it."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value
