"""The two forms of responses that programs rely on: as Ollama gives them, and as Foundry Local does.

They differ in little, and a program is used to one of them, which the name of its model tells: Foundry Local's names end with
what they run on (`qwen2.5-0.5b-instruct-generic-cpu:4`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ndani.service.model_ids import is_id


@dataclass(frozen=True, slots=True)
class Form:
    """What differs between the forms.

    `cut_off` is the status of an answer that ended at its limit; Ollama calls it completed. `opening` is a comment in a stream before
    the first item, `ending` its last bytes. `counts_early`: usage is zeros, not null, while an answer is in progress. `joins_text`:
    responses have all texts together as `output_text` too.
    """

    cut_off: Literal["completed", "incomplete"]
    opening: bytes = b""
    ending: bytes = b""
    counts_early: bool = False
    joins_text: bool = False


OLLAMA = Form("completed")
FOUNDRY = Form("incomplete", b": keep-alive\n\n", b"data: [DONE]\n\n", counts_early=True, joins_text=True)


def form_of(model: str) -> Form:
    """The form of the answers to this name of a model."""
    return FOUNDRY if is_id(model) else OLLAMA
