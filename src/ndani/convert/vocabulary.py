"""The vocabulary of a model: from tokenizer.json or vocab.txt to the engine's keys (`tokenizer.ggml.*`).

Three tokenizer models are supported: WordPiece (BERT), byte-level BPE (Llama 3, SmolLM2, Qwen2), and BPE with
SentencePiece's tokens (Llama 2, Mistral). `tokenizer_steps` checks the steps before the vocabulary. A tokenizer that splits
text in a way that the engine does not support is refused: with other tokens than in its training a model gives worse
answers, and nobody sees why.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ndani.convert.config_values import read_bool
from ndani.convert.gguf_writer import GgufValue, encode_text
from ndani.convert.safetensors import read_object, read_text
from ndani.convert.tokenizer_steps import (
    adds_space_prefix,
    as_object,
    is_sentencepiece,
    list_steps,
    name_pre_tokenizer,
    read_bert_normalizer,
    require_plain_merges,
)
from ndani.errors import BadRequest, Unsupported

_CONFIG = "tokenizer_config.json"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
MAX_TOKENS = 1 << 21

#: The engine's names of the special tokens, with its spelling.
_SPECIAL = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "cls": "cls", "mask": "mask",
}  # fmt: skip
_EXTRA_ENDS = ("eot", "eom")
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>\Z")


@dataclass(slots=True)
class Vocabulary:
    """What the engine needs to know of a model's tokens. `tokens` and `types` are indexed by token id; `special` is ids by role."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    special: dict[str, int] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)  # ids that end an answer, if there are several
    flags: dict[str, bool] = field(default_factory=dict)
    template: str = ""

    def pad_to_rows(self, rows: int, vocab_size: int) -> None:
        """Add unused tokens up to the rows of the embedding, which must be config.json's `vocab_size`.

        Raises BadRequest when these differ, when there are more tokens than rows, or when two tokens have the same text.
        """
        if len(self.tokens) > rows:
            raise BadRequest(f"the tokenizer has {len(self.tokens)} tokens and the weights have {rows}; they do not belong together")
        if vocab_size != rows:
            raise BadRequest(
                f"config.json says vocab_size {vocab_size}, and the weights have {rows} rows for tokens; send the files of one model"
            )
        if rows > MAX_TOKENS:
            raise BadRequest(f"the weights have {rows} rows for tokens, more than a model has; send those of one that can be run")
        for number in range(len(self.tokens), rows):
            self.tokens.append(_unused_token(number))
            self.types.append(UNUSED)
            if self.scores:
                self.scores.append(-1000.0)
        self._require_unique_tokens()

    def _require_unique_tokens(self) -> None:
        """The engine aborts at each load of a model in which two tokens have the same bytes, up to the first zero byte."""
        seen: dict[bytes, int] = {}
        for number, token in enumerate(self.tokens):
            text = encode_text(token).partition(b"\0")[0]
            if text and seen.setdefault(text, number) != number:  # the engine itself names tokens with an empty text
                both = f"{seen[text]} and {number}"
                raise BadRequest(
                    f"the tokens {both} have the same text ({token[:30]!r}), which no model has; send its own tokenizer's files"
                )

    def gguf_keys(self) -> dict[str, GgufValue]:
        """The keys for the file's header."""
        keys: dict[str, GgufValue] = {
            "tokenizer.ggml.model": self.model,
            "tokenizer.ggml.pre": self.pre,
            "tokenizer.ggml.tokens": self.tokens,
        }
        if self.scores:
            keys["tokenizer.ggml.scores"] = self.scores
        keys["tokenizer.ggml.token_type"] = self.types
        if self.merges:
            keys["tokenizer.ggml.merges"] = self.merges
        keys |= {f"tokenizer.ggml.{_SPECIAL[role]}_token_id": number for role, number in self.special.items()}
        if self.ends:
            keys["tokenizer.ggml.eos_token_ids"] = self.ends  # for ollama; the engine reads two more ends from separate keys
            keys |= {f"tokenizer.ggml.{key}_token_id": number for key, number in zip(_EXTRA_ENDS, self.ends[1:], strict=False)}
        keys |= {f"tokenizer.ggml.{name}": enabled for name, enabled in self.flags.items()}
        if self.template:
            keys["tokenizer.chat_template"] = self.template
        return keys


def read_wordpiece(sources: Mapping[str, int]) -> Vocabulary:
    """The vocabulary of a BERT, with tokens as the engine writes them: `▁` before the start of a word, no prefix for the others.

    Raises BadRequest, Unsupported.
    """
    tokenizer = None
    if "tokenizer.json" in sources:
        tokenizer = read_object("tokenizer.json", sources["tokenizer.json"])
        model = as_object(tokenizer.get("model"))
        if model.get("type", "WordPiece") != "WordPiece" or model.get("continuing_subword_prefix", "##") != "##":
            raise Unsupported("tokenizer.json holds no WordPiece vocabulary, which is the only kind that a BERT can be converted with")
        tokens, types = _tokens_and_types(tokenizer)
    elif "vocab.txt" in sources:
        tokens = read_text("vocab.txt", sources["vocab.txt"]).rstrip("\n").split("\n")
        types = [CONTROL if token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") else NORMAL for token in tokens]
    else:
        raise BadRequest("there is neither tokenizer.json nor vocab.txt; send the tokenizer's files too")
    defaults = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
    special = _special(sources, tokens, defaults)
    if not {"cls", "sep", "unk"} <= special.keys():
        raise BadRequest("the tokenizer says nothing of [CLS], [SEP] and [UNK]; send tokenizer_config.json too")
    special["bos"] = special["cls"]  # the engine starts a text with bos
    texts = [_wordpiece_text(token) for token in tokens]
    vocabulary = Vocabulary("bert", "default", texts, types, [float(number) for number in range(len(tokens))], special=special)
    lowercase, strip_accents = read_bert_normalizer(tokenizer, _tokenizer_config(sources))
    if not lowercase:  # the engine's default is True, and strip_accents defaults to lowercase
        vocabulary.flags["normalizer.lowercase"] = False
    if strip_accents != lowercase:
        vocabulary.flags["normalizer.strip_accents"] = strip_accents
    return vocabulary


def _wordpiece_text(token: str) -> str:
    if re.fullmatch(r"\[.*\]", token):
        return token
    return token[2:] if token.startswith("##") else f"▁{token}"


def read_bpe(sources: Mapping[str, int]) -> Vocabulary:
    """The vocabulary of a model of the Llama family, with its merges or scores, its special tokens and its chat template.

    Raises BadRequest, Unsupported.
    """
    if "tokenizer.json" not in sources:
        raise BadRequest("there is no tokenizer.json; send it too (a tokenizer.model alone is not enough)")
    tokenizer = read_object("tokenizer.json", sources["tokenizer.json"])
    model = as_object(tokenizer.get("model"))
    if model.get("type", "BPE") != "BPE":
        raise Unsupported(f"a tokenizer of the kind {str(model.get('type'))[:30]} cannot be converted; BPE can")
    tokens, types = _tokens_and_types(tokenizer)
    merges = _merges(model.get("merges"))
    require_plain_merges(tokenizer)
    if is_sentencepiece(tokenizer):
        types = [_sentencepiece_type(token, token_type, model.get("unk_token")) for token, token_type in zip(tokens, types, strict=True)]
        vocabulary = Vocabulary("llama", "default", tokens, types, _scores(tokens, merges))
        vocabulary.flags["add_space_prefix"] = adds_space_prefix(tokenizer)
    else:
        vocabulary = Vocabulary("gpt2", name_pre_tokenizer(tokenizer), tokens, types, merges=merges)
    vocabulary.special = _special(sources, tokens, {})
    vocabulary.ends = _ends(sources, vocabulary)
    vocabulary.flags |= _automatic_tokens(sources, tokenizer, vocabulary)
    vocabulary.template = _template(sources)
    return vocabulary


def _tokens_and_types(tokenizer: dict[str, Any]) -> tuple[list[str], list[int]]:
    """Tokens by id, and their types; an id without a token becomes an unused one."""
    vocabulary, added = as_object(tokenizer.get("model")).get("vocab"), tokenizer.get("added_tokens") or []
    if not isinstance(vocabulary, dict) or not vocabulary or not isinstance(added, list):
        raise BadRequest("tokenizer.json has no vocabulary; send the whole file again")
    by_id: dict[int, tuple[str, int]] = {}
    for token, number in vocabulary.items():
        by_id[_id(number)] = (token, NORMAL)
    for extra in added:
        content = as_object(extra).get("content")
        if not isinstance(content, str):
            raise BadRequest("tokenizer.json has an added token without its text; send the file again")
        by_id[_id(extra.get("id"))] = (content, CONTROL if extra.get("special") else USER_DEFINED)
    entries = [by_id.get(number, (_unused_token(number), UNUSED)) for number in range(max(by_id) + 1)]
    return [token for token, _ in entries], [token_type for _, token_type in entries]


def _unused_token(number: int) -> str:
    """The text of an unused token; it contains the id, so that it is unique."""
    return f"[PAD{number}]"


def _id(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MAX_TOKENS:
        raise BadRequest("tokenizer.json has a token whose id is no number, or far too large; send the file again")
    return value


def _merges(value: Any) -> list[str]:
    """Merges as text. Older files have them as text, newer ones as pairs."""
    if not isinstance(value, list) or not value:
        raise BadRequest("tokenizer.json has no merges; send the whole file again")
    if len(value) > MAX_TOKENS:
        raise BadRequest(f"tokenizer.json has {len(value)} merges, more than a model has; send the model's own")
    merges = [" ".join(map(str, pair)) if isinstance(pair, list) and len(pair) == 2 else pair for pair in value]
    if not all(isinstance(merge, str) and " " in merge for merge in merges):
        raise BadRequest("tokenizer.json has merges that are none; send the file again")
    return merges


def _sentencepiece_type(token: str, token_type: int, unknown: object) -> int:
    if _BYTE.match(token):
        return BYTE
    return UNKNOWN if token == unknown else token_type


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """SentencePiece's scores: the earlier a token is merged, the higher. Single characters have the lowest, as in SentencePiece."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault(pair.replace(" ", "", 1), rank)
    return [0.0 if _BYTE.match(token) else -float(ranks.get(token, len(merges))) for token in tokens]


def _special(sources: Mapping[str, int], tokens: list[str], defaults: Mapping[str, str]) -> dict[str, int]:
    """Ids of the special tokens: by their text, else by the ids in config.json."""
    by_text = {token: number for number, token in enumerate(tokens)}
    stated: dict[str, Any] = dict(defaults.items())
    for name in ("special_tokens_map.json", _CONFIG):
        if name in sources:
            fields = read_object(name, sources[name])
            stated |= {role: fields[f"{role}_token"] for role in _SPECIAL if fields.get(f"{role}_token")}
    texts = {role: value.get("content") if isinstance(value, dict) else value for role, value in stated.items()}
    special = {role: by_text[text] for role, text in texts.items() if isinstance(text, str) and text in by_text}
    config = read_object("config.json", sources["config.json"]) if "config.json" in sources else {}
    for role in ("bos", "eos", "pad"):
        if role not in special and (ids := _token_ids(config, f"{role}_token_id", len(tokens))):
            special[role] = ids[0]
    return {role: special[role] for role in _SPECIAL if role in special}


def _ends(sources: Mapping[str, int], vocabulary: Vocabulary) -> list[int]:
    """The ids that end an answer, the tokenizer's own first; empty for a single one.

    A chat model can end a turn with another token than a text.
    """
    ids = [vocabulary.special["eos"]] if "eos" in vocabulary.special else []
    for name in ("generation_config.json", "config.json"):
        if name in sources:
            ids += _token_ids(read_object(name, sources[name]), "eos_token_id", len(vocabulary.tokens))
    unique = list(dict.fromkeys(ids))
    return unique if len(unique) > 1 else []


def _token_ids(config: Mapping[str, Any], name: str, count: int) -> list[int]:
    """The token ids of a key, which holds one or a list; values that are no id of the vocabulary are left out."""
    value = config.get(name)
    candidates = value if isinstance(value, list) else [value]
    return [number for number in candidates if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < count]


def _automatic_tokens(sources: Mapping[str, int], tokenizer: dict[str, Any], vocabulary: Vocabulary) -> dict[str, bool]:
    """Whether a begin token, an end token or a space is added to every text."""
    config = _tokenizer_config(sources)
    template: list[Any] = []
    for step in list_steps(tokenizer.get("post_processor")):
        if step.get("type") == "TemplateProcessing" and isinstance(step.get("single"), list):
            template = step["single"] or template
    template_tokens = [as_object(as_object(part).get("SpecialToken")).get("id") for part in template]
    texts = {role: vocabulary.tokens[number] for role, number in vocabulary.special.items()}
    flags = {}
    for role, index in (("bos", 0), ("eos", -1)):
        token = template_tokens[index] if template_tokens else None
        in_template = token is not None and token == texts.get(role)
        flags[f"add_{role}_token"] = read_bool(config, f"add_{role}_token", in_template, _CONFIG)
    if config.get("add_prefix_space") is not None and "add_space_prefix" not in vocabulary.flags:
        flags["add_space_prefix"] = read_bool(config, "add_prefix_space", False, _CONFIG)
    return flags


def _template(sources: Mapping[str, int]) -> str:
    """The chat template, from the first file that has one; of several templates the one named default."""
    if "chat_template.jinja" in sources:
        return read_text("chat_template.jinja", sources["chat_template.jinja"])
    for name in ("chat_template.json", _CONFIG):
        value = read_object(name, sources[name]).get("chat_template") if name in sources else None
        if isinstance(value, list):
            value = next((as_object(entry).get("template") for entry in value if as_object(entry).get("name") == "default"), None)
        if value is not None and not isinstance(value, str):
            raise BadRequest(f"{name} says chat_template, and it is no text; send the model's own")
        if value:
            return value
    return ""


def _tokenizer_config(sources: Mapping[str, int]) -> dict[str, Any]:
    return read_object(_CONFIG, sources[_CONFIG]) if _CONFIG in sources else {}
