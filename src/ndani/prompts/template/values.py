"""What a template works on: Go's values as far as Ollama's data has them, and what holds for all of them.

bool, int, float and str are Python's own; bytes is one image. A list, a map and a struct have classes here, because a
template can see what Python's lack: the difference between empty and nil, a type's name in an error, a way of its own
to be printed. `None` is Go's nil inside an interface, `NO_VALUE` no value at all: they print alike, and only the
first refuses to be asked for a field. Where values come from is `conversation.py`; how they are printed `formats.py`.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from typing import overload

from ndani.prompts.template.bounds import Meter, TemplateError


class NoValue(Enum):
    NO_VALUE = 0


NO_VALUE = NoValue.NO_VALUE


class Window(Sequence["Value"]):
    """A part of a list that is not copied: templates ask for `slice $.Messages $i` once for every message."""

    __slots__ = ("first", "last", "store")

    def __init__(self, values: Sequence[Value], first: int, last: int) -> None:
        base = 0
        while isinstance(values, Window):
            base, values = base + values.first, values.store
        self.store: Sequence[Value] = values
        self.first: int = base + first
        self.last: int = base + last

    def __len__(self) -> int:
        return self.last - self.first

    @overload
    def __getitem__(self, place: int) -> Value: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Value]: ...
    def __getitem__(self, place: int | slice) -> Value | Sequence[Value]:
        if isinstance(place, slice):
            return self.store[self.first : self.last][place]
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self.store[self.first + place]


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """A Go slice. `prints` says what its String method gives: "" (it has none), "json", or "type" (a JSON Schema type)."""

    values: Sequence[Value]
    kind: str = "[]interface {}"
    prints: str = ""
    nil: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A Go map with text keys. `zero` is what a missing key gives; `ordered` keeps the order of entries in its JSON."""

    entries: Mapping[str, Value]
    kind: str = "map[string]interface {}"
    prints: str = ""
    nil: bool = False
    zero: Value = None
    ordered: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """A Go struct, or a pointer to one. `keys` names its fields in JSON: (field, key, left out when empty)."""

    kind: str
    fields: Mapping[str, Value]
    keys: tuple[tuple[str, str, bool], ...] = ()
    prints: str = ""
    pointer: bool = False
    methods: Mapping[str, Callable[[], Value]] = field(default_factory=dict)


class Byte(int):
    """One byte of a text or an image: a number whose type has another name."""


Value = None | NoValue | bool | int | float | str | bytes | Items | Table | Record


def kind_of(value: Value) -> str:
    """The name that Go has for a value's type."""
    match value:
        case None | NoValue():
            return "nil"
        case bool():
            return "bool"
        case Byte():
            return "uint8"
        case int():
            return "int"
        case float():
            return "float64"
        case str():
            return "string"
        case bytes():
            return "api.ImageData"
        case Record():
            return f"*{value.kind}" if value.pointer else value.kind
        case _:
            return value.kind


def is_true(value: Value) -> bool:
    """Go's truth: empty texts, lists and maps, zeros and nil are false; a struct is always true."""
    match value:
        case None | NoValue():
            return False
        case Items():
            return bool(value.values)
        case Table():
            return bool(value.entries)
        case Record():
            return True
        case _:
            return bool(value)


def string_method_text(value: Value, meter: Meter) -> str | None:
    """What a value's String method gives, or None where its type has no such method."""
    if not isinstance(value, Items | Table | Record) or not value.prints:
        return None
    if value.prints == "type":
        assert isinstance(value, Items)
        names = [str(name) for name in value.values]
        return names[0] if len(names) == 1 else f"[{' '.join(names)}]" if names else ""
    if isinstance(value, Table) and value.nil:
        return "{}"
    return to_json(value, meter)


_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}
_JSON = str.maketrans(
    {chr(i): f"\\u{i:04x}" for i in (*range(32), 0x3C, 0x3E, 0x26, 0x2028, 0x2029)}
    | dict.fromkeys(map(chr, range(0xD800, 0xE000)), "\\ufffd")
    | _ESCAPES
)


def json_number(value: float) -> str:
    """A float as Go's encoding/json writes it: an exponent only below 1e-6 and from 1e21 on."""
    if not math.isfinite(value):
        raise TemplateError("a number that is not finite has no JSON")
    digits = Decimal(repr(value))
    if value and not 1e-6 <= abs(value) < 1e21:
        mantissa, _, exponent = f"{digits.normalize():e}".partition("e")
        return f"{mantissa}e{exponent[0]}{exponent[1:].lstrip('0')}"
    return format(digits, "f").removesuffix(".0")


def _members(value: Record) -> list[tuple[str, Value]]:
    keys = value.keys or tuple((name, name, False) for name in value.fields)
    found = ((key, value.fields[name], sparing) for name, key, sparing in keys)
    return [(key, member) for key, member, sparing in found if not (sparing and not is_true(member))]


def to_json(value: Value, meter: Meter) -> str:
    """Go's compact JSON, with <, > and & escaped as it does. Raises TemplateError when it costs too much."""
    out: list[str] = []
    _write_json(value, out, meter)
    return "".join(out)


def _write_json(value: Value, out: list[str], meter: Meter) -> None:
    match value:
        case None | NoValue():
            text = "null"
        case bool():
            text = "true" if value else "false"
        case int():
            text = str(value)
        case float():
            text = json_number(value)
        case str():
            meter.step(len(value) // 16)  # escaping looks at each character
            text = f'"{value.translate(_JSON)}"'
        case bytes():
            text = f'"{base64.b64encode(value).decode()}"'
        case Items():
            if value.prints == "type" and len(value.values) == 1:
                _write_json(value.values[0], out, meter)
                return
            if not value.nil:
                _write_all([(None, item) for item in value.values], "[]", out, meter)
                return
            text = "null"
        case Table():
            if not value.nil:
                keys = list(value.entries) if value.ordered else sorted(value.entries)
                _write_all([(key, value.entries[key]) for key in keys], "{}", out, meter)
                return
            text = "null"
        case Record():
            _write_all(list(_members(value)), "{}", out, meter)
            return
    meter.copy(len(text))
    out.append(text)


def _write_all(members: list[tuple[str, Value]] | list[tuple[None, Value]], ends: str, out: list[str], meter: Meter) -> None:
    meter.step(1 + len(members))
    out.append(ends[0])
    for place, (key, member) in enumerate(members):
        if place:
            out.append(",")
        if key is not None:
            _write_json(key, out, meter)
            out.append(":")
        _write_json(member, out, meter)
    out.append(ends[1])
