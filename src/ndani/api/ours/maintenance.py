"""Our own routes for store maintenance: verify and prune. Each responds with a stream of lines, as a pull does."""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ndani.api.edge import fields, json_response, long_work
from ndani.api.edge.described_fields import read
from ndani.api.ollama import responses
from ndani.api.ours.bodies import PruneBody, VerifyBody
from ndani.errors import BadRequest
from ndani.service import Service
from ndani.service.maintenance import MaintenanceStep
from ndani.store.layout import normalize_digest
from ndani.store.maintenance import Damage, PruneResult, UnusedFile, VerifyResult


class MaintenanceRoutes:
    """The maintenance routes, over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def verify(self, request: Request) -> Response:
        """POST /api/verify: `model` (empty: all), `repair`, `insecure`, `digests` (check only these files)."""
        body = await read(request, VerifyBody)
        digests = frozenset(normalize_digest(digest) for digest in _texts(body, "digests"))
        repair, insecure = fields.flag(body, "repair", False), fields.flag(body, "insecure", False)
        work = partial(self._service.maintenance.verify, fields.model(body), digests, repair, insecure)
        return await long_work.respond(work, fields.flag(body, "stream", True), _format_step, responses.ERRORS)

    async def prune(self, request: Request) -> Response:
        """POST /api/prune; with `dry_run` nothing is removed."""
        body = await read(request, PruneBody)
        work = partial(self._service.maintenance.prune, fields.flag(body, "dry_run", False))
        return await long_work.respond(work, fields.flag(body, "stream", True), _format_step, responses.ERRORS)


def _texts(body: dict[str, Any], name: str) -> list[str]:
    texts = body.get(name)
    if texts is None:
        return []
    if not isinstance(texts, list) or not all(isinstance(element, str) for element in texts):
        raise BadRequest(f"{name} must be an array of strings")
    return texts


def _format_step(step: MaintenanceStep) -> bytes:
    if isinstance(step, Damage):
        values: dict[str, Any] = {"status": "damaged", **_damage(step)}
    elif isinstance(step, VerifyResult):
        damaged = [_damage(damage) for damage in step.damaged]
        values = {"status": "success", "files": step.blobs, "size": step.size, "damaged": damaged}
    elif isinstance(step, UnusedFile):
        values = {"status": "unused", "file": step.file, "size": step.size}
    elif isinstance(step, PruneResult):
        values = {"status": "success", "files": step.blobs, "unfinished": step.unfinished, "freed": step.freed}
    else:
        return responses.format_step(step)
    return json_response.encode(values)


def _damage(damage: Damage) -> dict[str, Any]:
    values = {"digest": damage.digest, "problem": damage.problem, "models": list(damage.models)}
    return {key: value for key, value in values.items() if value}
