"""Numbers, sizes, times and durations as text, in Ollama's formats.

Pure functions. `ndani.durations` parses durations; this module formats them.
"""

from __future__ import annotations

import math

_SIZE_UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "KB"))
_YEAR_S = 365 * 24 * 3600


def size(count: int) -> str:
    """A number of bytes in decimal units: no decimals from ten upward, truncated and not rounded (`98 MB`, `1.2 GB`)."""
    for unit, suffix in _SIZE_UNITS:
        if count >= unit:
            value = count / unit
            whole = value >= 10 or value == math.trunc(value)
            return f"{int(value)} {suffix}" if whole else f"{value:.1f} {suffix}"
    return f"{count} B"


def parameter_count(count: int) -> str:
    """The number of a model's parameters (`134.52M`, `3.1B`)."""
    for unit, suffix, decimals in ((10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 0)):
        if count >= unit:
            return f"{count / unit:.{0 if count % unit == 0 else decimals}f}{suffix}"
    return str(count)


def number(value: float) -> str:
    """A number as Go's `%g` writes it: the fewest digits, an exponent from a million on (`1.34515008e+08`)."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    text = next(text for decimals in range(18) if float(text := f"{value:.{decimals}e}") == value or decimals == 17)
    mantissa, _, power = text.partition("e")
    exponent = int(power)
    if exponent < -4 or exponent >= 6:
        return f"{mantissa}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"
    decimals = len(mantissa.lstrip("-").replace(".", "")) - 1 - exponent
    return f"{value:.{max(decimals, 0)}f}"


def duration(nanoseconds: int) -> str:
    """A duration as Go prints it (`37.923883ms`, `1.2s`, `1m0.5s`)."""
    if nanoseconds < 0:
        return "-" + duration(-nanoseconds)
    if nanoseconds == 0:
        return "0s"
    for unit, suffix in ((10**3, "ns"), (10**6, "µs"), (10**9, "ms")):
        if nanoseconds < unit:
            return _format_decimal(nanoseconds, unit // 1000) + suffix
    minutes, remainder = divmod(nanoseconds, 60 * 10**9)
    text = _format_decimal(remainder, 10**9) + "s"
    if minutes:
        hours, minutes = divmod(minutes, 60)
        text = f"{hours}h{minutes}m{text}" if hours else f"{minutes}m{text}"
    return text


def _format_decimal(count: int, unit: int) -> str:
    whole, remainder = divmod(count, unit)
    decimals = len(str(unit)) - 1
    return f"{whole}.{remainder:0{decimals}d}".rstrip("0").rstrip(".") if remainder else str(whole)


def rough_duration(seconds: float) -> str:
    """A duration in its largest unit (`42 seconds`, `About a minute`, `3 days`)."""
    whole_seconds = int(seconds)
    if whole_seconds < 1:
        return "Less than a second"
    if whole_seconds < 60:
        return "1 second" if whole_seconds == 1 else f"{whole_seconds} seconds"
    minutes = whole_seconds // 60
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    hours = math.floor(seconds / 3600 + 0.5)
    if hours < 48:
        return "About an hour" if hours == 1 else f"{hours} hours"
    for limit, unit, unit_name in ((24 * 14, 24, "days"), (24 * 60, 24 * 7, "weeks"), (24 * 730, 24 * 30, "months")):
        if hours < limit:
            return f"{hours // unit} {unit_name}"
    return f"{hours // 24 // 365} years"


def relative_time(moment: float | None, now: float) -> str:
    """A time relative to `now`, both in POSIX seconds; None gives `Never`, and more than twenty years ahead gives `Forever`."""
    if moment is None:
        return "Never"
    if moment - now > 21 * _YEAR_S:
        return "Forever"
    return f"{rough_duration(moment - now)} from now" if moment > now else f"{rough_duration(now - moment)} ago"


def parse_time(text: str) -> float | None:
    """The POSIX seconds of an RFC 3339 time; None for Go's zero time and for text that is not a time."""
    from datetime import datetime

    if not text or text.startswith("0001-"):
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return None


def width(text: str) -> int:
    """The columns that a text takes on a terminal: wide characters take two, combining marks none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # its tables are newer than Python's, and cover joined characters

    return cell_len(text)
