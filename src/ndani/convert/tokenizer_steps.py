"""The steps of a tokenizer.json before its vocabulary is used, and whether the engine does exactly the same. Pure.

The engine has its own code for this and supports only certain pre-tokenizers. All steps are compared with all of their
settings: a tokenizer with one more step or another setting gives other tokens than the engine would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from ndani.errors import Unsupported

#: Byte-level encoding, with GPT-2's own expression before it or without.
_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_BYTES = _GPT2 | {"use_regex": False}
_DIGITS = {"type": "Digits", "individual_digits": True}
#: A step with an expression. The digest of all expressions together tells such tokenizers apart.
_SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
#: The defaults of settings that a file may leave out, and the settings that make no difference to the tokens.
_DEFAULTS: dict[str, Any] = {"add_prefix_space": True, "use_regex": True, "invert": False}
_IGNORED = ("trim_offsets",)

#: The engine's names of its pre-tokenizers, by the steps and the digest of their expressions (as in ollama's
#: `convert/tokenizer.go`, and llama.cpp's table).
_PRE_TOKENIZERS: tuple[tuple[str, list[dict[str, Any]], str], ...] = (
    ("gpt-2", [_GPT2], ""),
    ("smollm", [_DIGITS, _GPT2], ""),
    ("llama-bpe", [_SPLIT, _BYTES], "d98f9631be1e9607a9848c26c1f9eac1aa9fc21ac6ba82a2fc0741af9780a48f"),
    ("qwen2", [_SPLIT, _BYTES], "1ff7f41064896984db5d1bb6ff64fa4bc29007d08c1b439e505b7392777a319e"),
    ("deepseek-llm", [*5 * [_SPLIT], _DIGITS, _BYTES], "03df5c5863ad70781dcfdef491ead25140f895fe8010964be0daefe27be32b02"),
    ("deepseek-coder", [*4 * [_SPLIT], _DIGITS, _BYTES], "21cde974d587f0d54dc8d56b183cc1e6239600172035c68fbd6d4b9f8da0576e"),
)

#: SentencePiece's steps: a space becomes `▁`, and one may be put before the text. Older files have these steps in the
#: normalizer, newer ones in the pre_tokenizer.
_REPLACE_SPACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_PREPEND_SPACE = {"type": "Prepend", "prepend": "▁"}


def list_steps(value: Any) -> list[dict[str, Any]]:
    """The steps of a normalizer, a pre_tokenizer or a post_processor, which is a sequence of steps or a single one."""
    step_or_sequence = as_object(value)
    for name in ("pretokenizers", "normalizers", "processors"):
        if isinstance(sequence := step_or_sequence.get(name), list):
            return [as_object(step) for step in sequence]
    return [step_or_sequence] if step_or_sequence else []


def name_pre_tokenizer(tokenizer: Mapping[str, Any]) -> str:
    """The engine's name of a byte-level pre-tokenizer. Raises Unsupported for one that the engine does not have."""
    steps, expressions = [], ""
    for step in list_steps(tokenizer.get("pre_tokenizer")):
        step = {key: value for key, value in step.items() if key not in _IGNORED}
        if step.get("type") == "Split":
            pattern = as_object(step.pop("pattern", None))
            expressions += str(pattern.get("Regex")) if list(pattern) == ["Regex"] else "\0"  # no known expression has it
        optional = {"ByteLevel": ("add_prefix_space", "use_regex"), "Split": ("invert",)}.get(str(step.get("type")), ())
        steps.append({key: _DEFAULTS[key] for key in optional} | step)
    digest = hashlib.sha256(expressions.encode("utf-8", "replace")).hexdigest() if expressions else ""
    name = next((name for name, known_steps, known_digest in _PRE_TOKENIZERS if (known_steps, known_digest) == (steps, digest)), None)
    # Typed text nearly always is NFC already. The engine skips that step, as llama.cpp's and ollama's converters do.
    changes_text = any(step != {"type": "NFC"} for step in list_steps(tokenizer.get("normalizer")))
    if name is None or changes_text:
        raise Unsupported("this tokenizer splits text in a way that the engine is not known to share; use a GGUF file of this model")
    return name


def require_plain_merges(tokenizer: Mapping[str, Any]) -> None:
    """Raise Unsupported for a BPE model with options beside its merges, which the engine does not support.

    The exception is ignore_merges, which the engine applies with Llama 3's pre-tokenizer and with no other.
    """
    model = as_object(tokenizer.get("model"))
    unsupported = [name for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(name)]
    if model.get("ignore_merges") and (is_sentencepiece(tokenizer) or name_pre_tokenizer(tokenizer) != "llama-bpe"):
        unsupported.append("ignore_merges")
    if unsupported:
        raise Unsupported(
            f"this tokenizer's {unsupported[0]} is not known to the engine, which would read other tokens; use a GGUF file of this model"
        )


def is_sentencepiece(tokenizer: Mapping[str, Any]) -> bool:
    """Whether the tokens are SentencePiece's (`▁` for a space, bytes as `<0x0A>`); False for byte-level tokens.

    Raises Unsupported for a tokenizer that is neither, or has more steps than either.
    """
    normalizers, pre_tokenizers = list_steps(tokenizer.get("normalizer")), list_steps(tokenizer.get("pre_tokenizer"))
    if any(step.get("type") == "ByteLevel" for step in (*normalizers, *pre_tokenizers)):
        return False
    older = normalizers in ([_REPLACE_SPACE], [_PREPEND_SPACE, _REPLACE_SPACE]) and not pre_tokenizers
    newer = not normalizers and [(step.get("type"), step.get("replacement")) for step in pre_tokenizers] == [("Metaspace", "▁")]
    if not (older or newer) or as_object(tokenizer.get("model")).get("byte_fallback") is not True:
        raise Unsupported("this tokenizer is neither byte-level nor SentencePiece's with bytes; use a GGUF file of this model")
    return True


def adds_space_prefix(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a SentencePiece tokenizer puts a space before every text."""
    for step in (*list_steps(tokenizer.get("normalizer")), *list_steps(tokenizer.get("pre_tokenizer"))):
        if step.get("type") == "Prepend":
            return True
        if step.get("type") == "Metaspace":
            return str(step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")) != "never"
    return False


def read_bert_normalizer(tokenizer: Mapping[str, Any] | None, config: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether a BERT's tokenizer lowercases text, and whether it strips accents.

    From tokenizer.json, if there is one, and tokenizer_config.json, which takes precedence as in the publishers' library.
    Raises Unsupported for a tokenizer that does not do what the engine always does.
    """
    settings: dict[str, Any] = {}
    if tokenizer is not None:
        normalizers, pre_tokenizers = list_steps(tokenizer.get("normalizer")), list_steps(tokenizer.get("pre_tokenizer"))
        if [step.get("type") for step in (*normalizers, *pre_tokenizers)] != ["BertNormalizer", "BertPreTokenizer"]:
            raise Unsupported("this tokenizer splits text in another way than a BERT's, which is what the engine does; use a GGUF file")
        settings = normalizers[0]
    config_names = {"lowercase": "do_lower_case", "strip_accents": "strip_accents", "handle_chinese_chars": "tokenize_chinese_chars"}
    settings = settings | {name: config[config_name] for name, config_name in config_names.items() if config_name in config}
    if settings.get("clean_text", True) is not True or settings.get("handle_chinese_chars", True) is not True:
        raise Unsupported("this tokenizer keeps control characters or Chinese words whole, which the engine cannot; use a GGUF file")
    lowercase, strip_accents = settings.get("lowercase", True), settings.get("strip_accents")
    if not isinstance(lowercase, bool) or not isinstance(strip_accents, bool | None):
        raise Unsupported("the tokenizer's do_lower_case and strip_accents have to be true or false; send the model's own files")
    return lowercase, lowercase if strip_accents is None else strip_accents


def as_object(value: Any) -> dict[str, Any]:
    """A JSON object, or an empty one for anything else."""
    return value if isinstance(value, dict) else {}
