"""The words of a model: tokenizer.json or vocab.txt into the engine's own keys (`tokenizer.ggml.*`).

Three ways of cutting text into tokens are known: WordPiece (BERT), byte-level BPE (Llama 3, SmolLM2, Qwen2), and BPE over
SentencePiece's symbols (Llama 2, Mistral). The engine cuts by itself and knows only certain ways of splitting a text
before that: a tokenizer that splits in another way is refused, for a model that reads other tokens than it was trained
with answers worse, and nobody sees why.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ndani.convert.container import Value
from ndani.convert.safetensors import read_file, read_object
from ndani.errors import BadRequest, Unsupported

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
MOST_TOKENS = 1 << 21

#: The engine's names for its ways of splitting, by what a tokenizer.json says before its vocabulary is used: the digest of
#: its regular expressions, or the steps where it has none (as in ollama's `convert/tokenizer.go`, and llama.cpp's table).
_SPLITS = {
    "d98f9631be1e9607a9848c26c1f9eac1aa9fc21ac6ba82a2fc0741af9780a48f": "llama-bpe",
    "03df5c5863ad70781dcfdef491ead25140f895fe8010964be0daefe27be32b02": "deepseek-llm",
    "21cde974d587f0d54dc8d56b183cc1e6239600172035c68fbd6d4b9f8da0576e": "deepseek-coder",
    "1ff7f41064896984db5d1bb6ff64fa4bc29007d08c1b439e505b7392777a319e": "qwen2",
}
_STEPS = {("ByteLevel",): "gpt-2", ("Digits", "ByteLevel"): "smollm"}

#: The engine's spelling of the special tokens' keys.
_SPECIAL = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "cls": "cls", "mask": "mask",
}  # fmt: skip
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>\Z")


@dataclass(slots=True)
class Vocabulary:
    """What the engine is told of a model's tokens. `tokens` and `types` run by token id; `special` is ids by role."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    special: dict[str, int] = field(default_factory=dict)
    flags: dict[str, bool] = field(default_factory=dict)
    template: str = ""

    def fit(self, rows: int) -> None:
        """Make it as long as the embedding has rows. Raises BadRequest when there are more tokens than rows."""
        if len(self.tokens) > rows:
            raise BadRequest(f"the tokenizer has {len(self.tokens)} tokens and the weights have {rows}; they do not belong together")
        for number in range(rows - len(self.tokens)):
            self.tokens.append(f"[PAD{number}]")
            self.types.append(UNUSED)
            if self.scores:
                self.scores.append(-1000.0)

    def keys(self) -> dict[str, Value]:
        """The keys for the file's head."""
        said: dict[str, Value] = {"tokenizer.ggml.model": self.model, "tokenizer.ggml.pre": self.pre, "tokenizer.ggml.tokens": self.tokens}
        if self.scores:
            said["tokenizer.ggml.scores"] = self.scores
        said["tokenizer.ggml.token_type"] = self.types
        if self.merges:
            said["tokenizer.ggml.merges"] = self.merges
        said |= {f"tokenizer.ggml.{_SPECIAL[role]}_token_id": number for role, number in self.special.items()}
        said |= {f"tokenizer.ggml.{name}": on for name, on in self.flags.items()}
        if self.template:
            said["tokenizer.chat_template"] = self.template
        return said


def read_wordpiece(sources: Mapping[str, int]) -> Vocabulary:
    """The vocabulary of a BERT, its words in the engine's form: `▁` before what begins a word, nothing before what goes on.

    Raises BadRequest, Unsupported.
    """
    if "tokenizer.json" in sources:
        whole = read_object("tokenizer.json", sources["tokenizer.json"])
        model = _object(whole.get("model"))
        if model.get("type", "WordPiece") != "WordPiece" or model.get("continuing_subword_prefix", "##") != "##":
            raise Unsupported("tokenizer.json holds no WordPiece vocabulary, which is the only kind that a BERT can be converted with")
        if _object(whole.get("normalizer")).get("lowercase") is False:
            raise Unsupported("this tokenizer keeps capital letters, and the engine makes all of them small; use a model that is uncased")
        tokens, types = _listed(whole)
    elif "vocab.txt" in sources:
        try:
            tokens = _lines(read_file("vocab.txt", sources["vocab.txt"]).decode())
        except UnicodeDecodeError:
            raise BadRequest("vocab.txt is not UTF-8 text; send it again") from None
        types = [CONTROL if token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") else NORMAL for token in tokens]
    else:
        raise BadRequest("there is neither tokenizer.json nor vocab.txt; send the tokenizer's files too")
    defaults = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
    special = _special(sources, tokens, defaults)
    if not {"cls", "sep", "unk"} <= special.keys():
        raise BadRequest("the tokenizer says nothing of [CLS], [SEP] and [UNK]; send tokenizer_config.json too")
    special["bos"] = special["cls"]  # what the engine begins a text with
    shown = [token if re.fullmatch(r"\[.*\]", token) else token[2:] if token.startswith("##") else f"▁{token}" for token in tokens]
    return Vocabulary("bert", "default", shown, types, [float(number) for number in range(len(tokens))], special=special)


def read_bpe(sources: Mapping[str, int]) -> Vocabulary:
    """The vocabulary of a Llama and its like, with its merges or scores, its special tokens and its chat template.

    Raises BadRequest, Unsupported.
    """
    if "tokenizer.json" not in sources:
        raise BadRequest("there is no tokenizer.json; send it too (a tokenizer.model alone is not enough)")
    whole = read_object("tokenizer.json", sources["tokenizer.json"])
    model = _object(whole.get("model"))
    if model.get("type", "BPE") != "BPE":
        raise Unsupported(f"a tokenizer of the kind {str(model.get('type'))[:30]} cannot be converted; BPE can")
    tokens, types = _listed(whole)
    merges = _merges(model.get("merges"))
    if _pieces(whole):
        types = [_piece(token, kind, model.get("unk_token")) for token, kind in zip(tokens, types, strict=True)]
        found = Vocabulary("llama", "default", tokens, types, _scores(tokens, merges))
        found.flags["add_space_prefix"] = _prefixed(whole)
    else:
        found = Vocabulary("gpt2", _split(whole), tokens, types, merges=merges)
    found.special = _special(sources, tokens, {})
    found.flags |= _added(sources, whole, found)
    found.template = _template(sources)
    return found


def _listed(whole: dict[str, Any]) -> tuple[list[str], list[int]]:
    """Tokens by id, and their types; ids that nobody has are unused."""
    vocabulary, added = _object(whole.get("model")).get("vocab"), whole.get("added_tokens") or []
    if not isinstance(vocabulary, dict) or not vocabulary or not isinstance(added, list):
        raise BadRequest("tokenizer.json has no vocabulary; send the whole file again")
    by_id: dict[int, tuple[str, int]] = {}
    for token, number in vocabulary.items():
        by_id[_id(number)] = (token, NORMAL)
    for extra in added:
        content = _object(extra).get("content")
        if not isinstance(content, str):
            raise BadRequest("tokenizer.json has an added token without its text; send the file again")
        by_id[_id(extra.get("id"))] = (content, CONTROL if extra.get("special") else USER_DEFINED)
    everyone = [by_id.get(number, (f"[PAD{number}]", UNUSED)) for number in range(max(by_id) + 1)]
    return [token for token, _ in everyone], [kind for _, kind in everyone]


def _id(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MOST_TOKENS:
        raise BadRequest("tokenizer.json has a token whose id is no number, or far too large; send the file again")
    return value


def _merges(value: Any) -> list[str]:
    """Merges as text: older files write them so, newer ones as pairs."""
    if not isinstance(value, list) or not value:
        raise BadRequest("tokenizer.json has no merges; send the whole file again")
    made = [" ".join(map(str, pair)) if isinstance(pair, list) and len(pair) == 2 else pair for pair in value]
    if not all(isinstance(pair, str) and " " in pair for pair in made):
        raise BadRequest("tokenizer.json has merges that are none; send the file again")
    return made


def _split(whole: dict[str, Any]) -> str:
    """The engine's name for how text is split before it is merged. Raises Unsupported for a way that it does not know."""
    steps = [_object(step) for step in _steps(whole.get("pre_tokenizer"))]
    patterns = [_object(step.get("pattern")).get("Regex") for step in steps if step.get("type") == "Split"]
    if patterns:
        known = _SPLITS.get(hashlib.sha256("".join(str(pattern) for pattern in patterns).encode()).hexdigest())
    else:
        known = _STEPS.get(tuple(str(step.get("type")) for step in steps))
        whole_words = all(step.get("use_regex", True) is True for step in steps if step.get("type") == "ByteLevel")
        known = known if whole_words and all(step.get("individual_digits", True) for step in steps) else None
    if known is None:
        raise Unsupported("this tokenizer splits text in a way that the engine is not known to share; use a GGUF file of this model")
    return known


def _steps(value: Any) -> list[Any]:
    found = _object(value)
    return list(found.get("pretokenizers") or found.get("normalizers") or found.get("processors") or ([found] if found else []))


def _pieces(whole: dict[str, Any]) -> bool:
    """Whether the symbols are SentencePiece's: `▁` for a space, bytes as `<0x0A>`."""
    parts = [_object(step) for key in ("normalizer", "pre_tokenizer") for step in _steps(whole.get(key))]
    if any(part.get("type") == "ByteLevel" for part in parts):
        return False
    marked = any(part.get("type") == "Metaspace" or (part.get("type") == "Replace" and part.get("content") == "▁") for part in parts)
    if not marked or not _object(whole.get("model")).get("byte_fallback"):
        raise Unsupported("this tokenizer is neither byte-level nor SentencePiece's with bytes; use a GGUF file of this model")
    return True


def _piece(token: str, kind: int, unknown: object) -> int:
    return BYTE if _BYTE.match(token) else UNKNOWN if token == unknown else kind


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """SentencePiece's scores: the earlier a piece is merged, the higher. Whole characters come last, as there."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault(pair.replace(" ", "", 1), rank)
    return [0.0 if _BYTE.match(token) else -float(ranks.get(token, len(merges))) for token in tokens]


def _prefixed(whole: dict[str, Any]) -> bool:
    """Whether a space is put before every text."""
    for key in ("normalizer", "pre_tokenizer"):
        for step in map(_object, _steps(whole.get(key))):
            if step.get("type") == "Prepend":
                return True
            if step.get("type") == "Metaspace":
                return str(step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")) != "never"
    return False


def _special(sources: Mapping[str, int], tokens: list[str], defaults: Mapping[str, str]) -> dict[str, int]:
    """Ids of the special tokens: by their text, else by the ids of config.json."""
    by_text = {token: number for number, token in enumerate(tokens)}
    said: dict[str, Any] = dict(defaults.items())
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if name in sources:
            found = read_object(name, sources[name])
            said |= {role: found[f"{role}_token"] for role in _SPECIAL if found.get(f"{role}_token")}
    texts = {role: value.get("content") if isinstance(value, dict) else value for role, value in said.items()}
    special = {role: by_text[text] for role, text in texts.items() if isinstance(text, str) and text in by_text}
    config = read_object("config.json", sources["config.json"]) if "config.json" in sources else {}
    for role in ("bos", "eos", "pad"):
        number = config.get(f"{role}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        if role not in special and isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(tokens):
            special[role] = number
    return {role: special[role] for role in _SPECIAL if role in special}


def _added(sources: Mapping[str, int], whole: dict[str, Any], found: Vocabulary) -> dict[str, bool]:
    """Whether every text is put between the special tokens for begin and end."""
    config = read_object("tokenizer_config.json", sources["tokenizer_config.json"]) if "tokenizer_config.json" in sources else {}
    single: list[Any] = []
    for step in map(_object, _steps(whole.get("post_processor"))):
        single = step.get("single") or single if step.get("type") == "TemplateProcessing" else single
    placed = [_object(_object(part).get("SpecialToken")).get("id") for part in single]
    ids = {role: found.tokens[number] for role, number in found.special.items()}
    flags = {}
    for role, place in (("bos", 0), ("eos", -1)):
        said = config.get(f"add_{role}_token")
        by_template = bool(placed) and placed[place] is not None and placed[place] == ids.get(role)
        flags[f"add_{role}_token"] = said if isinstance(said, bool) else by_template
    if isinstance(config.get("add_prefix_space"), bool) and "add_space_prefix" not in found.flags:
        flags["add_space_prefix"] = config["add_prefix_space"]
    return flags


def _template(sources: Mapping[str, int]) -> str:
    """The chat template, wherever it stands; of several the one that is called default."""
    if "chat_template.jinja" in sources:
        return _text(read_file("chat_template.jinja", sources["chat_template.jinja"]).decode(errors="replace"))
    for name in ("chat_template.json", "tokenizer_config.json"):
        value = read_object(name, sources[name]).get("chat_template") if name in sources else None
        if isinstance(value, list):
            value = next((_object(one).get("template") for one in value if _object(one).get("name") == "default"), None)
        if isinstance(value, str) and value:
            return value
    return ""


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(content: str) -> str:
    """Ends of lines as they are counted here, whatever system wrote them."""
    return content.replace("\r\n", "\n").replace("\r", "\n")


def _lines(content: str) -> list[str]:
    return _text(content).rstrip("\n").split("\n")
