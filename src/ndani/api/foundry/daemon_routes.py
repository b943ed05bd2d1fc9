"""The routes of the daemon that SDKs before version 1 and older command lines of Foundry Local talk to."""

from __future__ import annotations

import asyncio
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from ndani.api.edge import json_response, long_work, request_body
from ndani.api.edge.streaming import StreamedResponse
from ndani.api.foundry import requests
from ndani.api.foundry.bodies import DaemonStatus, TokenCount
from ndani.api.foundry.download import ERRORS, PercentLines
from ndani.api.foundry.responses import error_body, format_models, uri_of
from ndani.api.foundry.service_routes import endpoints, loaded_ids
from ndani.api.openai.requests import parse_chat
from ndani.errors import BadRequest, NdaniError, NotFound, Unsupported
from ndani.names import Name
from ndani.service import Service, model_ids
from ndani.service.available import available, is_pullable, pullable_name

#: What the SDK looks for in the error of a load, to say that the model is to be downloaded first.
NOT_DOWNLOADED = "No OpenAIService provider found for modelName"


class FoundryDaemonRoutes:
    """The daemon's routes, over one service of ours."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def status(self, request: Request) -> Response:
        """GET /openai/status."""
        return json_response.respond(DaemonStatus(endpoints(request), str(self._service.settings.models)))

    async def catalogue(self, request: Request) -> Response:
        """GET /foundry/list: what is here, and what can be downloaded; a bare array."""
        return await json_response.respond_large(format_models(await available(self._service.models)))

    async def models(self, request: Request) -> Response:
        """GET /openai/models: the ids of the models that are here."""
        names = await asyncio.to_thread(self._service.store.names)
        return json_response.respond(list(model_ids.ids(names).values()))

    async def loaded(self, request: Request) -> Response:
        """GET /openai/loadedmodels: the ids of the models in memory."""
        return json_response.respond(loaded_ids(self._service))

    async def load(self, request: Request) -> Response:
        """GET /openai/load/{name}: `ttl` (seconds), `unload` (false: never by itself), `ep` (cpu, or nothing)."""
        requests.require_no_foreign_page(request.headers)
        query, name = request.query_params, request.path_params["name"]
        keep_alive, sampling = requests.keep_alive(query), requests.sampling(query)
        try:
            await self._service.loading.load(name, _missing(name), keep_alive, sampling)
        except NotFound as error:
            if is_pullable(name):
                raise BadRequest(str(error)) from None
            raise
        return Response(status_code=200)

    async def unload(self, request: Request) -> Response:
        """GET /openai/unload/{name}: as soon as its answers in progress have ended, whatever is left of its `ttl`.

        So `force`, which asks for just that, changes nothing: who has a model unloaded wants its memory.
        """
        requests.require_no_foreign_page(request.headers)
        requests.flag(request.query_params, "force")
        name = request.path_params["name"]
        await self._service.loading.unload(name, _missing(name))
        return Response(status_code=200)

    async def unload_all(self, request: Request) -> Response:
        """GET /openai/unloadall."""
        requests.require_no_foreign_page(request.headers)
        await self._service.loading.unload_all()
        return Response(status_code=200)

    async def gpu(self, request: Request) -> Response:
        """GET /openai/getgpudevice: the engine's first one."""
        return json_response.respond(0)

    async def choose_gpu(self, request: Request) -> Response:
        """GET /openai/setgpudevice/{id}: only the one that is used anyway."""
        requests.require_no_foreign_page(request.headers)
        if request.path_params["id"] != "0":
            raise Unsupported("another GPU than 0 cannot be chosen for all models; set the option main_gpu in a request to /api/chat")
        return Response(status_code=200)

    async def count_tokens(self, request: Request) -> Response:
        """POST /v1/chat/completions/tokenizer/encode/count: the tokens that a chat's prompt has."""
        parsed, _, _ = parse_chat(await request_body.decode_exact(request))
        return json_response.respond(TokenCount(await self._service.answers.count_tokens(parsed)))

    async def register(self, request: Request) -> Response:
        """POST /openai/register: refused, since questions would go to another server."""
        raise Unsupported("other servers cannot be registered: every model that is served here runs on this machine")

    async def download(self, request: Request) -> Response:
        """POST /openai/download: lines of progress, then one object that says whether it succeeded."""
        try:
            body = requests.parse_download(await request_body.decode_exact(request))
            name = self._to_download(body.model.name.strip(), body.model.uri)
            steps = long_work.steps_of(partial(self._service.models.pull, str(name), False))
            first = await anext(steps)
        except NdaniError as error:
            # The SDK reads no status, but looks in the body for the object that ends a download.
            result = {"success": False, "errorMessage": str(error), "error": error_body(error).error}
            return json_response.respond(result, error.status)
        return StreamedResponse(first, steps, PercentLines().format, "text/plain", ERRORS)

    def _to_download(self, text: str, uri: str) -> Name:
        """The name of the model that is meant: one that is here, or one to pull. Raises BadRequest, BadName."""
        try:
            name = self._service.resolver.find(text, missing="").name
        except NotFound:
            name = pullable_name(text)
        if uri and uri != uri_of(name):
            raise BadRequest(f"model.Uri is not that of {text!r}; take both from GET /foundry/list, or leave Uri out")
        return name


def _missing(name: str) -> str:
    return f"{NOT_DOWNLOADED}: {name}; download it first"
