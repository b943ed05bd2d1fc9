"""The words of a model: tokenizer.json or vocab.txt into the engine's own keys (`tokenizer.ggml.*`).

Three ways of cutting text into tokens are known: WordPiece (BERT), byte-level BPE (Llama 3, SmolLM2, Qwen2), and BPE over
SentencePiece's symbols (Llama 2, Mistral). What is done to a text before that is `steps`' business: a tokenizer that
splits in a way that the engine does not know is refused, for a model that reads other tokens than it was trained with
answers worse, and nobody sees why.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ndani.convert.config_values import read_bool
from ndani.convert.gguf_writer import GgufValue, encode_text
from ndani.convert.safetensors import read_object, read_text
from ndani.convert.tokenizer_steps import as_object, has_pieces, has_space_before, name_split, read_letters, require_plain_merging, steps
from ndani.errors import BadRequest, Unsupported

_CONFIG = "tokenizer_config.json"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
MAX_TOKENS = 1 << 21

#: The engine's spelling of the special tokens' keys.
_SPECIAL = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "cls": "cls", "mask": "mask",
}  # fmt: skip
_MORE_ENDS = ("eot", "eom")
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
    ends: list[int] = field(default_factory=list)  # ids that end an answer, where these are several
    flags: dict[str, bool] = field(default_factory=dict)
    template: str = ""

    def pad_to_rows(self, rows: int, said: int) -> None:
        """Make it as long as the embedding has rows, of which config.json says how many there are.

        Raises BadRequest when these differ, when there are more tokens than rows, or two alike.
        """
        if len(self.tokens) > rows:
            raise BadRequest(f"the tokenizer has {len(self.tokens)} tokens and the weights have {rows}; they do not belong together")
        if said != rows:
            raise BadRequest(
                f"config.json says vocab_size {said}, and the weights have {rows} rows for tokens; send the files of one model"
            )
        if rows > MAX_TOKENS:
            raise BadRequest(f"the weights have {rows} rows for tokens, more than a model has; send those of one that can be run")
        for number in range(len(self.tokens), rows):
            self.tokens.append(_nobody(number))
            self.types.append(UNUSED)
            if self.scores:
                self.scores.append(-1000.0)
        self._require_different()

    def _require_different(self) -> None:
        """The engine ends, each time that it loads a model, when two tokens have one text there: as bytes, up to a zero."""
        seen: dict[bytes, int] = {}
        for number, token in enumerate(self.tokens):
            text = encode_text(token).partition(b"\0")[0]
            if text and seen.setdefault(text, number) != number:  # it gives those without a text names of its own
                both = f"{seen[text]} and {number}"
                raise BadRequest(
                    f"the tokens {both} have the same text ({token[:30]!r}), which no model has; send its own tokenizer's files"
                )

    def gguf_keys(self) -> dict[str, GgufValue]:
        """The keys for the file's head."""
        said: dict[str, GgufValue] = {
            "tokenizer.ggml.model": self.model,
            "tokenizer.ggml.pre": self.pre,
            "tokenizer.ggml.tokens": self.tokens,
        }
        if self.scores:
            said["tokenizer.ggml.scores"] = self.scores
        said["tokenizer.ggml.token_type"] = self.types
        if self.merges:
            said["tokenizer.ggml.merges"] = self.merges
        said |= {f"tokenizer.ggml.{_SPECIAL[role]}_token_id": number for role, number in self.special.items()}
        if self.ends:
            said["tokenizer.ggml.eos_token_ids"] = self.ends  # for ollama; the engine takes two more from keys of their own
            said |= {f"tokenizer.ggml.{key}_token_id": number for key, number in zip(_MORE_ENDS, self.ends[1:], strict=False)}
        said |= {f"tokenizer.ggml.{name}": on for name, on in self.flags.items()}
        if self.template:
            said["tokenizer.chat_template"] = self.template
        return said


def read_wordpiece(sources: Mapping[str, int]) -> Vocabulary:
    """The vocabulary of a BERT, its words in the engine's form: `▁` before what begins a word, nothing before what goes on.

    Raises BadRequest, Unsupported.
    """
    whole = None
    if "tokenizer.json" in sources:
        whole = read_object("tokenizer.json", sources["tokenizer.json"])
        model = as_object(whole.get("model"))
        if model.get("type", "WordPiece") != "WordPiece" or model.get("continuing_subword_prefix", "##") != "##":
            raise Unsupported("tokenizer.json holds no WordPiece vocabulary, which is the only kind that a BERT can be converted with")
        tokens, types = _listed(whole)
    elif "vocab.txt" in sources:
        tokens = read_text("vocab.txt", sources["vocab.txt"]).rstrip("\n").split("\n")
        types = [CONTROL if token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") else NORMAL for token in tokens]
    else:
        raise BadRequest("there is neither tokenizer.json nor vocab.txt; send the tokenizer's files too")
    defaults = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
    special = _special(sources, tokens, defaults)
    if not {"cls", "sep", "unk"} <= special.keys():
        raise BadRequest("the tokenizer says nothing of [CLS], [SEP] and [UNK]; send tokenizer_config.json too")
    special["bos"] = special["cls"]  # what the engine begins a text with
    shown = [token if re.fullmatch(r"\[.*\]", token) else token[2:] if token.startswith("##") else f"▁{token}" for token in tokens]
    found = Vocabulary("bert", "default", shown, types, [float(number) for number in range(len(tokens))], special=special)
    lowercase, no_accents = read_letters(whole, _config(sources))
    if not lowercase:  # what is not said counts as true for the engine, and the accents as the letters do
        found.flags["normalizer.lowercase"] = False
    if no_accents != lowercase:
        found.flags["normalizer.strip_accents"] = no_accents
    return found


def read_bpe(sources: Mapping[str, int]) -> Vocabulary:
    """The vocabulary of a Llama and its like, with its merges or scores, its special tokens and its chat template.

    Raises BadRequest, Unsupported.
    """
    if "tokenizer.json" not in sources:
        raise BadRequest("there is no tokenizer.json; send it too (a tokenizer.model alone is not enough)")
    whole = read_object("tokenizer.json", sources["tokenizer.json"])
    model = as_object(whole.get("model"))
    if model.get("type", "BPE") != "BPE":
        raise Unsupported(f"a tokenizer of the kind {str(model.get('type'))[:30]} cannot be converted; BPE can")
    tokens, types = _listed(whole)
    merges = _merges(model.get("merges"))
    require_plain_merging(whole)
    if has_pieces(whole):
        types = [_piece(token, kind, model.get("unk_token")) for token, kind in zip(tokens, types, strict=True)]
        found = Vocabulary("llama", "default", tokens, types, _scores(tokens, merges))
        found.flags["add_space_prefix"] = has_space_before(whole)
    else:
        found = Vocabulary("gpt2", name_split(whole), tokens, types, merges=merges)
    found.special = _special(sources, tokens, {})
    found.ends = _ends(sources, found)
    found.flags |= _added(sources, whole, found)
    found.template = _template(sources)
    return found


def _listed(whole: dict[str, Any]) -> tuple[list[str], list[int]]:
    """Tokens by id, and their types; ids that nobody has are unused."""
    vocabulary, added = as_object(whole.get("model")).get("vocab"), whole.get("added_tokens") or []
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
    everyone = [by_id.get(number, (_nobody(number), UNUSED)) for number in range(max(by_id) + 1)]
    return [token for token, _ in everyone], [kind for _, kind in everyone]


def _nobody(number: int) -> str:
    """The text of an id that no token has: by its id, so that no two are alike."""
    return f"[PAD{number}]"


def _id(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MAX_TOKENS:
        raise BadRequest("tokenizer.json has a token whose id is no number, or far too large; send the file again")
    return value


def _merges(value: Any) -> list[str]:
    """Merges as text: older files write them so, newer ones as pairs."""
    if not isinstance(value, list) or not value:
        raise BadRequest("tokenizer.json has no merges; send the whole file again")
    if len(value) > MAX_TOKENS:
        raise BadRequest(f"tokenizer.json has {len(value)} merges, more than a model has; send the model's own")
    made = [" ".join(map(str, pair)) if isinstance(pair, list) and len(pair) == 2 else pair for pair in value]
    if not all(isinstance(pair, str) and " " in pair for pair in made):
        raise BadRequest("tokenizer.json has merges that are none; send the file again")
    return made


def _piece(token: str, kind: int, unknown: object) -> int:
    return BYTE if _BYTE.match(token) else UNKNOWN if token == unknown else kind


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """SentencePiece's scores: the earlier a piece is merged, the higher. Whole characters come last, as there."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault(pair.replace(" ", "", 1), rank)
    return [0.0 if _BYTE.match(token) else -float(ranks.get(token, len(merges))) for token in tokens]


def _special(sources: Mapping[str, int], tokens: list[str], defaults: Mapping[str, str]) -> dict[str, int]:
    """Ids of the special tokens: by their text, else by the ids of config.json."""
    by_text = {token: number for number, token in enumerate(tokens)}
    said: dict[str, Any] = dict(defaults.items())
    for name in ("special_tokens_map.json", _CONFIG):
        if name in sources:
            found = read_object(name, sources[name])
            said |= {role: found[f"{role}_token"] for role in _SPECIAL if found.get(f"{role}_token")}
    texts = {role: value.get("content") if isinstance(value, dict) else value for role, value in said.items()}
    special = {role: by_text[text] for role, text in texts.items() if isinstance(text, str) and text in by_text}
    config = read_object("config.json", sources["config.json"]) if "config.json" in sources else {}
    for role in ("bos", "eos", "pad"):
        if role not in special and (numbers := _numbers(config, f"{role}_token_id", len(tokens))):
            special[role] = numbers[0]
    return {role: special[role] for role in _SPECIAL if role in special}


def _ends(sources: Mapping[str, int], found: Vocabulary) -> list[int]:
    """The ids that end an answer, the tokenizer's own first, if there are several: a chat model ends a turn with another than a text."""
    numbers = [found.special["eos"]] if "eos" in found.special else []
    for name in ("generation_config.json", "config.json"):
        if name in sources:
            numbers += _numbers(read_object(name, sources[name]), "eos_token_id", len(found.tokens))
    different = list(dict.fromkeys(numbers))
    return different if len(different) > 1 else []


def _numbers(config: Mapping[str, Any], name: str, count: int) -> list[int]:
    """The token ids that a key says, one or a list of them; what is none of the vocabulary's is left out."""
    said = config.get(name)
    every = said if isinstance(said, list) else [said]
    return [number for number in every if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < count]


def _added(sources: Mapping[str, int], whole: dict[str, Any], found: Vocabulary) -> dict[str, bool]:
    """Whether every text is put between the special tokens for begin and end."""
    config = _config(sources)
    single: list[Any] = []
    for step in steps(whole.get("post_processor")):
        if step.get("type") == "TemplateProcessing" and isinstance(step.get("single"), list):
            single = step["single"] or single
    placed = [as_object(as_object(part).get("SpecialToken")).get("id") for part in single]
    ids = {role: found.tokens[number] for role, number in found.special.items()}
    flags = {}
    for role, place in (("bos", 0), ("eos", -1)):
        by_template = bool(placed) and placed[place] is not None and placed[place] == ids.get(role)
        flags[f"add_{role}_token"] = read_bool(config, f"add_{role}_token", by_template, _CONFIG)
    if config.get("add_prefix_space") is not None and "add_space_prefix" not in found.flags:
        flags["add_space_prefix"] = read_bool(config, "add_prefix_space", False, _CONFIG)
    return flags


def _template(sources: Mapping[str, int]) -> str:
    """The chat template, wherever it stands; of several the one that is called default."""
    if "chat_template.jinja" in sources:
        return read_text("chat_template.jinja", sources["chat_template.jinja"])
    for name in ("chat_template.json", _CONFIG):
        value = read_object(name, sources[name]).get("chat_template") if name in sources else None
        if isinstance(value, list):
            value = next((as_object(one).get("template") for one in value if as_object(one).get("name") == "default"), None)
        if value is not None and not isinstance(value, str):
            raise BadRequest(f"{name} says chat_template, and it is no text; send the model's own")
        if value:
            return value
    return ""


def _config(sources: Mapping[str, int]) -> dict[str, Any]:
    return read_object(_CONFIG, sources[_CONFIG]) if _CONFIG in sources else {}
