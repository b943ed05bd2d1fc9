"""Finding a tag in a text that arrives in chunks: a chunk may end in the middle of it."""

from __future__ import annotations


def held_length(text: str, tag: str) -> int:
    """How many characters at the end of `text` may be the beginning of `tag`, and so are held back; less than the whole tag."""
    longest = min(len(text), len(tag) - 1)
    if longest <= 0 or tag[0] not in text[-longest:]:
        return 0
    return next((length for length in range(longest, 0, -1) if text.endswith(tag[:length])), 0)
