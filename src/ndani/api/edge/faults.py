"""Errors as responses: the error's shape, and an unexpected fault without its words."""

from __future__ import annotations

from pathlib import Path

from ndani.errors import Failed, NdaniError


def failure(error: NdaniError) -> dict[str, str]:
    """An error in Ollama's shape."""
    return {"error": str(error)}


def fault(error: BaseException) -> Failed:
    """A fault of ours as an error: its kind and place, without its words, which could quote a prompt."""
    trace, place = error.__traceback__, "ndani"
    while trace:
        if "ndani" in trace.tb_frame.f_code.co_filename:
            place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return Failed(f"ndani met a fault of its own ({type(error).__name__} at {place}); please report it")
