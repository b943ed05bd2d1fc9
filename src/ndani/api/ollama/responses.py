"""Events, models and models in memory as Ollama's JSON. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ndani.api.edge.json_response import encode
from ndani.api.edge.streaming import Fold, RenderEvent
from ndani.api.ollama.timestamps import Timestamps, local_stamp
from ndani.types import Details, Done, Event, Model, Rendered, Resident, Text

#: What Ollama prints for "for ever": the end of Go's longest duration, about 292 years from now.
FOREVER = 292 * 365.25 * 86400


def render_generate(model: str, clock: Timestamps) -> tuple[RenderEvent, Fold]:
    """Lines and the one object of /api/generate, under the model name that the client used."""
    head = b'{"model":' + encode(model) + b',"created_at":"'

    def line(event: Event) -> bytes:
        if isinstance(event, Text):
            return b'%b%b","response":%b,"done":false}\n' % (head, clock.stamp(), encode(event.text))
        if isinstance(event, Rendered):
            return encode({"model": model, "created_at": clock.now(), "response": "", "done": False} | _debugged(event)) + b"\n"
        return fold("", event) + b"\n"

    def fold(text: str, done: Done) -> bytes:
        last: dict[str, Any] = {
            "model": model,
            "created_at": clock.now(),
            "response": text,
            "done": True,
            "done_reason": done.reason,
        }
        if done.context is not None:
            last["context"] = done.context
        return encode(last | _usage(done))

    return line, fold


def render_chat(model: str, clock: Timestamps) -> tuple[RenderEvent, Fold]:
    """Lines and the one object of /api/chat."""
    head = b'{"model":' + encode(model) + b',"created_at":"'

    def line(event: Event) -> bytes:
        if isinstance(event, Text):
            return b'%b%b","message":{"role":"assistant","content":%b},"done":false}\n' % (
                head,
                clock.stamp(),
                encode(event.text),
            )
        if isinstance(event, Rendered):
            blank = {"role": "", "content": ""}
            return encode({"model": model, "created_at": clock.now(), "message": blank, "done": False} | _debugged(event)) + b"\n"
        return fold("", event) + b"\n"

    def fold(text: str, done: Done) -> bytes:
        message = {"role": "assistant", "content": text}
        last: dict[str, Any] = {
            "model": model,
            "created_at": clock.now(),
            "message": message,
            "done": True,
            "done_reason": done.reason,
        }
        return encode(last | _usage(done))

    return line, fold


def _debugged(event: Rendered) -> dict[str, Any]:
    return {"_debug_info": {"rendered_template": event.prompt}}


def _usage(done: Done) -> dict[str, int]:
    if done.reason in ("load", "unload"):
        return {}
    use = done.usage
    counted = {
        "total_duration": use.total_ns,
        "load_duration": use.load_ns,
        "prompt_eval_count": use.prompt_tokens,
        "prompt_eval_cached_count": use.cached_tokens,
        "prompt_eval_duration": use.prompt_ns,
        "eval_count": use.output_tokens,
        "eval_duration": use.output_ns,
        "truncated": done.truncated,
    }
    return {key: value for key, value in counted.items() if value}


def render_details(details: Details, *, listed: bool) -> dict[str, Any]:
    """What a model is; listings say its lengths too."""
    described: dict[str, Any] = {
        "parent_model": details.parent,
        "format": details.format,
        "family": details.family,
        "families": list(details.families) or None,
        "parameter_size": details.parameter_size,
        "quantization_level": details.quantization_level,
    }
    if listed and details.context_length:
        described["context_length"] = details.context_length
    if listed and details.embedding_length:
        described["embedding_length"] = details.embedding_length
    return described


def render_models(models: list[Model]) -> dict[str, Any]:
    """The body of /api/tags."""
    return {
        "models": [
            {
                "name": m.name,
                "model": m.name,
                "modified_at": local_stamp(m.modified),
                "size": m.size,
                "digest": m.digest,
                "details": render_details(m.details, listed=True),
                "capabilities": list(m.capabilities),
            }
            for m in models
        ]
    }


def render_residents(residents: list[Resident], now: float) -> dict[str, Any]:
    """The body of /api/ps; `slots`, `pid` and `confinement` are ours."""
    return {
        "models": [
            {
                "name": r.name,
                "model": r.name,
                "size": r.size,
                "digest": r.digest,
                "details": render_details(r.details, listed=False) | {"parent_model": ""},  # as there: of what runs, nobody asks it
                "expires_at": _expiry(r, now),
                "size_vram": r.size_vram,
                "context_length": r.context_length,
                "slots": r.slots,
                "pid": r.pid,
                "confinement": r.confined,
            }
            for r in residents
        ]
    }


def _expiry(resident: Resident, now: float) -> str:
    if resident.stopping:
        return local_stamp(now)
    if resident.expires is None:
        return datetime.fromtimestamp(now + FOREVER, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
    return local_stamp(resident.expires)
