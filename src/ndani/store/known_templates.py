"""Known chat templates: weights that carry one of them get, at create, the Go template and the stop words that belong to it.

As in Ollama, a chat template counts as known when fewer than `NEAR` letters of it have to be changed, for models carry it
with a system sentence of their own; unlike there, the marks between its turns must also be the family's. What is not known
stays as it is: the engine applies the template that the weights carry. Data and pure functions. To add a family, add a
`KnownTemplate`; its Go template must say what its chat template says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: Edits (a letter put in, taken out or changed) from which on a chat template is another one.
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
    """The family that a chat template is of, the nearest one; None where it is of none that is known."""
    if not jinja:
        return None
    candidates = [
        (edit_distance(variant, jinja), index)
        for index, family in enumerate(KNOWN_TEMPLATES)
        if all(stop in jinja for stop in family.stops)
        for variant in family.jinja_variants
        if abs(len(variant) - len(jinja)) < EDIT_LIMIT  # so many edits are needed at the least
    ]
    fewest, index = min(candidates, default=(EDIT_LIMIT, 0))
    return KNOWN_TEMPLATES[index] if fewest < EDIT_LIMIT else None


def edit_distance(first: str, second: str) -> int:
    """Levenshtein's distance of two texts.

    A whole column of the table at once, in the bits of a number (Myers 1999, in Hyyrö's form of 2003).
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
