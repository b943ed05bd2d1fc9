"""Known chat templates: a model created from weights with one of them gets the matching Go template and stop sequences.

As in Ollama, a chat template counts as known if its edit distance to a known one is below `EDIT_LIMIT`, because models
change its system prompt. Unlike there, it must also contain the family's stop sequences. For an unknown template, the engine
applies the one in the weights. Data and pure functions. To add a family, add a `KnownTemplate`; its Go template must produce
the same prompts as its chat template.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: The edit distance from which a chat template counts as a different one.
EDIT_LIMIT = 100

_BEGIN = "{% for message in messages %}"
_TURNS = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
_ANSWER = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_SYSTEM = (
    "{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class KnownTemplate:
    """A family of chat templates: how models spell it (jinja), the same as a Go template, and what comes with it."""

    name: str
    jinja_variants: tuple[str, ...]
    template: str
    stops: tuple[str, ...]  # the marks between turns, and where an answer ends

    @property
    def parameters(self) -> Mapping[str, object]:
        """What PARAMETER lines would say."""
        return {"stop": list(self.stops)}


KNOWN_TEMPLATES = (
    KnownTemplate(
        "chatml",
        (_BEGIN + _TURNS + _ANSWER, _BEGIN + _SYSTEM + _TURNS + _ANSWER),
        "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n",
        ("<|im_start|>", "<|im_end|>"),
    ),
)


def find_known_template(jinja: str | None) -> KnownTemplate | None:
    """The nearest known family of a chat template, or None."""
    if not jinja:
        return None
    candidates = [
        (edit_distance(variant, jinja), index)
        for index, family in enumerate(KNOWN_TEMPLATES)
        if all(stop in jinja for stop in family.stops)
        for variant in family.jinja_variants
        if abs(len(variant) - len(jinja)) < EDIT_LIMIT  # a lower bound of the edit distance
    ]
    fewest, index = min(candidates, default=(EDIT_LIMIT, 0))
    return KNOWN_TEMPLATES[index] if fewest < EDIT_LIMIT else None


def edit_distance(first: str, second: str) -> int:
    """The Levenshtein distance of two texts.

    Computes a column of the table at once, in the bits of an integer (Myers 1999, in Hyyrö's form of 2003).
    """
    if not first:
        return len(second)
    positions: dict[str, int] = {}
    for position, letter in enumerate(first):
        positions[letter] = positions.get(letter, 0) | 1 << position
    mask, top, distance = (1 << len(first)) - 1, 1 << len(first) - 1, len(first)
    plus, minus = mask, 0  # where a cell is one more, or one less, than the cell above it
    for letter in second:
        same = positions.get(letter, 0)
        vertical = same | minus
        horizontal = (((same & plus) + plus) ^ plus) | same
        up, down = minus | ~(horizontal | plus) & mask, plus & horizontal
        distance += bool(up & top) - bool(down & top)
        up, down = (up << 1 | 1) & mask, down << 1 & mask
        plus, minus = down | ~(vertical | up) & mask, up & vertical
    return distance
