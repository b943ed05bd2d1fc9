"""Go's fmt: how values are printed, by themselves and by printf's verbs. Nothing here knows of templates.

Every character made is paid for, and no verb pads beyond `MAX_WIDTH`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction

from ndani.control_characters import is_visible
from ndani.prompts.template.bounds import MAX_OUTPUT, MAX_WIDTH, STEPS_PER_VERB, Meter, TemplateError
from ndani.prompts.template.values import NO_VALUE, Items, NoValue, Record, Table, Value, kind_of, string_method_text

_VERB = re.compile(r"%([#0+\- ]*)(\*|\d+)?(?:\.(\*|\d+)?)?(.)?", re.DOTALL)
_QUOTE = {7: "\\a", 8: "\\b", 12: "\\f", 10: "\\n", 13: "\\r", 9: "\\t", 11: "\\v", 92: "\\\\"}
_NIL = "<nil>"
_BASES = {"b": "b", "o": "o", "O": "o", "x": "x", "X": "X", "d": "d", "v": "d"}
_PREFIXES = {"b": "0b", "x": "0x", "X": "0X"}


@dataclass(frozen=True, slots=True)
class Flags:
    """The flags between % and the verb. `width` and `precision` are None when they are not given."""

    sharp: bool = False
    zero: bool = False
    plus: bool = False
    minus: bool = False
    space: bool = False
    names: bool = False  # %+v: the fields of a struct with their names
    width: int | None = None
    precision: int | None = None


PLAIN = Flags()


def is_byte(char: str) -> bool:
    """Whether a character stands for a byte that is no UTF-8."""
    return "\udc80" <= char <= "\udcff"


def quote(text: str, mark: str = '"', ascii_only: bool = False) -> str:
    """Go's strconv.Quote: a text as a Go literal."""
    out = []
    for char in text:
        code = ord(char)
        if char == mark:
            out.append("\\" + char)
        elif code in _QUOTE:
            out.append(_QUOTE[code])
        elif is_byte(char):
            out.append(f"\\x{code - 0xDC00:02x}")
        elif is_visible(char) and (code < 128 or not ascii_only):
            out.append(char)
        elif code < 32 or code == 127:
            out.append(f"\\x{code:02x}")
        else:
            out.append(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return mark + "".join(out) + mark


def write_float(value: float, verb: str = "g", precision: int | None = None) -> str:
    """Go's strconv.FormatFloat: verb b, e, f, g or x; no precision is the fewest digits that say the number."""
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    if verb in "bx":
        text = _in_twos(abs(value)) if verb == "b" else _in_sixteens(abs(value), precision)
        return text if math.copysign(1, value) > 0 else "-" + text
    if precision is not None:
        return f"{value:.{precision}{verb}}" if verb != "g" else f"{value:.{precision or 1}g}"
    sign, digits, exponent = Decimal(repr(value)).as_tuple()
    assert isinstance(exponent, int)
    text = "".join(map(str, digits)).rstrip("0") or "0"
    point = len(digits) + exponent if value else 1  # digits before the point
    mark = "-" if sign else ""
    if verb == "e" or (verb == "g" and not -4 <= point - 1 < 6):
        shift = point - 1
        return f"{mark}{text[0]}{'.' if text[1:] else ''}{text[1:]}e{'-' if shift < 0 else '+'}{abs(shift):02d}"
    if point <= 0:
        return f"{mark}0.{'0' * -point}{text}"
    return f"{mark}{text.ljust(point, '0')[:point]}{'.' if text[point:] else ''}{text[point:]}"


def _in_twos(value: float) -> str:
    """Whole numbers of a power of two, as Go's verb b has it."""
    power = max(math.frexp(value)[1] - 53, -1074) if value else -1074
    return f"{int(math.ldexp(value, -power))}p{power:+d}"


def _in_sixteens(value: float, precision: int | None) -> str:
    """Sixteenths of a power of two, as Go's verb x has it: 0x1.8p+00."""
    fraction, power = math.frexp(value)
    number, power = int(math.ldexp(fraction, 53)), power - 1 if value else 0
    if precision is not None and precision < 13:
        cut = 4 * (13 - precision)
        number = round(Fraction(number, 1 << cut)) << cut  # half to even
        if number >> 53:
            number, power = number >> 1, power + 1
    digits = f"{number & (1 << 52) - 1:013x}"
    digits = digits.rstrip("0") if precision is None else digits.ljust(precision, "0")[:precision]
    return f"0x{number >> 52}{'.' if digits else ''}{digits}p{'-' if power < 0 else '+'}{abs(power):02d}"


class Printer:
    """Prints values, and pays for each character: as part of the prompt, or as a text of its own. Raises TemplateError beyond a bound."""

    def __init__(self, meter: Meter, prompt: bool = False) -> None:
        self.meter = meter
        self.prompt = prompt
        self.out: list[str] = []
        self.made = 0
        self.plain = False  # inside a complaint

    # The three ways to print.

    def print(self, args: Sequence[Value]) -> str:
        """fmt.Sprint: a space between two arguments when neither is a text."""
        before: Value = ""
        for place, value in enumerate(args):
            if place and not isinstance(value, str) and not isinstance(before, str):
                self.write(" ")
            self.show(value, "v", PLAIN)
            before = value
        return self.text()

    def println(self, args: Sequence[Value]) -> str:
        """fmt.Sprintln: a space between arguments, a line's end after the last."""
        for place, value in enumerate(args):
            if place:
                self.write(" ")
            self.show(value, "v", PLAIN)
        self.write("\n")
        return self.text()

    def printf(self, form: str, args: Sequence[Value]) -> str:
        """fmt.Sprintf, Go's complaints inside the text included. Raises TemplateError on %[n] and on what is padded beyond all use."""
        left = list(reversed(args))
        pos = 0
        while True:
            start = form.find("%", pos)
            self.write(form[pos:] if start < 0 else form[pos:start])
            if start < 0:
                break
            found = _VERB.match(form, start)
            assert found is not None
            flags = self.flags(found, left)
            verb = found[4]
            if verb is None:
                self.write("%!(NOVERB)")
            elif verb == "%":
                self.write("%")
            elif verb == "[":
                raise TemplateError("printf with numbered arguments, as in %[1]d, is not supported; give them in order")
            elif not left:
                self.write(f"%!{verb}(MISSING)")
            else:
                self.show_verb(left.pop(), verb, flags)
            pos = found.end()
        if left:
            self.write("%!(EXTRA ")
            for place, value in enumerate(reversed(left)):
                self.write(", " if place else "")
                nil = value is None or value is NO_VALUE
                self.write("" if nil else f"{kind_of(value)}=")
                self.show(value, "v", PLAIN)
            self.write(")")
        return self.text()

    # Pieces.

    def text(self) -> str:
        return "".join(self.out)

    def write(self, text: str) -> None:
        self.made += len(text)
        if self.prompt:
            self.meter.write(len(text))
        else:
            self.meter.copy(self.made if self.made > MAX_OUTPUT else len(text))
        self.out.append(text)

    def pad(self, text: str, flags: Flags) -> None:
        width = (flags.width or 0) - len(text)
        if width > 0:
            text = text.ljust(flags.width or 0) if flags.minus else ("0" if flags.zero else " ") * width + text
        self.write(text)

    def flags(self, found: re.Match[str], left: list[Value]) -> Flags:
        marks, wide, precise = found[1], found[2], found[3]
        has_precision = "." in found[0][1 + len(marks) + len(wide or "") :][:1]
        minus = "-" in marks
        width = self.size(wide, left, "%!(BADWIDTH)") if wide else None
        if width is not None and width < 0:
            width, minus = -width, True
        precision = self.size(precise, left, "%!(BADPREC)") if precise else (0 if has_precision else None)
        if precision is not None and precision < 0:
            self.write("%!(BADPREC)")
            precision = None
        return Flags("#" in marks, "0" in marks, "+" in marks, minus, " " in marks, False, width, precision)

    def size(self, spelled: str, left: list[Value], bad: str) -> int | None:
        if spelled != "*":
            value = int(spelled) if len(spelled) < 10 else MAX_WIDTH + 1
        else:
            given = left.pop() if left else None
            if not isinstance(given, int) or isinstance(given, bool):
                self.write(bad)
                return None
            value = given
        if abs(value) > MAX_WIDTH:
            raise TemplateError(f"printf pads to {MAX_WIDTH:,} characters at most")
        return value

    def show_verb(self, value: Value, verb: str, flags: Flags) -> None:
        self.meter.step(STEPS_PER_VERB)
        if verb == "T":
            self.pad(_NIL if value is None or value is NO_VALUE else kind_of(value), replace(flags, precision=None))
        elif verb == "v" and flags.sharp:
            raise TemplateError("printf %#v is not supported; use %v, %q or json")
        elif verb == "v":
            self.show(value, verb, replace(flags, plus=False, names=flags.plus))
        else:
            self.show(value, verb, flags)

    def bad(self, value: Value, verb: str, flags: Flags) -> None:
        """A verb that does not fit: Go says so in the text, the value as it is (no String method), still padded."""
        if value is None or value is NO_VALUE:
            self.write(f"%!{verb}({_NIL})")
            return
        self.write(f"%!{verb}({kind_of(value)}=")
        outer, self.plain = self.plain, True
        self.show(value, "v", flags)
        self.plain = outer
        self.write(")")

    def show(self, value: Value, verb: str, flags: Flags, depth: int = 0) -> None:
        """One value by one verb; what is inside a list, a map or a struct goes by the same verb."""
        if verb in "vsxXq" and not self.plain:
            text = string_method_text(value, self.meter)
            if text is not None:
                self.show_text(text, value, verb, flags)
                return
        match value:
            case None | NoValue():
                if verb == "v":
                    self.pad(_NIL, flags)
                else:
                    self.bad(value, verb, flags)
            case bool():
                self.pad("true" if value else "false", flags) if verb in "tv" else self.bad(value, verb, flags)
            case int():
                self.show_int(value, verb, flags)
            case float():
                self.show_float(value, verb, flags)
            case str():
                self.show_text(value, value, verb, flags)
            case bytes():
                self.show_bytes(value, verb, flags)
            case _:
                self.show_many(value, verb, flags, depth)

    def show_text(self, text: str, value: Value, verb: str, flags: Flags) -> None:
        if verb not in "vsxXq":
            self.bad(value, verb, flags)
            return
        if verb in "xX":
            self.show_hex(text.encode("utf-8", "surrogateescape"), verb, flags)
            return
        if flags.precision is not None:
            text = text[: flags.precision]
        if verb == "q":
            self.meter.step(len(text) // 4)  # quoting looks at each character
            plain = flags.sharp and all(char == "\t" or (char >= " " and char not in "`\x7f\ufeff" and not is_byte(char)) for char in text)
            text = f"`{text}`" if plain else quote(text, ascii_only=flags.plus)
        self.pad(text, flags)

    def show_hex(self, data: bytes, verb: str, flags: Flags) -> None:
        data = data if flags.precision is None else data[: flags.precision]
        text = data.hex(" ") if flags.space else data.hex()
        if flags.sharp and data:
            text = "0x" + text.replace(" ", " 0x")
        self.pad(text.upper() if verb == "X" else text, flags)

    def show_bytes(self, data: bytes, verb: str, flags: Flags) -> None:
        self.meter.step(len(data))
        if verb in "sq":
            self.show_text(data.decode("utf-8", "surrogateescape"), data, verb, flags)
        elif verb in "xX":
            self.show_hex(data, verb, flags)
        else:
            self.show_many(Items(tuple(data), "[]uint8"), verb, flags, 0)

    def show_int(self, value: int, verb: str, flags: Flags) -> None:
        if verb in "cqU":
            code = value if 0 <= value <= 0x10FFFF and not 0xD800 <= value < 0xE000 else 0xFFFD
            if verb == "U":
                mark = f" '{chr(code)}'" if flags.sharp and code == value and is_visible(chr(code)) else ""
                self.pad(f"U+{value % (1 << 64):0{max(4, flags.precision or 0)}X}{mark}", replace(flags, zero=False))
            else:
                self.pad(chr(code) if verb == "c" else quote(chr(code), "'", flags.plus), flags)
            return
        if verb not in _BASES:
            self.bad(value, verb, flags)
            return
        sign = "-" if value < 0 else "+" if flags.plus else " " if flags.space else ""
        digits = format(abs(value), _BASES[verb])
        if flags.precision == 0 and value == 0:
            self.pad("", replace(flags, zero=False))
            return
        zeros = flags.precision or 0
        if flags.precision is None and flags.zero and not flags.minus and flags.width:
            zeros = flags.width - len(sign)
        digits = digits.rjust(zeros, "0")
        if flags.sharp:
            digits = "0" + digits if verb in "oO" and digits[0] != "0" else _PREFIXES.get(verb, "") + digits
        self.pad(sign + ("0o" if verb == "O" else "") + digits, replace(flags, zero=False))

    def show_float(self, value: float, verb: str, flags: Flags) -> None:
        if verb not in "vgGeEfFbxX":
            self.bad(value, verb, flags)
            return
        if flags.sharp:
            raise TemplateError("printf with # before a number with a fraction is not supported")
        style = {"v": "g", "F": "f"}.get(verb, verb.lower())
        precision = flags.precision if flags.precision is not None or style in "gbx" else 6
        text = write_float(value, style, precision)
        if verb in "EGX":
            text = text.upper()
        sign = "-" if text[0] == "-" else "+" if flags.plus else " " if flags.space else ""
        text = text.lstrip("-+") if text[0] != "+" else text[1:]
        if flags.zero and not flags.minus and flags.width:
            text = text.rjust(flags.width - len(sign), "0")
        self.pad(sign + text, replace(flags, zero=False))

    def show_many(self, value: Items | Table | Record, verb: str, flags: Flags, depth: int) -> None:
        """Lists in brackets, maps sorted, structs in braces. A pointer inside something else prints as one, as in Go."""
        if isinstance(value, Items):
            members: list[tuple[Value, Value]] = [(NO_VALUE, item) for item in value.values]
            ends = ("[", "]")
        elif isinstance(value, Table):
            members = [(key, value.entries[key]) for key in sorted(value.entries)]
            ends = ("map[", "]")
        else:
            if value.pointer and depth:
                self.pad("0xc000000000", flags)
                return
            members = [(name if flags.names else NO_VALUE, item) for name, item in value.fields.items()]
            ends = ("&{" if value.pointer else "{", "}")
        self.write(ends[0])
        for place, (key, item) in enumerate(members):
            self.write(" " if place else "")
            if key is not NO_VALUE:
                self.show(key, verb, flags, depth + 1) if isinstance(value, Table) else self.write(str(key))
                self.write(":")
            if item is None or item is NO_VALUE:
                self.write(_NIL)
            else:
                self.show(item, verb, flags, depth + 1)
        self.write(ends[1])
