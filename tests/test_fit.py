"""Making a conversation fit: a token is a word here, and the template puts the role in front."""

from __future__ import annotations

import pytest

from ndani.prompts.fit import cut_middle, fit
from ndani.types import Message


async def render(messages: tuple[Message, ...]) -> str:
    return " ".join(f"<{m.role}> {m.content}" for m in messages)


class Counter:
    """Word to id; counts how often it was asked."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}
        self.asked = 0

    async def __call__(self, text: str) -> list[int]:
        self.asked += 1
        return [self.ids.setdefault(word, len(self.ids)) for word in text.split()]

    def words(self, ids: str | list[int]) -> str:
        back = {number: word for word, number in self.ids.items()}
        return " ".join(back[n] for n in ids if isinstance(n, int))


def turns_of(*turns: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(role, content) for role, content in turns)


TALK = turns_of(("system", "be brief"), ("user", "a1 a2"), ("assistant", "b1 b2"), ("user", "c1 c2"))  # 12 tokens


async def fitted(messages: tuple[Message, ...], num_ctx: int, num_keep: int = 0, *, cut: bool = True) -> tuple[str, int] | None:
    count = Counter()
    found = await fit(messages, num_ctx, num_keep, render, count, cut=cut)
    return (count.words(found.prompt), found.truncated) if found else None


async def test_what_fits_stays_whole() -> None:
    assert await fitted(TALK, 13) == (await render(TALK), 0)


async def test_the_oldest_turn_goes_first_and_system_and_last_stay() -> None:
    assert await fitted(TALK, 12) == ("<system> be brief <assistant> b1 b2 <user> c1 c2", 3)
    assert await fitted(TALK, 9) == ("<system> be brief <user> c1 c2", 6)


async def test_what_is_still_too_long_loses_its_middle_and_every_token_is_counted() -> None:
    whole, truncated = await fitted(TALK, 6, 2) or ("", 0)
    assert whole.startswith("<system> be")
    assert whole.endswith("c1 c2")
    assert len(whole.split()) + truncated == 12
    assert len(whole.split()) < 6
    assert await fitted(TALK, 6, cut=False) is None


async def test_many_turns_are_searched_by_halves() -> None:
    talk = turns_of(*[("user" if n % 2 == 0 else "assistant", f"w{n}") for n in range(1001)])
    count = Counter()
    found = await fit(talk, 11, 0, render, count, cut=True)
    assert found is not None
    assert count.words(found.prompt) == await render(talk[-5:])
    assert found.truncated == 2002 - 10
    assert count.asked <= 12


async def test_only_system_messages_cannot_be_dropped() -> None:
    talk = turns_of(("system", "x " * 50), ("user", "y"))
    assert await fitted(talk, 20, cut=False) is None


@pytest.mark.parametrize(("num_ctx", "num_keep"), [(4, 0), (4, 4), (10, 4), (100, 24), (100, 500), (100, -1)])
def test_cutting_the_middle_keeps_front_and_back_and_leaves_room(num_ctx: int, num_keep: int) -> None:
    whole = list(range(1000))
    kept = cut_middle(whole, num_ctx, num_keep)
    keep = min(num_keep, num_ctx - 2) if num_keep >= 0 else num_ctx - 2
    assert kept[:keep] == whole[:keep]
    assert kept[keep:] == whole[1000 - len(kept) + keep :]
    assert len(kept) == num_ctx - (num_ctx - keep) // 2 < num_ctx, "Ollama's rule: half of what is not kept is left for the answer"
    assert kept[-1] == 999
