"""Ollama's routes: each parses, calls one verb of the service, and renders. The dialect itself is `ollama.py`."""

from __future__ import annotations

import asyncio
import time
from functools import partial

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ndani import OLLAMA_API, __version__
from ndani.api.edge import fields, json_response, long_work, request_body, streaming
from ndani.api.ollama import request_fields, requests, responses, timestamps
from ndani.api.ollama.show import parse_show, render_show
from ndani.errors import BadName, BadRequest
from ndani.service import Service


class OllamaRoutes:
    """The native routes over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._clock = timestamps.Timestamps()

    async def root(self, request: Request) -> Response:
        """What a browser sees, and what every Ollama client asks first."""
        return PlainTextResponse("Ollama is running")

    async def version(self, request: Request) -> Response:
        """The level of Ollama's API, and our own version."""
        return json_response.reply({"version": OLLAMA_API, "ndani": __version__})

    async def status(self, request: Request) -> Response:
        """There is no cloud here."""
        return json_response.reply({"cloud": {"disabled": True, "source": "config"}})

    async def generate(self, request: Request) -> Response:
        """POST /api/generate."""
        body = await request_body.decode(request)
        asked, ignored = requests.parse_generate(body)
        line, fold = responses.render_generate(asked.model, self._clock)
        sink = streaming.open_sink(fields.flag(body, "stream", True), line)
        events, more = await self._service.answers.generate(asked, sink)
        return await streaming.respond(events, sink, line, fold, request_fields.ignored_headers([*ignored, *more]))

    async def chat(self, request: Request) -> Response:
        """POST /api/chat."""
        body = await request_body.decode(request)
        asked, ignored = requests.parse_chat(body)
        line, fold = responses.render_chat(asked.model, self._clock)
        sink = streaming.open_sink(fields.flag(body, "stream", True), line)
        events, more = await self._service.answers.chat(asked, sink)
        return await streaming.respond(events, sink, line, fold, request_fields.ignored_headers([*ignored, *more]))

    async def tags(self, request: Request) -> Response:
        """GET /api/tags."""
        return await json_response.reply_long(responses.render_models(await self._service.models.installed()))

    async def ps(self, request: Request) -> Response:
        """GET /api/ps."""
        return json_response.reply(responses.render_residents(self._service.models.residents(), time.time()))

    async def show(self, request: Request) -> Response:
        """POST /api/show."""
        body = await request_body.decode(request)
        name = _required(fields.model(body))
        asked = parse_show(body)
        shown = await self._service.models.show(name)
        # With verbose it is megabytes, which others must not wait for.
        said = await asyncio.to_thread(render_show, shown, asked)
        if request.headers.get("user-agent", "").startswith("GitHubCopilotChat/"):
            # It lists models by this; the publisher's own word is the same for every tag, and for what was made of it.
            said["model_info"]["general.basename"] = name
        return await json_response.reply_long(said)

    async def copy(self, request: Request) -> Response:
        """POST /api/copy."""
        body = await request_body.decode(request)
        await self._service.models.copy(fields.text(body, "source"), fields.text(body, "destination"))
        return Response(status_code=200)

    async def delete(self, request: Request) -> Response:
        """DELETE /api/delete."""
        body = await request_body.decode(request)
        await self._service.models.delete(_required(fields.model(body, exact=True)))
        return Response(status_code=200)

    async def pull(self, request: Request) -> Response:
        """POST /api/pull."""
        body = await request_body.decode(request)
        name = fields.model(body)
        if not name:
            raise BadName("invalid model name")
        insecure, stream = fields.flag(body, "insecure", False), fields.flag(body, "stream", True)
        return await long_work.respond(partial(self._service.models.pull, name, insecure), stream, long_work.step_line)

    async def push(self, request: Request) -> Response:
        """POST /api/push."""
        body = await request_body.decode(request)
        name, insecure = _required(fields.model(body, exact=True)), fields.flag(body, "insecure", False)
        stream = fields.flag(body, "stream", True)
        return await long_work.respond(partial(self._service.models.push, name, insecure), stream, long_work.step_line)


def _required(name: str) -> str:
    if not name:
        raise BadRequest("model is required")
    return name
