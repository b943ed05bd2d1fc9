"""How far a template may go, and the sentence that it ends in when it goes too far or is wrong.

A template comes from strangers (a model's layer, a request), so that reading and running one is bounded: in size, in
nesting, in steps, in text made. A step is one node looked at; copying text or lists costs steps by its length, so
that the steps bound the time. Nothing here knows what a template means.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ndani.errors import BadRequest

MAX_SOURCE = 1 << 18  # characters of a template's text
MAX_TOKENS = 40_000  # words and signs in its actions, and texts between them; the largest known templates have a tenth
MAX_NESTING = 100  # blocks and parentheses inside one another
MAX_DEPTH = 120  # the same while it runs, template calls included: about five Python frames each
MAX_STEPS = 1_000_000  # up to three seconds of one core
STEPS_PER_VERB = 4  # steps for a verb of printf beside what it writes
STEPS_PER_TURN = 300  # more of them for each turn, so that a long conversation is not taken for an endless loop
MAX_OUTPUT = 8 << 20  # characters of the prompt, and of any one string on the way
MAX_VARIABLES = 1_000  # declared in one template and seen from one place
MAX_WIDTH = 1_000  # padding and precision of one printf verb
CHARS_PER_STEP = 32  # characters made for the price of one step, which bounds the memory of all of them together


class TemplateError(Exception):
    """What is wrong, before it is known where. Never leaves this room: the caller adds the place."""


def place(source: str, pos: int) -> str:
    """Where a position of the template's text is, counted from one, in characters."""
    line = source.count("\n", 0, pos) + 1
    return f"line {line}, column {pos - (source.rfind(chr(10), 0, pos) + 1) + 1}"


def refuse(source: str, pos: int, what: str) -> BadRequest:
    """The error for a template that cannot be read or run: one sentence with its line and column."""
    return BadRequest(f"the template is wrong at {place(source, pos)}: {what}")


def shorten(word: str) -> str:
    """A word of the template as an error shows it: in quotes, unprintable characters escaped, at most 40 characters."""
    return repr(word if len(word) <= 40 else word[:40] + "…")


@dataclass(slots=True)
class Meter:
    """What one rendering may still spend. Shared by all the runs of a legacy template over one conversation."""

    steps: int = field(default=MAX_STEPS)
    output: int = field(default=MAX_OUTPUT)

    def step(self, count: int = 1) -> None:
        """Pay for work. Raises TemplateError when nothing is left."""
        self.steps -= count
        if self.steps < 0:
            raise TemplateError(f"it takes more than {MAX_STEPS:,} steps; have it do less, or less often")

    def copy(self, length: int) -> None:
        """Pay for making one text of so many characters. Raises TemplateError where it would be too long."""
        if length > MAX_OUTPUT:
            raise TemplateError(f"it makes a text of more than {MAX_OUTPUT:,} characters")
        self.step(1 + length // CHARS_PER_STEP)

    def write(self, length: int) -> None:
        """Pay for so many characters of the prompt. Raises TemplateError when it grows too long."""
        self.output -= length
        if self.output < 0:
            raise TemplateError(f"it makes a prompt of more than {MAX_OUTPUT:,} characters")
        self.step(1 + length // CHARS_PER_STEP)
