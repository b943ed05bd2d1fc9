"""How numbers, sizes, times and durations are written for a reader, as Ollama writes them.

Pure functions from a figure to its words; nothing here prints. `ndani.durations` reads durations, this writes them.
"""

from __future__ import annotations

import math

_SIZES = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "KB"))
_YEAR = 365 * 24 * 3600


def size(count: int) -> str:
    """Bytes in decimal units: two figures from ten upward, cut and not rounded (`98 MB`, `1.2 GB`)."""
    for unit, word in _SIZES:
        if count >= unit:
            value = count / unit
            plain = value >= 10 or value == math.trunc(value)
            return f"{int(value)} {word}" if plain else f"{value:.1f} {word}"
    return f"{count} B"


def parameters(count: int) -> str:
    """How many weights a model has (`134.52M`, `3.1B`)."""
    for unit, word, places in ((10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 0)):
        if count >= unit:
            return f"{count / unit:.{0 if count % unit == 0 else places}f}{word}"
    return str(count)


def number(value: float) -> str:
    """A number as Go's `%g` writes it: the fewest digits, an exponent from a million on (`1.34515008e+08`)."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    text = next(text for places in range(18) if float(text := f"{value:.{places}e}") == value or places == 17)
    mantissa, _, power = text.partition("e")
    exponent = int(power)
    if exponent < -4 or exponent >= 6:
        return f"{mantissa}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"
    places = len(mantissa.lstrip("-").replace(".", "")) - 1 - exponent
    return f"{value:.{max(places, 0)}f}"


def duration(nanoseconds: int) -> str:
    """A duration as Go prints it (`37.923883ms`, `1.2s`, `1m0.5s`)."""
    if nanoseconds < 0:
        return "-" + duration(-nanoseconds)
    if nanoseconds == 0:
        return "0s"
    for unit, word in ((10**3, "ns"), (10**6, "µs"), (10**9, "ms")):
        if nanoseconds < unit:
            return _trimmed(nanoseconds, unit // 1000) + word
    minutes, rest = divmod(nanoseconds, 60 * 10**9)
    text = _trimmed(rest, 10**9) + "s"
    if minutes:
        hours, minutes = divmod(minutes, 60)
        text = f"{hours}h{minutes}m{text}" if hours else f"{minutes}m{text}"
    return text


def _trimmed(count: int, unit: int) -> str:
    whole, rest = divmod(count, unit)
    places = len(str(unit)) - 1
    return f"{whole}.{rest:0{places}d}".rstrip("0").rstrip(".") if rest else str(whole)


def span(seconds: float) -> str:
    """About how long (`42 seconds`, `About a minute`, `3 days`)."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole < 60:
        return "1 second" if whole == 1 else f"{whole} seconds"
    minutes = whole // 60
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    hours = math.floor(seconds / 3600 + 0.5)
    if hours < 48:
        return "About an hour" if hours == 1 else f"{hours} hours"
    for limit, unit, word in ((24 * 14, 24, "days"), (24 * 60, 24 * 7, "weeks"), (24 * 730, 24 * 30, "months")):
        if hours < limit:
            return f"{hours // unit} {word}"
    return f"{hours // 24 // 365} years"


def when(moment: float | None, now: float, *, never: str = "Never") -> str:
    """A point in time, seen from `now`, both in POSIX seconds; None is `never`, more than twenty years ahead `Forever`."""
    if moment is None:
        return never
    if moment - now > 21 * _YEAR:
        return "Forever"
    return f"{span(moment - now)} from now" if moment > now else f"{span(now - moment)} ago"


def moment(text: str) -> float | None:
    """POSIX seconds of an RFC 3339 time; None for Go's zero time and for what is no time."""
    from datetime import datetime

    if not text or text.startswith("0001-"):
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return None


def width(text: str) -> int:
    """Columns that a text takes on a terminal: wide letters take two, marks on top of others none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # its tables are newer than the interpreter's, and know joined letters

    return cell_len(text)
