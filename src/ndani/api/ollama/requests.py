"""Parses bodies of /api/generate and /api/chat. Pure functions; the service refuses what a model cannot do.

Fields that other routes have too are in `request_fields`, and the generic readers in `edge/fields`.
"""

from __future__ import annotations

from typing import Any

from ndani.api.edge import content, fields
from ndani.api.ollama import request_fields
from ndani.errors import BadRequest
from ndani.types import ChatRequest, GenerateRequest


def parse_generate(body: dict[str, Any]) -> tuple[GenerateRequest, list[str]]:
    """Parse a body of /api/generate; also returns the names of ignored options."""
    shared, ignored = _shared(body)
    request = GenerateRequest(
        model=fields.model(body),
        prompt=fields.text(body, "prompt"),
        system=fields.text(body, "system"),
        template=fields.text(body, "template"),
        suffix=fields.text(body, "suffix"),
        raw=fields.flag(body, "raw", False),
        images=request_fields.images(body),
        context=request_fields.token_ids(body, "context"),
        **shared,
    )
    return request, ignored


def parse_chat(body: dict[str, Any]) -> tuple[ChatRequest, list[str]]:
    """Parse a body of /api/chat; also returns the names of ignored options."""
    name = fields.model(body)
    if not name:
        raise BadRequest("model is required")
    shared, ignored = _shared(body)
    request = ChatRequest(
        model=name,
        messages=request_fields.messages(body),
        tools=request_fields.tools(body),
        tool_choice=content.parse_tool_choice(body.get("tool_choice")),
        **shared,
    )
    return request, ignored


def _shared(body: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The fields of an `AnswerRequest` beside its model, and the names of ignored options."""
    sampling, ignored, options_error = request_fields.options(body)
    shared = {
        "sampling": sampling,
        "keep_alive": request_fields.keep_alive(body),
        "truncate": fields.flag(body, "truncate", True),
        "shift": fields.flag(body, "shift", True),
        "render_only": fields.flag(body, "_debug_render_only", False),
        "think": request_fields.think(body),
        "constraint": request_fields.constraint(body),
        "logprobs": request_fields.logprobs(body),
        "options_error": options_error,
    }
    return shared, ignored
