"""What a tokenizer.json does to a text before its vocabulary is used, and whether the engine does the very same. Pure.

The engine cuts by itself and knows only certain ways of splitting a text. All steps and all that is said of them are
compared: a tokenizer with a step more, or with one that is set otherwise, reads other tokens than the engine would give
its model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from ndani.errors import Unsupported

#: Bytes as letters, with GPT-2's own expression before that or without.
_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_BYTES = _GPT2 | {"use_regex": False}
_DIGITS = {"type": "Digits", "individual_digits": True}
#: The steps with an expression; those are told apart by the digest of all of them together.
_SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
#: What counts where a file does not say it, and what makes no difference to the tokens.
_UNSAID: dict[str, Any] = {"add_prefix_space": True, "use_regex": True, "invert": False}
_NO_MATTER = ("trim_offsets",)

#: The engine's names for its ways of splitting, by the steps and by the digest of their expressions (as in ollama's
#: `convert/tokenizer.go`, and llama.cpp's table).
_KNOWN: tuple[tuple[str, list[dict[str, Any]], str], ...] = (
    ("gpt-2", [_GPT2], ""),
    ("smollm", [_DIGITS, _GPT2], ""),
    ("llama-bpe", [_SPLIT, _BYTES], "d98f9631be1e9607a9848c26c1f9eac1aa9fc21ac6ba82a2fc0741af9780a48f"),
    ("qwen2", [_SPLIT, _BYTES], "1ff7f41064896984db5d1bb6ff64fa4bc29007d08c1b439e505b7392777a319e"),
    ("deepseek-llm", [*5 * [_SPLIT], _DIGITS, _BYTES], "03df5c5863ad70781dcfdef491ead25140f895fe8010964be0daefe27be32b02"),
    ("deepseek-coder", [*4 * [_SPLIT], _DIGITS, _BYTES], "21cde974d587f0d54dc8d56b183cc1e6239600172035c68fbd6d4b9f8da0576e"),
)

#: SentencePiece's: a space becomes its sign, and one may be put in front of the text. Older files say so of the text,
#: newer ones of the splitting.
_SIGN = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_FRONT = {"type": "Prepend", "prepend": "▁"}


def steps(value: Any) -> list[dict[str, Any]]:
    """The steps of a normalizer, a pre_tokenizer or a post_processor: those of a sequence, or the one that it is."""
    found = as_object(value)
    for name in ("pretokenizers", "normalizers", "processors"):
        if isinstance(inner := found.get(name), list):
            return [as_object(step) for step in inner]
    return [found] if found else []


def name_split(whole: Mapping[str, Any]) -> str:
    """The engine's name for how a byte-level tokenizer splits text. Raises Unsupported for a way that it does not know."""
    found, expressions = [], ""
    for step in steps(whole.get("pre_tokenizer")):
        step = {key: value for key, value in step.items() if key not in _NO_MATTER}
        if step.get("type") == "Split":
            pattern = as_object(step.pop("pattern", None))
            expressions += str(pattern.get("Regex")) if list(pattern) == ["Regex"] else "\0"  # in no known one
        unsaid = {"ByteLevel": ("add_prefix_space", "use_regex"), "Split": ("invert",)}.get(str(step.get("type")), ())
        found.append({key: _UNSAID[key] for key in unsaid} | step)
    digest = hashlib.sha256(expressions.encode("utf-8", "replace")).hexdigest() if expressions else ""
    name = next((name for name, known, theirs in _KNOWN if (known, theirs) == (found, digest)), None)
    # NFC is what everybody writes who types; the engine leaves it out, as llama.cpp's and ollama's converters do.
    if name is None or any(step != {"type": "NFC"} for step in steps(whole.get("normalizer"))):
        raise Unsupported("this tokenizer splits text in a way that the engine is not known to share; use a GGUF file of this model")
    return name


def require_plain_merging(whole: Mapping[str, Any]) -> None:
    """Raise Unsupported for pieces that are put together otherwise than by their merges alone, which is all that the engine does.

    Tokens that count before any merge does are the engine's way with one kind of splitting (Llama 3's).
    """
    model = as_object(whole.get("model"))
    odd = [name for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(name)]
    if model.get("ignore_merges") and (has_pieces(whole) or name_split(whole) != "llama-bpe"):
        odd.append("ignore_merges")
    if odd:
        raise Unsupported(
            f"this tokenizer's {odd[0]} is not known to the engine, which would read other tokens; use a GGUF file of this model"
        )


def has_pieces(whole: Mapping[str, Any]) -> bool:
    """Whether the symbols are SentencePiece's (`▁` for a space, bytes as `<0x0A>`), and not bytes as letters.

    Raises Unsupported for what is neither, or does more to a text than either.
    """
    before, after = steps(whole.get("normalizer")), steps(whole.get("pre_tokenizer"))
    if any(step.get("type") == "ByteLevel" for step in (*before, *after)):
        return False
    older = before in ([_SIGN], [_FRONT, _SIGN]) and not after
    newer = not before and [(step.get("type"), step.get("replacement")) for step in after] == [("Metaspace", "▁")]
    if not (older or newer) or as_object(whole.get("model")).get("byte_fallback") is not True:
        raise Unsupported("this tokenizer is neither byte-level nor SentencePiece's with bytes; use a GGUF file of this model")
    return True


def has_space_before(whole: Mapping[str, Any]) -> bool:
    """Whether a space is put before every text, by a tokenizer that has SentencePiece's symbols."""
    for step in (*steps(whole.get("normalizer")), *steps(whole.get("pre_tokenizer"))):
        if step.get("type") == "Prepend":
            return True
        if step.get("type") == "Metaspace":
            return str(step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")) != "never"
    return False


def read_letters(whole: Mapping[str, Any] | None, config: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether a BERT's letters are made small, and whether their accents go; out of tokenizer.json, where there is one,
    and of tokenizer_config.json, which counts more, as it does in its publishers' library.

    Raises Unsupported for a tokenizer that leaves out what the engine does to every text.
    """
    said: dict[str, Any] = {}
    if whole is not None:
        before, after = steps(whole.get("normalizer")), steps(whole.get("pre_tokenizer"))
        if [step.get("type") for step in (*before, *after)] != ["BertNormalizer", "BertPreTokenizer"]:
            raise Unsupported("this tokenizer splits text in another way than a BERT's, which is what the engine does; use a GGUF file")
        said = before[0]
    names = {"lowercase": "do_lower_case", "strip_accents": "strip_accents", "handle_chinese_chars": "tokenize_chinese_chars"}
    said = said | {ours: config[theirs] for ours, theirs in names.items() if theirs in config}
    if said.get("clean_text", True) is not True or said.get("handle_chinese_chars", True) is not True:
        raise Unsupported("this tokenizer keeps control characters or Chinese words whole, which the engine cannot; use a GGUF file")
    lowercase, accents = said.get("lowercase", True), said.get("strip_accents")
    if not isinstance(lowercase, bool) or not isinstance(accents, bool | None):
        raise Unsupported("the tokenizer's do_lower_case and strip_accents have to be true or false; send the model's own files")
    return lowercase, lowercase if accents is None else accents


def as_object(value: Any) -> dict[str, Any]:
    """A JSON object, or an empty one for anything else."""
    return value if isinstance(value, dict) else {}
