"""What is said on stderr when an answer is over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ndani.cli import formatting
from ndani.cli.output import emit


def answer_summary(done: Mapping[str, Any], *, verbose: bool) -> None:
    """What is said on stderr when an answer is over: what the model did not read, and with `verbose` the timings."""
    if cut := done.get("truncated"):
        emit(f"Warning: this is longer than the model's context; {cut} tokens of it were out of the model's sight", err=True)
    if verbose:
        emit(timings(done), nl=False, err=True)


def timings(done: Mapping[str, Any]) -> str:
    """The lines of `--verbose`, one figure each; those that are not known are left out."""
    rows: list[tuple[str, str]] = []
    for name, key in (("total duration", "total_duration"), ("load duration", "load_duration")):
        if done.get(key):
            rows.append((name, formatting.duration(done[key])))
    for name in ("prompt eval", "eval"):
        key = name.replace(" ", "_")
        count, took = done.get(f"{key}_count") or 0, done.get(f"{key}_duration") or 0
        if count:
            rows.append((f"{name} count", f"{count} token(s)"))
        if took:
            rows.append((f"{name} duration", formatting.duration(took)))
            rows.append((f"{name} rate", f"{count / took * 1e9:.2f} tokens/s"))
    return "".join(f"{name + ':':<21} {words}\n" for name, words in rows)
