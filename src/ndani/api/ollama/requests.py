"""Bodies of /api/generate and /api/chat as requests of ours. Pure; what a model cannot do is for the service to refuse."""

from __future__ import annotations

from typing import Any

from ndani.api.edge import fields
from ndani.api.ollama import request_fields
from ndani.errors import BadRequest
from ndani.types import ChatRequest, GenerateRequest


def parse_generate(body: dict[str, Any]) -> tuple[GenerateRequest, list[str]]:
    """A body of /api/generate, and the options in it that nothing obeys."""
    sampling, ignored, wrong = request_fields.options(body)
    request = GenerateRequest(
        model=fields.model(body),
        prompt=fields.text(body, "prompt"),
        system=fields.text(body, "system"),
        template=fields.text(body, "template"),
        suffix=fields.text(body, "suffix"),
        raw=fields.flag(body, "raw", False),
        context=request_fields.numbers(body, "context"),
        sampling=sampling,
        keep_alive=request_fields.keep_alive(body),
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
    sampling, ignored, wrong = request_fields.options(body)
    messages, more = request_fields.messages(body)
    request = ChatRequest(
        model=name,
        messages=messages,
        sampling=sampling,
        keep_alive=request_fields.keep_alive(body),
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
