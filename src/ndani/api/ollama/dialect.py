"""Ollama's dialect, in and out: JSON bodies to the house's types, and events to its lines. No I/O, no decisions.

The routes that use it are in `native.py`. What is wrong with a body by itself is refused here; what a model cannot do
is for the service to refuse, which knows the model.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ndani.api.ollama import fields
from ndani.api.wire import Clock, Fold, RenderEvent, encode, local_stamp
from ndani.errors import BadRequest
from ndani.types import ChatRequest, Details, Done, Event, GenerateRequest, Model, Rendered, Resident, Text

#: What Ollama prints for "for ever": the end of Go's longest duration, about 292 years from now.
FOREVER = 292 * 365.25 * 86400


def parse_generate(body: dict[str, Any]) -> tuple[GenerateRequest, list[str]]:
    """A body of /api/generate, and the options in it that nothing obeys."""
    sampling, ignored, wrong = fields.options(body)
    request = GenerateRequest(
        model=fields.model(body),
        prompt=fields.text(body, "prompt"),
        system=fields.text(body, "system"),
        template=fields.text(body, "template"),
        suffix=fields.text(body, "suffix"),
        raw=fields.flag(body, "raw", False),
        context=fields.numbers(body, "context"),
        sampling=sampling,
        keep_alive=fields.keep_alive(body),
        truncate=fields.flag(body, "truncate", True),
        shift=fields.flag(body, "shift", True),
        render_only=fields.flag(body, "_debug_render_only", False),
        think=_think(body),
        asks=_asks(body),
        wrong=wrong,
    )
    return request, ignored


def parse_chat(body: dict[str, Any]) -> tuple[ChatRequest, list[str]]:
    """A body of /api/chat, and the options in it that nothing obeys."""
    name = fields.model(body)
    if not name:
        raise BadRequest("model is required")
    sampling, ignored, wrong = fields.options(body)
    messages, more = fields.messages(body)
    request = ChatRequest(
        model=name,
        messages=messages,
        sampling=sampling,
        keep_alive=fields.keep_alive(body),
        truncate=fields.flag(body, "truncate", True),
        shift=fields.flag(body, "shift", True),
        render_only=fields.flag(body, "_debug_render_only", False),
        think=_think(body),
        asks=_asks(body) | more,
        wrong=wrong,
    )
    return request, ignored


def _think(body: dict[str, Any]) -> bool | None:
    """What a body says of thinking; an empty text says nothing, and a level is true."""
    think = body.get("think")
    if think is not None and not isinstance(think, (bool, str)):
        raise BadRequest('think must be a boolean or string ("high", "medium", "low", "max", true, or false)')
    if isinstance(think, str) and think not in ("high", "medium", "low", "max", "true", "false", ""):
        raise BadRequest('invalid think value (must be "high", "medium", "low", "max", true, or false)')
    return None if think in (None, "") else think not in (False, "false")


def _asks(body: dict[str, Any]) -> frozenset[str]:
    """What a body asks for beyond text; what clients send by habit (`false`, empty) asks for nothing."""
    top = body.get("top_logprobs")
    if top is not None and (isinstance(top, bool) or not isinstance(top, int) or not 0 <= top <= 20):
        raise BadRequest("top_logprobs must be between 0 and 20")
    asked = {
        "thinking": bool(_think(body)),
        "tools": bool(fields.array(body, "tools")),
        "images": bool(fields.array(body, "images")),
        "format": body.get("format") not in (None, ""),
        "logprobs": fields.flag(body, "logprobs", False) or bool(top),
    }
    return frozenset(word for word, true in asked.items() if true)


def render_generate(model: str, clock: Clock) -> tuple[RenderEvent, Fold]:
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


def render_chat(model: str, clock: Clock) -> tuple[RenderEvent, Fold]:
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
