"""Ollama's routes that make models: upload of blobs, and /api/create, whose body is parsed here. `service/models.py` does the work."""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ndani.api.edge import fields, json_response, long_work
from ndani.api.edge.described_fields import read
from ndani.api.ollama import request_fields, responses
from ndani.api.ollama.bodies import CreateBody
from ndani.errors import BadName, BadRequest, Cancelled, Unsupported
from ndani.service import Service
from ndani.store.create import Recipe
from ndani.store.modelfile import ROLES


class CreateRoutes:
    """Ollama's routes that make models, over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def has_blob(self, request: Request) -> Response:
        """HEAD /api/blobs/{digest}: 200 when the store has the blob, 404 when not."""
        if self._service.models.has_blob(request.path_params["digest"]):
            return Response(status_code=200)
        return Response(status_code=404, media_type=json_response.JSON)

    async def upload_blob(self, request: Request) -> Response:
        """POST /api/blobs/{digest}: 201 when the body was stored, 200 when the store had the blob before."""
        content_length = request.headers.get("content-length", "")
        size = int(content_length) if content_length.isdigit() else 0
        try:
            new = await self._service.models.receive(request.path_params["digest"], size, request.stream())
        except ClientDisconnect:
            raise Cancelled("request canceled") from None
        return Response(status_code=201 if new else 200)

    async def create(self, request: Request) -> Response:
        """POST /api/create."""
        body = await read(request, CreateBody)
        name, base, recipe = parse_create(body)
        stream = fields.flag(body, "stream", True)
        work = partial(self._service.models.create, name, base, recipe)
        return await long_work.respond(work, stream, responses.format_step, responses.ERRORS)


def parse_create(body: dict[str, Any]) -> tuple[str, str, Recipe]:
    """Parse a body of /api/create: the new model's name, the base model's name (or empty), and the recipe of what changes."""
    name = fields.model(body, exact=True)
    if not name:
        raise BadName("invalid model name")
    _refuse_unsupported(body)
    messages = request_fields.messages(body, ROLES)
    if any(message.images or message.tool_calls for message in messages):
        raise Unsupported("messages of a model hold text alone in this version; leave out images and tool_calls")
    recipe = Recipe(
        files=_digests(body, "files"),
        adapters=_digests(body, "adapters"),
        drafts=_digests(body, "draft_files"),
        template=fields.text(body, "template"),
        system=fields.text(body, "system"),
        licenses=_licenses(body.get("license")),
        parameters=fields.record(body, "parameters"),
        messages=messages,
        requires=fields.text(body, "requires"),
        renderer=fields.text(body, "renderer"),
        parser=fields.text(body, "parser"),
        quantize=fields.text(body, "quantize") or fields.text(body, "quantization"),
    )
    return name, fields.text(body, "from").strip(), recipe


def _refuse_unsupported(body: dict[str, Any]) -> None:
    """Refuse fields that this version does not support, unless they are empty."""
    if fields.text(body, "draft_quantize"):
        raise Unsupported("draft_quantize requires a DRAFT model, and DRAFT is not in this version of ndani")
    for name in ("remote_host", "remote_model"):
        if fields.text(body, name):
            raise Unsupported(f"{name} is not in this version: every model runs on this machine")
    if fields.record(body, "info"):
        raise Unsupported("info is not in this version: what a model is stands in its weights; leave it out")


def _digests(body: dict[str, Any], name: str) -> dict[str, str]:
    digests = fields.record(body, name)
    if not all(isinstance(digest, str) for digest in digests.values()):
        raise BadRequest(f"{name} must be an object of digests by file name")
    return digests


def _licenses(value: Any) -> tuple[str, ...]:
    """The license texts; the field holds one text, or a list of them."""
    if value is None:
        return ()
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise BadRequest("license must be a string or an array of strings")
    return tuple(text for text in texts if text)
