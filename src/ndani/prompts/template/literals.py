"""What Go's literals mean: quoted texts, characters and numbers. Pure functions; TemplateError where one means nothing.

A text may hold bytes that are no UTF-8 (`"\\xff"`, a cut through a character): they are kept as Python keeps them in
file names, as lone surrogates (`surrogateescape`), and become U+FFFD when the prompt leaves this room.
"""

from __future__ import annotations

import re

from ndani.prompts.template.bounds import TemplateError

_ESCAPE = re.compile(r"\\(?:([abfnrtv\\'\"])|([0-7]{3})|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))", re.ASCII)
_PLAIN = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92, "'": 39, '"': 34}
_FRACTION = re.compile(r"[.eEpP]")


def _unescape(body: str, quote: str) -> bytes:
    out = bytearray()
    pos = 0
    while pos < len(body):
        if body[pos] != "\\":
            end = body.find("\\", pos)
            end = len(body) if end < 0 else end
            out += body[pos:end].encode("utf-8", "surrogateescape")
            pos = end
            continue
        found = _ESCAPE.match(body, pos)
        if found is None or (found[1] in ("'", '"') and found[1] != quote):
            raise TemplateError("a backslash in this text is followed by nothing that it can escape")
        plain, octal, byte, short, long = found.groups()
        if plain:
            out.append(_PLAIN[plain])
        elif octal or byte:
            value = int(octal, 8) if octal else int(byte, 16)
            if value > 255:
                raise TemplateError("an octal escape in this text is above \\377")
            out.append(value)
        else:
            value = int(short or long, 16)
            if value > 0x10FFFF or 0xD800 <= value < 0xE000:
                raise TemplateError("an escape in this text is no character of Unicode")
            out += chr(value).encode()
        pos = found.end()
    return bytes(out)


def read_text(token: str) -> str:
    """The text of a string literal, quotes included in the token. Raises TemplateError on a bad escape."""
    if token[0] == "`":
        return token[1:-1].replace("\r", "")
    return _unescape(token[1:-1], '"').decode("utf-8", "surrogateescape")


def read_character(token: str) -> int:
    """The number of a character literal, as Go has it (`'a'` is 97). Raises TemplateError unless it is one character."""
    body = token[1:-1]
    raw = _unescape(body, "'")
    if body.startswith(("\\x", "\\0", "\\1", "\\2", "\\3")) and len(raw) == 1:
        return raw[0]
    text = raw.decode("utf-8", "surrogateescape")
    if len(text) != 1:
        raise TemplateError("single quotes hold exactly one character; use double quotes for a text")
    return ord(text)


def read_number(token: str) -> int | float:
    """An int of 64 bits or a float, by its spelling, as Go decides it. Raises TemplateError on neither."""
    digits = token.lstrip("+-")
    hexadecimal = digits[:2] in ("0x", "0X")
    fraction = _FRACTION.search(token) if not hexadecimal else re.search(r"[.pP]", token)
    if hexadecimal and "." in token and "p" not in token.lower():
        raise TemplateError("a hexadecimal number with a point needs an exponent, as in 0x1.8p0")
    try:
        if fraction:
            return float.fromhex(token.replace("_", "")) if hexadecimal else _finite(float(token))
        octal = re.fullmatch(r"[+-]?0[0-7_]+", token)  # Go's old spelling
        value = int(token.replace("_", ""), 8) if octal else int(token, 0)
    except (ValueError, OverflowError):
        raise TemplateError("this is not a number") from None
    if not -(2**63) <= value < 2**63:
        raise TemplateError("this number does not fit into 64 bits")
    return value


def _finite(value: float) -> float:
    if value in (float("inf"), float("-inf")):
        raise OverflowError
    return value
