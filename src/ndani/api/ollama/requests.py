"""Parses bodies of /api/generate and /api/chat. Pure functions; the service refuses what a model cannot do.

Fields that other routes have too are in `request_fields`, and the generic readers in `edge/fields`.
"""

from __future__ import annotations

from typing import Any

from ndani.api.edge import fields
from ndani.api.ollama import request_fields
from ndani.errors import BadRequest
from ndani.types import ChatRequest, GenerateRequest


def parse_generate(body: dict[str, Any]) -> tuple[GenerateRequest, list[str]]:
    """Parse a body of /api/generate; also returns the names of ignored options."""
    sampling, ignored, options_error = request_fields.options(body)
    request = GenerateRequest(
        model=fields.model(body),
        prompt=fields.text(body, "prompt"),
        system=fields.text(body, "system"),
        template=fields.text(body, "template"),
        suffix=fields.text(body, "suffix"),
        raw=fields.flag(body, "raw", False),
        context=request_fields.token_ids(body, "context"),
        sampling=sampling,
        keep_alive=request_fields.keep_alive(body),
        truncate=fields.flag(body, "truncate", True),
        shift=fields.flag(body, "shift", True),
        render_only=fields.flag(body, "_debug_render_only", False),
        think=_think(body),
        features=_features(body),
        options_error=options_error,
    )
    return request, ignored


def parse_chat(body: dict[str, Any]) -> tuple[ChatRequest, list[str]]:
    """Parse a body of /api/chat; also returns the names of ignored options."""
    name = fields.model(body)
    if not name:
        raise BadRequest("model is required")
    sampling, ignored, options_error = request_fields.options(body)
    messages, message_features = request_fields.messages(body)
    request = ChatRequest(
        model=name,
        messages=messages,
        sampling=sampling,
        keep_alive=request_fields.keep_alive(body),
        truncate=fields.flag(body, "truncate", True),
        shift=fields.flag(body, "shift", True),
        render_only=fields.flag(body, "_debug_render_only", False),
        think=_think(body),
        features=_features(body) | message_features,
        options_error=options_error,
    )
    return request, ignored


def _think(body: dict[str, Any]) -> bool | None:
    """The field `think`: None where it is missing or an empty text; a level such as "high" is true."""
    think = body.get("think")
    if think is not None and not isinstance(think, (bool, str)):
        raise BadRequest('think must be a boolean or string ("high", "medium", "low", "max", true, or false)')
    if isinstance(think, str) and think not in ("high", "medium", "low", "max", "true", "false", ""):
        raise BadRequest('invalid think value (must be "high", "medium", "low", "max", true, or false)')
    return None if think in (None, "") else think not in (False, "false")


def _features(body: dict[str, Any]) -> frozenset[str]:
    """The features that a body needs beyond text. Some clients always send these fields: `false` or an empty value needs nothing."""
    top = body.get("top_logprobs")
    if top is not None and (isinstance(top, bool) or not isinstance(top, int) or not 0 <= top <= 20):
        raise BadRequest("top_logprobs must be between 0 and 20")
    needed = {
        "thinking": bool(_think(body)),
        "tools": bool(fields.array(body, "tools")),
        "images": bool(fields.array(body, "images")),
        "format": body.get("format") not in (None, ""),
        "logprobs": fields.flag(body, "logprobs", False) or bool(top),
    }
    return frozenset(feature for feature, is_needed in needed.items() if is_needed)
