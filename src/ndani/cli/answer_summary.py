"""The warning and the timings that follow an answer, on stderr."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ndani.cli import formatting
from ndani.cli.output import emit


def print_answer_summary(final_event: Mapping[str, Any], *, verbose: bool) -> None:
    """Print on stderr how many tokens the model did not read, and with `verbose` the timings."""
    if truncated_tokens := final_event.get("truncated"):
        emit(f"Warning: this is longer than the model's context; {truncated_tokens} tokens of it were out of the model's sight", err=True)
    if verbose:
        emit(timings(final_event), nl=False, err=True)


def timings(final_event: Mapping[str, Any]) -> str:
    """The lines of `--verbose`, one number each; unknown numbers are left out."""
    rows: list[tuple[str, str]] = []
    for name, key in (("total duration", "total_duration"), ("load duration", "load_duration")):
        if final_event.get(key):
            rows.append((name, formatting.duration(final_event[key])))
    for name in ("prompt eval", "eval"):
        key = name.replace(" ", "_")
        count, nanoseconds = final_event.get(f"{key}_count") or 0, final_event.get(f"{key}_duration") or 0
        if count:
            rows.append((f"{name} count", f"{count} token(s)"))
        if nanoseconds:
            rows.append((f"{name} duration", formatting.duration(nanoseconds)))
            rows.append((f"{name} rate", f"{count / nanoseconds * 1e9:.2f} tokens/s"))
    return "".join(f"{name + ':':<21} {value}\n" for name, value in rows)
