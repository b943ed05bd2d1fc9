"""Characters in text from outside: which are invisible, and which control a terminal.

Both are fixed lists of code points. The interpreter's own tables (`str.isprintable`) lack recent characters and differ
between Python versions, so nothing that is answered, stored or printed may depend on them.
"""

from __future__ import annotations

import re

#: Control characters, spaces other than U+0020, format characters, surrogates and private use: the assigned characters that
#: Go's `%q` escapes. A code point that Unicode has not assigned yet counts as visible.
_INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\xa0\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f"
    "\u3000\ud800-\uf8ff\ufeff\ufff9-\ufffb\ufffe\uffff\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0001\U000e0020-\U000e007f\U000f0000-\U0010ffff]"
)
#: The control characters that a terminal may obey: all but newline and tab.
_CONTROL_REPLACEMENTS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def is_visible(text: str) -> bool:
    """Whether every character of the text is visible, or a plain space."""
    return _INVISIBLE.search(text) is None


def remove_invisible(text: str) -> str:
    """The text without invisible characters other than line breaks and tabs: for names and numbers, where one is a mistake."""
    return _INVISIBLE.sub(lambda match: match[0] if match[0] in "\t\r\n" else "", text)


def replace_controls(text: str) -> str:
    """The text made safe for a terminal: control characters become U+FFFD, line breaks and tabs stay, CRLF becomes a newline."""
    return text.replace("\r\n", "\n").translate(_CONTROL_REPLACEMENTS)
