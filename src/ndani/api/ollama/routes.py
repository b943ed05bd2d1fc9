"""Ollama's routes: each parses the body, calls one method of the service, and formats what comes back.

Parsing is in `requests` and `request_fields`, formatting in `responses` and `show`. Routes for embeddings are in `embed`,
those that make models in `create`, those of Ollama's cloud in `cloud`.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ndani import OLLAMA_API, __version__
from ndani.api.edge import fields, json_response, long_work, streaming
from ndani.api.edge.described_fields import read
from ndani.api.edge.ignored_fields import ignored_headers
from ndani.api.ollama import bodies, requests, responses, timestamps
from ndani.api.ollama.show import format_show, parse_show
from ndani.errors import BadName, BadRequest
from ndani.service import Service


class OllamaRoutes:
    """Ollama's routes for answers and for models, over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._clock = timestamps.Timestamps()

    async def root(self, request: Request) -> Response:
        """GET /: what a browser shows, and what every Ollama client requests first."""
        return PlainTextResponse("Ollama is running")

    async def version(self, request: Request) -> Response:
        """GET /api/version: the version of Ollama's API that is served, and our own version."""
        return json_response.respond({"version": OLLAMA_API, "ndani": __version__})

    async def status(self, request: Request) -> Response:
        """GET /api/status: there is no cloud here."""
        return json_response.respond({"cloud": {"disabled": True, "source": "config"}})

    async def generate(self, request: Request) -> Response:
        """POST /api/generate."""
        body = await read(request, bodies.GenerateBody)
        parsed, ignored_options = requests.parse_generate(body)
        response_format = responses.format_generate(parsed.model, self._clock)
        sink = streaming.open_sink(fields.flag(body, "stream", True), response_format)
        events, ignored_config = await self._service.answers.generate(parsed, sink)
        headers = ignored_headers([*ignored_options, *ignored_config])
        return await streaming.respond(events, sink, response_format, headers)

    async def chat(self, request: Request) -> Response:
        """POST /api/chat."""
        body = await read(request, bodies.ChatBody)
        parsed, ignored_options = requests.parse_chat(body)
        response_format = responses.format_chat(parsed.model, self._clock)
        sink = streaming.open_sink(fields.flag(body, "stream", True), response_format)
        events, ignored_config = await self._service.answers.chat(parsed, sink)
        headers = ignored_headers([*ignored_options, *ignored_config])
        return await streaming.respond(events, sink, response_format, headers)

    async def tags(self, request: Request) -> Response:
        """GET /api/tags."""
        return await json_response.respond_large(responses.format_models(await self._service.models.installed()))

    async def ps(self, request: Request) -> Response:
        """GET /api/ps."""
        return json_response.respond(responses.format_residents(self._service.models.residents(), time.time()))

    async def show(self, request: Request) -> Response:
        """POST /api/show."""
        body = await read(request, bodies.ShowBody)
        name = _required(fields.model(body))
        show_request = parse_show(body)
        description = await self._service.models.show(name)
        # With verbose this is megabytes; in a thread, so that it does not block the event loop.
        response = await asyncio.to_thread(format_show, description, show_request)
        if request.headers.get("user-agent", "").startswith("GitHubCopilotChat/"):
            # Copilot lists models by this field. The publisher's value is the same for every tag and for every derived model.
            response["model_info"]["general.basename"] = name
        return await json_response.respond_large(response)

    async def copy(self, request: Request) -> Response:
        """POST /api/copy."""
        body = await read(request, bodies.CopyBody)
        await self._service.models.copy(fields.text(body, "source"), fields.text(body, "destination"))
        return Response(status_code=200)

    async def delete(self, request: Request) -> Response:
        """DELETE /api/delete."""
        body = await read(request, bodies.DeleteBody)
        await self._service.models.delete(_required(fields.model(body, exact=True)))
        return Response(status_code=200)

    async def pull(self, request: Request) -> Response:
        """POST /api/pull."""
        body = await read(request, bodies.PullBody)
        name = fields.model(body)
        if not name:
            raise BadName("invalid model name")
        insecure, stream = fields.flag(body, "insecure", False), fields.flag(body, "stream", True)
        return await long_work.respond(partial(self._service.models.pull, name, insecure), stream, responses.format_step, responses.ERRORS)

    async def push(self, request: Request) -> Response:
        """POST /api/push."""
        body = await read(request, bodies.PushBody)
        name, insecure = _required(fields.model(body, exact=True)), fields.flag(body, "insecure", False)
        stream = fields.flag(body, "stream", True)
        return await long_work.respond(partial(self._service.models.push, name, insecure), stream, responses.format_step, responses.ERRORS)


def _required(name: str) -> str:
    if not name:
        raise BadRequest("model is required")
    return name
