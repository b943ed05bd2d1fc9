"""The functions that a template may call: Go's builtins and Ollama's four. `and` and `or` are the evaluator's own.

Each gets its arguments already evaluated and checked against its signature, and raises TemplateError if
they are still invalid. A function uses nothing but its arguments and its `CallContext`.
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
    """What a function gets besides its arguments: the meter, and today's date."""

    meter: Meter
    today: date


@dataclass(frozen=True, slots=True)
class Function:
    """`fixed` are the kinds of its parameters ("any" or "string"), `variadic` the kind of those that may follow (None: none may)."""

    call: Callable[[CallContext, Sequence[Value]], Value]
    fixed: tuple[str, ...] = ()
    variadic: str | None = None


def _is_nil(value: Value) -> bool:
    return value is None or value is NO_VALUE or (isinstance(value, Items | Table) and value.nil)


def _bytes(context: CallContext, text: str) -> bytes:
    context.meter.copy(len(text))
    return text.encode("utf-8", "surrogateescape")


def _offset(value: Value, limit: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TemplateError(f"a list cannot be indexed with {kind_of(value)}")
    if not 0 <= value <= limit:
        raise TemplateError(f"the index {value} is out of range")
    return value


def length(context: CallContext, args: Sequence[Value]) -> Value:
    """len: bytes of a text, items of a list or a map."""
    match args[0]:
        case str() as text:
            return len(text) if text.isascii() else len(_bytes(context, text))
        case bytes() as data:
            return len(data)
        case Items() as items:
            return len(items.values)
        case Table() as table:
            return len(table.entries)
        case other:
            raise TemplateError(f"{kind_of(other)} has no length")


def index(context: CallContext, args: Sequence[Value]) -> Value:
    """index x 1 "a": what x[1]["a"] is in Go."""
    value = args[0]
    if value is None or value is NO_VALUE:
        raise TemplateError("nil cannot be indexed")
    for key in args[1:]:
        match value:
            case str() as text:
                raw = _bytes(context, text)
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


def slice_value(context: CallContext, args: Sequence[Value]) -> Value:
    """slice x 1 3: what x[1:3] is in Go; a text by its bytes."""
    value = args[0]
    if not isinstance(value, str | bytes | Items):
        raise TemplateError(f"{kind_of(value)} cannot be sliced")
    if len(args) > 4 or (len(args) == 4 and isinstance(value, str)):
        raise TemplateError("slice has too many indexes")
    raw = _bytes(context, value) if isinstance(value, str) else value
    size = len(raw.values) if isinstance(raw, Items) else len(raw)
    bounds = [_offset(arg, size) for arg in args[1:]]
    first = bounds[0] if bounds else 0
    last = bounds[1] if len(bounds) > 1 else size
    if not first <= last <= (bounds[2] if len(bounds) > 2 else size):
        raise TemplateError(f"a slice from {first} to {last} runs backwards")
    if isinstance(raw, Items):
        return Items(Window(raw.values, first, last), raw.kind, raw.string_method, raw.nil)
    cut = raw[first:last]
    return cut.decode("utf-8", "surrogateescape") if isinstance(value, str) else cut


def _basic_kind(value: Value) -> str:
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


def _incomparable(left: Value, right: Value) -> TemplateError:
    return TemplateError(f"{kind_of(left)} and {kind_of(right)} cannot be compared")


def _are_equal(context: CallContext, left: Value, right: Value) -> bool:
    kinds = _basic_kind(left), _basic_kind(right)
    absent = left is None or left is NO_VALUE or right is None or right is NO_VALUE
    if kinds[0] != kinds[1]:
        if not absent:
            raise _incomparable(left, right)
        return False
    if kinds[0]:
        if isinstance(left, str):
            context.meter.copy(len(left))
        return left == right
    if not absent and type(left) is not type(right):
        raise _incomparable(left, right)
    if _is_nil(left) or _is_nil(right):
        return _is_nil(left) == _is_nil(right)
    if isinstance(right, Record) and right.pointer:
        return left is right
    raise _incomparable(left, right)


def equal(context: CallContext, args: Sequence[Value]) -> bool:
    """eq: whether the first is equal to any of the others."""
    if len(args) < 2:
        raise TemplateError("eq needs something to compare with")
    return any(_are_equal(context, args[0], other) for other in args[1:])


def less(context: CallContext, args: Sequence[Value]) -> bool:
    """lt, for two numbers of one kind or two texts."""
    left, right = args
    if isinstance(left, str) and isinstance(right, str):
        context.meter.copy(len(left))
        return left < right  # by code points, which is the order of UTF-8's bytes
    number = isinstance(left, int | float) and isinstance(right, int | float)
    if not number or _basic_kind(left) != _basic_kind(right) or isinstance(left, bool):
        raise _incomparable(left, right)
    assert isinstance(left, int | float) and isinstance(right, int | float)
    return left < right


def _less_or_equal(context: CallContext, args: Sequence[Value]) -> bool:
    return less(context, args) or equal(context, args)


def _printf(context: CallContext, args: Sequence[Value]) -> Value:
    assert isinstance(args[0], str)
    return Printer(context.meter).printf(args[0], args[1:])


def _text(context: CallContext, args: Sequence[Value]) -> str:
    """What the escaping functions work on: their arguments as an action would print them."""
    return Printer(context.meter).print(["<no value>" if arg is None or arg is NO_VALUE else _indirect(arg) for arg in args])


def _indirect(value: Value) -> Value:
    if isinstance(value, Record) and value.pointer:
        return Record(value.kind, value.fields, value.keys, value.string_method)
    return value


_HTML = str.maketrans({"\0": "\ufffd", '"': "&#34;", "'": "&#39;", "&": "&amp;", "<": "&lt;", ">": "&gt;"})
_JS = str.maketrans({chr(code): f"\\u{code:04X}" for code in (*range(32), 0x26, 0x3C, 0x3D, 0x3E)} | {"\\": "\\\\", "'": "\\'", '"': '\\"'})


def _html(context: CallContext, args: Sequence[Value]) -> Value:
    text = _text(context, args)
    context.meter.step(len(text) // 4)  # escaping looks at each character
    return text.translate(_HTML)


def _js(context: CallContext, args: Sequence[Value]) -> Value:
    text = _text(context, args).translate(_JS)
    context.meter.step(len(text) // 4)
    return "".join(char if is_visible(char) or char == "\x7f" or is_byte(char) else f"\\u{ord(char):04X}" for char in text)


def _urlquery(context: CallContext, args: Sequence[Value]) -> Value:
    return quote_plus(_bytes(context, _text(context, args)), safe="~")


def _json(context: CallContext, args: Sequence[Value]) -> Value:
    return to_json(args[0], context.meter)


def _call(context: CallContext, args: Sequence[Value]) -> Value:
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
    "slice": Function(slice_value, ("any",), "any"),
    "not": Function(lambda _, args: not is_true(args[0]), ("any",)),
    "and": Function(_call, ("any",), "any"),
    "or": Function(_call, ("any",), "any"),
    "eq": Function(equal, ("any",), "any"),
    "ne": Function(lambda context, args: not equal(context, args), ("any", "any")),
    "lt": Function(less, ("any", "any")),
    "le": Function(_less_or_equal, ("any", "any")),
    "gt": Function(lambda context, args: not _less_or_equal(context, args), ("any", "any")),
    "ge": Function(lambda context, args: not less(context, args), ("any", "any")),
    "print": Function(lambda context, args: Printer(context.meter).print(args), (), "any"),
    "println": Function(lambda context, args: Printer(context.meter).println(args), (), "any"),
    "printf": Function(_printf, ("string",), "any"),
    "html": Function(_html, (), "any"),
    "js": Function(_js, (), "any"),
    "urlquery": Function(_urlquery, (), "any"),
    "call": Function(_call, ("any",), "any"),
    "json": Function(_json, ("any",)),
    "currentDate": Function(lambda context, _: context.today.isoformat(), (), "string"),
    "yesterdayDate": Function(lambda context, _: (context.today - timedelta(days=1)).isoformat(), (), "string"),
    "toTypeScriptType": Function(lambda _, args: typescript(args[0]), ("any",)),
}
