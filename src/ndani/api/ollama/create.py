"""The routes that make models: blobs in, a create request read field by field, and its statuses out."""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ndani.api.edge import fields, json_response, long_work, request_body
from ndani.api.ollama import request_fields
from ndani.errors import BadName, BadRequest, Cancelled, Unsupported
from ndani.service import Service
from ndani.store.create import Recipe
from ndani.store.modelfile import ROLES


class CreateRoutes:
    """The routes over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def has_blob(self, request: Request) -> Response:
        """HEAD /api/blobs/{digest}: 200 when the blob is here, 404 when not."""
        if self._service.models.has_blob(request.path_params["digest"]):
            return Response(status_code=200)
        return Response(status_code=404, media_type=json_response.JSON)

    async def send_blob(self, request: Request) -> Response:
        """POST /api/blobs/{digest}: 201 when the body was that blob, 200 when it was here before."""
        length = request.headers.get("content-length", "")
        try:
            new = await self._service.models.receive(
                request.path_params["digest"], int(length) if length.isdigit() else 0, request.stream()
            )
        except ClientDisconnect:
            raise Cancelled("request canceled") from None
        return Response(status_code=201 if new else 200)

    async def create(self, request: Request) -> Response:
        """POST /api/create."""
        body = await request_body.decode(request)
        name, base, recipe = parse_create(body)
        stream = fields.flag(body, "stream", True)
        return await long_work.respond(partial(self._service.models.create, name, base, recipe), stream, long_work.step_line)


def parse_create(body: dict[str, Any]) -> tuple[str, str, Recipe]:
    """A body of /api/create: the name to be, the name it is made from (or nothing), and what is laid over that."""
    name = fields.model(body, exact=True)
    if not name:
        raise BadName("invalid model name")
    _refuse_later(body)
    messages, more = request_fields.messages(body, ROLES)
    if more:
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


def _refuse_later(body: dict[str, Any]) -> None:
    """What later versions bring, refused when it asks for something."""
    if fields.text(body, "draft_quantize"):
        raise Unsupported("draft_quantize requires a DRAFT model, and DRAFT is not in this version of ndani")
    for name in ("remote_host", "remote_model"):
        if fields.text(body, name):
            raise Unsupported(f"{name} is not in this version: every model runs on this machine")
    if fields.record(body, "info"):
        raise Unsupported("info is not in this version: what a model is stands in its weights; leave it out")


def _digests(body: dict[str, Any], name: str) -> dict[str, str]:
    found = fields.record(body, name)
    if not all(isinstance(digest, str) for digest in found.values()):
        raise BadRequest(f"{name} must be an object of digests by file name")
    return found


def _licenses(value: Any) -> tuple[str, ...]:
    """One text, or several."""
    texts = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise BadRequest("license must be a string or an array of strings")
    return tuple(text for text in texts if text)
