"""Our own route to add a file of this machine to the store by a hard link, instead of uploading its bytes."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from ndani.api.edge import fields, json_response, long_work
from ndani.api.edge.described_fields import read
from ndani.api.ollama import responses
from ndani.api.ours.bodies import HandoverBody
from ndani.service import Service


class HandoverRoutes:
    """The handover route, over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def hand_over(self, request: Request) -> Response:
        """POST /api/handover: without `place`, returns a place to link a file to; with it, makes a blob of the file linked there."""
        body = await read(request, HandoverBody)
        place = fields.text(body, "place")
        if not place:
            return json_response.respond({"place": await self._service.models.prepare_handover()})
        stream = fields.flag(body, "stream", True)
        work = partial(self._service.models.accept_handover, place)
        return await long_work.respond(work, stream, responses.format_step, responses.ERRORS)
