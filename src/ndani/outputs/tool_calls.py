"""Calls of tools in a model's text: a tag, then JSON objects that name a tool and its arguments.

The tag comes from the model's template. Formats differ in what stands around the objects (lists, fences, more tags, the tool's
name), and models are not exact about it. So an object counts as a call if it names a tool of the request, or follows the name of
one, and everything that turns out to be no call is given back as text.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Mapping
from typing import Any

from ndani.outputs.tags import held_length
from ndani.types import Tool, ToolCall
from ndani.untrusted_json import InvalidJson, decode

#: Characters between a tag and the object after it; what is longer is no call. A longer tag is known by as many.
_MAX_GAP = 256
#: The names of members that hold a tool's name, and its arguments.
_NAME_KEYS = ("name", "tool_name", "function", "tool")
_ARGUMENT_KEYS = ("arguments", "parameters")
#: The members of a call that has no arguments.
_WITHOUT_ARGUMENTS = frozenset((*_NAME_KEYS, "type", "id"))

_BLANKS = re.compile(r"\s*")
_BRACKET = re.compile(r'["{}]')
_IN_STRING = re.compile(r'["\\]')
#: What may follow a call and belongs to it: separators, brackets too many, the end of a fence, closing tags. And the beginning of one.
_CLOSING = re.compile(r"(?:[\s,;\]}]+|```|</[^<>\s{]{1,64}>|<[|\uff5c][^<>\s{]{1,64}>|\[/\w{1,64}\])*")
_CLOSING_BEGUN = re.compile(r"`{1,2}|<(?:[/|\uff5c][^<>\s{]{0,64})?|\[(?:/\w{0,64})?")
_WORD = re.compile(r"[\w.-]+")

_ID_CHARACTERS = string.ascii_lowercase + string.digits


def new_call_id() -> str:
    """An id for a call, as Ollama makes them."""
    return "call_" + "".join(secrets.choice(_ID_CHARACTERS) for _ in range(8))


class ToolCallParser:
    """Divides the chunks of an answer into texts and calls of `tools`, in their order.

    With `{` or `[` as the tag, an answer is calls only if it begins with JSON.
    """

    __slots__ = (
        "_array", "_bare", "_depth", "_escaped", "_gap", "_held", "_in_string", "_index", "_lead", "_names", "_names_pattern",
        "_raw", "_state", "_tag", "_window", "_word",
    )  # fmt: skip

    def __init__(self, tag: str, tools: tuple[Tool, ...]) -> None:
        self._bare = tag in ("{", "[")
        # Models put no blank, or another one, before the list that a template ends a tag with.
        self._tag = (tag.rstrip("[ \n\t") or tag)[:_MAX_GAP]
        self._names = frozenset(tool.name for tool in tools if tool.name)
        longest_first = sorted(self._names, key=len, reverse=True)
        self._names_pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")
        self._index = 0
        self._held = ""  # the end of the last chunk, which cannot be told yet
        self._raw: list[str] = []  # everything since the last text or call, if that is longer
        self._gap = ""  # of it, what stands between the tag and the object
        self._lead = 0  # how much of the held text is the tag, or the word in its place
        self._word = False  # whether it is the word, which may be the tool's name
        self._window = max([_MAX_GAP, *(len(name) + 1 for name in self._names)])
        self._array = False
        self._depth, self._in_string, self._escaped = 0, False, False
        self._state = self._begin if self._bare else self._look

    @property
    def finished(self) -> bool:
        """Whether all that follows is text."""
        return self._state == self._pass

    def take(self, chunk: str) -> list[str | ToolCall]:
        """Take a chunk; returns what is certainly text, and the calls that are complete."""
        found: list[str | ToolCall] = []
        text, self._held = self._held + chunk, ""
        position = 0
        while position < len(text):
            position = self._state(text, position, found)
        return found

    def finish(self) -> list[str | ToolCall]:
        """The answer has ended: what was held back and has not become a call, as text."""
        rest = "".join(self._raw) + self._held
        if self._state == self._follow and _CLOSING_BEGUN.fullmatch(self._held):
            rest = ""
        self._raw.clear()
        self._held, self._state = "", self._pass
        return [rest] if rest else []

    # Each state takes the text from a position and returns the position up to which it is done with it.

    def _pass(self, text: str, start: int, found: list[str | ToolCall]) -> int:
        """No more calls will come."""
        found.append(text[start:])
        return len(text)

    def _begin(self, text: str, start: int, found: list[str | ToolCall]) -> int:
        """The answer may begin with JSON: an object, or a list with one."""
        blanks = _BLANKS.match(text, start)
        assert blanks
        position = blanks.end()
        if text.startswith("[", position) and not self._array:
            self._array = True
            position += 1
        elif text.startswith("{", position):
            return self._open(text, start, position, "")
        elif position < len(text):
            return self._give_back(text, start, position, found)
        self._raw.append(text[start:position])
        return position

    def _look(self, text: str, start: int, found: list[str | ToolCall]) -> int:
        """Text, until the tag."""
        position = text.find(self._tag, start)
        if position < 0:
            position = len(text) - min(held_length(text, self._tag), len(text) - start)
            self._held = text[position:]
        if position > start:
            found.append(text[start:position])
        if self._held:
            return len(text)
        if position < len(text):
            self._state, self._lead, self._word = self._approach, len(self._tag), False
        return position

    def _approach(self, text: str, start: int, found: list[str | ToolCall]) -> int:
        """At the tag: an object must follow soon."""
        limit = start + self._lead + _MAX_GAP
        position = text.find("{", start + self._lead, limit)
        if position >= 0:
            return self._open(text, start, position, text[start if self._word else start + self._lead : position])
        if len(text) < limit:
            self._held = text[start:]
            return len(text)
        return self._give_back(text, start, start + self._lead, found)

    def _open(self, text: str, start: int, position: int, gap: str) -> int:
        """An object begins at the position; what has been read from the start up to there is kept."""
        self._raw.append(text[start:position])
        self._gap = gap
        self._depth, self._in_string, self._escaped = 0, False, False
        self._state = self._read
        # What is in _raw before the object is one item, so that the object can be told from it.
        self._raw[:] = ["".join(self._raw)]
        return position

    def _read(self, text: str, start: int, found: list[str | ToolCall]) -> int:
        """In an object, up to the bracket that closes it."""
        position = start
        if self._escaped:
            position, self._escaped = position + 1, False
        while match := (_IN_STRING if self._in_string else _BRACKET).search(text, position):
            position = match.end()
            character = match[0]
            if character == '"':
                self._in_string = not self._in_string
            elif character == "\\":
                self._escaped = position == len(text)
                position += 1
            elif character == "{":
                self._depth += 1
            else:
                self._depth -= 1
                if not self._depth:
                    self._raw.append(text[start:position])
                    self._complete(found)
                    return position
        self._raw.append(text[start:])
        return len(text)

    def _complete(self, found: list[str | ToolCall]) -> None:
        """The object is complete: a call, or several, or text."""
        calls = self._calls("".join(self._raw[1:]))
        for name, arguments in calls:
            found.append(ToolCall(name, arguments, new_call_id(), self._index))
            self._index += 1
        if calls:
            self._state = self._follow
        else:
            found.append("".join(self._raw))
            self._state = self._pass if self._bare else self._look
        self._raw.clear()

    def _follow(self, text: str, start: int, found: list[str | ToolCall]) -> int:
        """After a call: what closes it, another one, or text."""
        closing = _CLOSING.match(text, start)
        assert closing
        position = closing.end()
        if position == len(text):
            return position
        if text[position] == "{":
            return self._open(text, position, position, "")
        rest = text[position : position + self._window]
        if not self._bare and rest.startswith(self._tag):
            self._state, self._lead, self._word = self._approach, len(self._tag), False
            return position
        if _CLOSING_BEGUN.fullmatch(rest) or (not self._bare and self._tag.startswith(rest)):
            self._held = text[position:]
            return len(text)
        word = _WORD.match(rest)
        if word and not self._bare:
            if word.end() == len(rest) and any(name.startswith(word[0]) for name in (*self._names, "function")):
                self._held = text[position:]
                return len(text)
            if word[0] in self._names or word[0] == "function":
                self._state, self._lead, self._word = self._approach, word.end(), True
                return position
        self._state = self._pass if self._bare else self._look
        return position

    def _give_back(self, text: str, start: int, position: int, found: list[str | ToolCall]) -> int:
        """It was no call: what has been read up to the position is text."""
        found.append("".join(self._raw) + text[start:position])
        self._raw.clear()
        self._state = self._pass if self._bare else self._look
        return position

    def _calls(self, text: str) -> list[tuple[str, Mapping[str, Any]]]:
        """The calls that an object makes: names and arguments. The name may also stand before it."""
        try:
            value = decode(text.encode("utf-8", "surrogatepass"), dict[str, Any])
        except InvalidJson:
            return []
        if call := _call(value, self._names):
            return [call]
        if self._names and (word := self._names_pattern.search(self._gap)):
            given = next((_object(value[key]) for key in _ARGUMENT_KEYS if key in value), None)
            return [(word[0], value if given is None else given)]
        if _name(value) is not None and set(value) <= _WITHOUT_ARGUMENTS and _name(value) in self._names:
            return [(str(_name(value)), {})]
        return _calls_inside(value, self._names)


def _name(value: Mapping[str, Any]) -> str | None:
    return next((value[key] for key in _NAME_KEYS if isinstance(value.get(key), str)), None)


def _call(value: Mapping[str, Any], names: frozenset[str]) -> tuple[str, Mapping[str, Any]] | None:
    """The call that an object with the members name and arguments is."""
    name = _name(value)
    if name not in names or name is None:
        return None
    arguments = next((_object(value[key]) for key in _ARGUMENT_KEYS if key in value), None)
    return None if arguments is None else (name, arguments)


def _calls_inside(value: Mapping[str, Any], names: frozenset[str]) -> list[tuple[str, Mapping[str, Any]]]:
    """The calls in an object that is none itself: objects and lists in it that hold calls, or members that have a tool's name."""
    calls: list[tuple[str, Mapping[str, Any]]] = []
    pending: list[tuple[str, Any]] = [("", value)]  # the last is the next one
    while pending:
        key, item = pending.pop()
        if key in names and (arguments := _object(item)) is not None:
            calls.append((key, arguments))
        elif isinstance(item, list):
            pending += [("", inner) for inner in reversed(item)]
        elif not isinstance(item, dict):
            continue
        elif call := _call(item, names):
            calls.append(call)
        elif _name(item) is None or not any(key in item for key in _ARGUMENT_KEYS):  # else a call of something else
            pending += reversed(item.items())
    return calls


def _object(value: object) -> Mapping[str, Any] | None:
    """A JSON object, also one that is spelt in a string; nothing counts as an empty one."""
    if isinstance(value, str):
        try:
            return decode(value.encode("utf-8", "surrogatepass"), dict[str, Any])
        except InvalidJson:
            return None
    return {} if value is None else value if isinstance(value, dict) else None
