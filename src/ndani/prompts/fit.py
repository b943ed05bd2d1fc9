"""Making a conversation fit a context: what is dropped, and how many tokens that was. Nothing is dropped silently.

Ollama's rule (reference 1.7): the oldest turns go first, system messages and the last message stay; what is still
too long loses its middle, with `num_keep` tokens kept in front.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ndani.types import Message

RenderPrompt = Callable[[tuple[Message, ...]], Awaitable[str]]
Tokenize = Callable[[str], Awaitable[list[int]]]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A prompt that fits, as text or as token ids, and how many tokens were left out of it."""

    prompt: str | list[int]
    truncated: int


async def fit(
    messages: tuple[Message, ...], num_ctx: int, num_keep: int, render: RenderPrompt, tokenize: Tokenize, *, cut: bool
) -> Fitted | None:
    """The longest ending of a conversation whose prompt has fewer than `num_ctx` tokens; None when none has and `cut` is off.

    The number of turns to drop is searched by halves: rendering and counting cost milliseconds each.
    """
    whole = await tokenize(await render(messages))
    if len(whole) < num_ctx:
        return Fitted(whole, 0)
    droppable = [i for i, m in enumerate(messages[:-1]) if m.role != "system"]
    low, high = 1, len(droppable)
    best: list[int] | None = None
    least = whole
    while low <= high:
        middle = (low + high) // 2
        gone = set(droppable[:middle])
        tokens = await tokenize(await render(tuple(m for i, m in enumerate(messages) if i not in gone)))
        least = tokens if len(tokens) < len(least) else least
        if len(tokens) < num_ctx:
            best, high = tokens, middle - 1
        else:
            low = middle + 1
    if best is not None:
        return Fitted(best, len(whole) - len(best))
    if not cut:
        return None
    kept = cut_middle(least, num_ctx, num_keep)
    return Fitted(kept, len(whole) - len(kept))


def cut_middle(tokens: list[int], num_ctx: int, num_keep: int) -> list[int]:
    """`num_keep` tokens from the front and the newest from the back: half of the rest of the context, so that an answer has room.

    A negative `num_keep` keeps as much of the front as can be kept, which is what the engine takes it for.
    """
    keep = min(num_keep, num_ctx - 2) if num_keep >= 0 else num_ctx - 2
    room = num_ctx - max((num_ctx - keep) // 2, 1)
    return tokens[:keep] + tokens[len(tokens) - (room - keep) :]
