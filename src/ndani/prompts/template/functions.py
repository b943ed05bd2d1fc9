"""The functions that a template may call: Go's builtins and Ollama's four. `and` and `or` are the evaluator's own.

Each gets its arguments already evaluated and checked against its signature, and raises TemplateError for what is left to be
wrong with them. None touches anything but its arguments and its `CallContext`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final
from urllib.parse import quote_plus

from ndani.control_characters import is_visible
from ndani.prompts.template.bounds import Meter, TemplateError
from ndani.prompts.template.formats import Printer, is_byte
from ndani.prompts.template.values import NO_VALUE, Byte, Items, Record, Table, Value, Window, is_true, kind_of, to_json


@dataclass(frozen=True, slots=True)
class CallContext:
    """What a function may know besides its arguments: what it may still spend, and which day it is."""

    meter: Meter
    today: date


@dataclass(frozen=True, slots=True)
class Function:
    """`fixed` are the kinds of its parameters ("any" or "string"), `rest` the kind of those that may follow (None: none may)."""

    call: Callable[[CallContext, Sequence[Value]], Value]
    fixed: tuple[str, ...] = ()
    rest: str | None = None


def _is_nil(value: Value) -> bool:
    return value is None or value is NO_VALUE or (isinstance(value, Items | Table) and value.nil)


def _bytes(setting: CallContext, text: str) -> bytes:
    setting.meter.copy(len(text))
    return text.encode("utf-8", "surrogateescape")


def _offset(value: Value, limit: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TemplateError(f"a list cannot be indexed with {kind_of(value)}")
    if not 0 <= value <= limit:
        raise TemplateError(f"the index {value} is out of range")
    return value


def length(setting: CallContext, args: Sequence[Value]) -> Value:
    """len: bytes of a text, items of a list or a map."""
    match args[0]:
        case str() as text:
            return len(text) if text.isascii() else len(_bytes(setting, text))
        case bytes() as data:
            return len(data)
        case Items() as items:
            return len(items.values)
        case Table() as table:
            return len(table.entries)
        case other:
            raise TemplateError(f"{kind_of(other)} has no length")


def index(setting: CallContext, args: Sequence[Value]) -> Value:
    """index x 1 "a": what x[1]["a"] is in Go."""
    value = args[0]
    if value is None or value is NO_VALUE:
        raise TemplateError("nil cannot be indexed")
    for key in args[1:]:
        match value:
            case str() as text:
                raw = _bytes(setting, text)
                value = Byte(raw[_offset(key, len(raw) - 1)])
            case bytes() as data:
                value = Byte(data[_offset(key, len(data) - 1)])
            case Items() as items:
                value = items.values[_offset(key, len(items.values) - 1)]
            case Table() as table:
                if not isinstance(key, str):
                    raise TemplateError(f"a map cannot be indexed with {kind_of(key)}")
                value = table.entries.get(key, table.zero)
            case other:
                raise TemplateError(f"{kind_of(other)} cannot be indexed")
    return value


def part(setting: CallContext, args: Sequence[Value]) -> Value:
    """slice x 1 3: what x[1:3] is in Go; a text by its bytes."""
    value = args[0]
    if not isinstance(value, str | bytes | Items):
        raise TemplateError(f"{kind_of(value)} cannot be sliced")
    if len(args) > 4 or (len(args) == 4 and isinstance(value, str)):
        raise TemplateError("slice has too many indexes")
    raw = _bytes(setting, value) if isinstance(value, str) else value
    size = len(raw.values) if isinstance(raw, Items) else len(raw)
    ends = [_offset(arg, size) for arg in args[1:]]
    first = ends[0] if ends else 0
    last = ends[1] if len(ends) > 1 else size
    if not first <= last <= (ends[2] if len(ends) > 2 else size):
        raise TemplateError(f"a slice from {first} to {last} runs backwards")
    if isinstance(raw, Items):
        return Items(Window(raw.values, first, last), raw.kind, raw.prints, raw.nil)
    cut = raw[first:last]
    return cut.decode("utf-8", "surrogateescape") if isinstance(value, str) else cut


def _basic(value: Value) -> str:
    """The kind by which two values compare, or "" for those that do not."""
    match value:
        case bool():
            return "bool"
        case int():
            return "int"
        case float():
            return "float"
        case str():
            return "string"
        case _:
            return ""


def _incomparable(one: Value, two: Value) -> TemplateError:
    return TemplateError(f"{kind_of(one)} and {kind_of(two)} cannot be compared")


def _same(setting: CallContext, one: Value, two: Value) -> bool:
    kinds = _basic(one), _basic(two)
    absent = one is None or one is NO_VALUE or two is None or two is NO_VALUE
    if kinds[0] != kinds[1]:
        if not absent:
            raise _incomparable(one, two)
        return False
    if kinds[0]:
        if isinstance(one, str):
            setting.meter.copy(len(one))
        return one == two
    if not absent and type(one) is not type(two):
        raise _incomparable(one, two)
    if _is_nil(one) or _is_nil(two):
        return _is_nil(one) == _is_nil(two)
    if isinstance(two, Record) and two.pointer:
        return one is two
    raise _incomparable(one, two)


def equal(setting: CallContext, args: Sequence[Value]) -> bool:
    """eq: whether the first is equal to any of the others."""
    if len(args) < 2:
        raise TemplateError("eq needs something to compare with")
    return any(_same(setting, args[0], other) for other in args[1:])


def less(setting: CallContext, args: Sequence[Value]) -> bool:
    """lt, for two numbers of one kind or two texts."""
    one, two = args
    if isinstance(one, str) and isinstance(two, str):
        setting.meter.copy(len(one))
        return one < two  # by code points, which is the order of UTF-8's bytes
    number = isinstance(one, int | float) and isinstance(two, int | float)
    if not number or _basic(one) != _basic(two) or isinstance(one, bool):
        raise _incomparable(one, two)
    assert isinstance(one, int | float) and isinstance(two, int | float)
    return one < two


def _less_or_equal(setting: CallContext, args: Sequence[Value]) -> bool:
    return less(setting, args) or equal(setting, args)


def _printf(setting: CallContext, args: Sequence[Value]) -> Value:
    assert isinstance(args[0], str)
    return Printer(setting.meter).printf(args[0], args[1:])


def _text(setting: CallContext, args: Sequence[Value]) -> str:
    """What the escaping functions work on: their arguments as an action would print them."""
    return Printer(setting.meter).print(["<no value>" if arg is None or arg is NO_VALUE else _indirect(arg) for arg in args])


def _indirect(value: Value) -> Value:
    if isinstance(value, Record) and value.pointer:
        return Record(value.kind, value.fields, value.keys, value.prints)
    return value


_HTML = str.maketrans({"\0": "\ufffd", '"': "&#34;", "'": "&#39;", "&": "&amp;", "<": "&lt;", ">": "&gt;"})
_JS = str.maketrans({chr(code): f"\\u{code:04X}" for code in (*range(32), 0x26, 0x3C, 0x3D, 0x3E)} | {"\\": "\\\\", "'": "\\'", '"': '\\"'})


def _html(setting: CallContext, args: Sequence[Value]) -> Value:
    text = _text(setting, args)
    setting.meter.step(len(text) // 4)  # escaping looks at each character
    return text.translate(_HTML)


def _js(setting: CallContext, args: Sequence[Value]) -> Value:
    text = _text(setting, args).translate(_JS)
    setting.meter.step(len(text) // 4)
    return "".join(char if is_visible(char) or char == "\x7f" or is_byte(char) else f"\\u{ord(char):04X}" for char in text)


def _urlquery(setting: CallContext, args: Sequence[Value]) -> Value:
    return quote_plus(_bytes(setting, _text(setting, args)), safe="~")


def _json(setting: CallContext, args: Sequence[Value]) -> Value:
    return to_json(args[0], setting.meter)


def _call(setting: CallContext, args: Sequence[Value]) -> Value:
    raise TemplateError(f"call needs a function, not {kind_of(args[0])}")


_TYPES = {
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "array": "any[]",
    "object": "Record<string, any>",
    "null": "null",
}


def typescript(value: Value) -> str:
    """A JSON Schema property as a TypeScript type; "any" for what is none, or has no type."""
    if not isinstance(value, Record) or value.kind != "api.ToolProperty":
        return "any"
    options, types = value.fields["AnyOf"], value.fields["Type"]
    assert isinstance(options, Items) and isinstance(types, Items)
    if options.values:
        return " | ".join(typescript(option) for option in options.values)
    return " | ".join(_TYPES.get(str(name), "any") for name in types.values) or "any"


FUNCTIONS: Final[Mapping[str, Function]] = {
    "len": Function(length, ("any",)),
    "index": Function(index, ("any",), "any"),
    "slice": Function(part, ("any",), "any"),
    "not": Function(lambda _, args: not is_true(args[0]), ("any",)),
    "and": Function(_call, ("any",), "any"),
    "or": Function(_call, ("any",), "any"),
    "eq": Function(equal, ("any",), "any"),
    "ne": Function(lambda setting, args: not equal(setting, args), ("any", "any")),
    "lt": Function(less, ("any", "any")),
    "le": Function(_less_or_equal, ("any", "any")),
    "gt": Function(lambda setting, args: not _less_or_equal(setting, args), ("any", "any")),
    "ge": Function(lambda setting, args: not less(setting, args), ("any", "any")),
    "print": Function(lambda setting, args: Printer(setting.meter).print(args), (), "any"),
    "println": Function(lambda setting, args: Printer(setting.meter).println(args), (), "any"),
    "printf": Function(_printf, ("string",), "any"),
    "html": Function(_html, (), "any"),
    "js": Function(_js, (), "any"),
    "urlquery": Function(_urlquery, (), "any"),
    "call": Function(_call, ("any",), "any"),
    "json": Function(_json, ("any",)),
    "currentDate": Function(lambda setting, _: setting.today.isoformat(), (), "string"),
    "yesterdayDate": Function(lambda setting, _: (setting.today - timedelta(days=1)).isoformat(), (), "string"),
    "toTypeScriptType": Function(lambda _, args: typescript(args[0]), ("any",)),
}
