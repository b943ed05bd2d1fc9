"""Letters that somebody else wrote: which of them can be seen, and which a terminal would obey.

Both are fixed lists of code points. The interpreter's own tables (`str.isprintable`) are older than some letters and differ
from one Python to the next: nothing that is answered, kept or shown may depend on them.
"""

from __future__ import annotations

import re

#: Controls, blanks other than the space, marks of format, halves of pairs, and what is for private use: what Go's `%q`
#: escapes of the letters that Unicode has given out. One that it has not given out yet counts as a letter.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\xa0\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f"
    "\u3000\ud800-\uf8ff\ufeff\ufff9-\ufffb\ufffe\uffff\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0001\U000e0020-\U000e007f\U000f0000-\U0010ffff]"
)
#: What a terminal may obey: the controls, but for newline and tab.
_OBEYED = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def is_visible(text: str) -> bool:
    """Whether every letter of a text is one that leaves a mark, or a plain space."""
    return _UNSEEN.search(text) is None


def remove_invisible(text: str) -> str:
    """A text without the letters that leave no mark, but for lines and tabs: for names and numbers, where one is a mistake."""
    return _UNSEEN.sub(lambda found: found[0] if found[0] in "\t\r\n" else "", text)


def replace_controls(text: str) -> str:
    """A text as a terminal may have it: what it would obey is shown as a mark; lines and tabs stay, a line's end of Windows is one."""
    return text.replace("\r\n", "\n").translate(_OBEYED)
