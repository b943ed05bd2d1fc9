"""Making a conversation fit a context: which turns are dropped, and how many tokens that were. Nothing is dropped silently.

Ollama's rule: the oldest turns are dropped first; system messages and the last message are kept. If the prompt is
still too long, its middle is cut, and the first `num_keep` tokens are kept.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ndani.types import Message

RenderPrompt = Callable[[tuple[Message, ...]], Awaitable[str]]
Tokenize = Callable[[str], Awaitable[list[int]]]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A prompt that fits, as text or as token ids, how many tokens were dropped, and the messages that are left where turns were."""

    prompt: str | list[int]
    truncated: int
    messages: tuple[Message, ...] = ()


async def fit(
    messages: tuple[Message, ...], num_ctx: int, num_keep: int, render: RenderPrompt, tokenize: Tokenize, *, cut: bool
) -> Fitted | None:
    """The prompt of the longest end of a conversation with fewer than `num_ctx` tokens. If none fits: None, or cut if `cut` is set.

    A binary search finds the number of turns to drop, because rendering and counting cost milliseconds each.
    """
    all_tokens = await tokenize(await render(messages))
    if len(all_tokens) < num_ctx:
        return Fitted(all_tokens, 0, messages)
    droppable = [i for i, m in enumerate(messages[:-1]) if m.role != "system"]
    low, high = 1, len(droppable)
    best: list[int] | None = None
    kept_messages = messages
    shortest = all_tokens
    while low <= high:
        middle = (low + high) // 2
        dropped = set(droppable[:middle])
        remaining = tuple(m for i, m in enumerate(messages) if i not in dropped)
        tokens = await tokenize(await render(remaining))
        shortest = tokens if len(tokens) < len(shortest) else shortest
        if len(tokens) < num_ctx:
            best, kept_messages, high = tokens, remaining, middle - 1
        else:
            low = middle + 1
    if best is not None:
        return Fitted(best, len(all_tokens) - len(best), kept_messages)
    if not cut:
        return None
    kept = cut_middle(shortest, num_ctx, num_keep)
    return Fitted(kept, len(all_tokens) - len(kept))


def cut_middle(tokens: list[int], num_ctx: int, num_keep: int) -> list[int]:
    """The first `num_keep` tokens, and the newest ones for half of the remaining context: the other half is for the answer.

    A negative `num_keep` keeps as many of the first tokens as possible, as in the engine.
    """
    keep = min(num_keep, num_ctx - 2) if num_keep >= 0 else num_ctx - 2
    room = num_ctx - max((num_ctx - keep) // 2, 1)
    return tokens[:keep] + tokens[len(tokens) - (room - keep) :]
