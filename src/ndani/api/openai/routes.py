"""OpenAI's routes: each parses the body, calls one method of the service, and formats what comes back."""

from __future__ import annotations

from functools import partial

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ndani import names
from ndani.api.edge import json_response, request_body
from ndani.api.edge.ignored_fields import ignored_headers
from ndani.api.openai import choices, requests
from ndani.api.openai.chat_format import format_chat
from ndani.api.openai.completion_format import format_completion
from ndani.api.openai.embeddings import format_embeddings
from ndani.api.openai.objects import ModelList, ModelObject
from ndani.errors import BadRequest, Cancelled
from ndani.service import Service
from ndani.types import Model


class OpenAIRoutes:
    """OpenAI's routes for answers, vectors and models, over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        parsed, body, ignored = requests.parse_chat(await request_body.decode_exact(request))
        wanted = requests.each_choice(parsed, body.n or 1)
        choices_format = format_chat(parsed.model, len(wanted), requests.wants_usage(body))
        asks = [partial(self._service.answers.chat, one) for one in wanted]
        return await choices.respond(asks, bool(body.stream), choices_format, ignored)

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        parsed, body, ignored = requests.parse_completion(await request_body.decode_exact(request))
        n = body.n or 1
        wanted = [one for prompt in parsed for one in requests.each_choice(prompt, n)]
        echoed = [one.prompt if body.echo else "" for one in wanted]
        choices_format = format_completion(parsed[0].model, echoed, n, requests.wants_usage(body))
        asks = [partial(self._service.answers.generate, one) for one in wanted]
        return await choices.respond(asks, bool(body.stream), choices_format, ignored)

    async def embeddings(self, request: Request) -> Response:
        """POST /v1/embeddings."""
        parsed, as_base64, ignored = requests.parse_embeddings(await request_body.decode_exact(request))
        vectors = await self._service.embeddings.embed(parsed)
        content = await format_embeddings(parsed.model, vectors, as_base64)
        return Response(content, 200, ignored_headers(ignored), json_response.JSON)

    async def models(self, request: Request) -> Response:
        """GET /v1/models: the newest first; an empty list where there is none."""
        installed = await self._service.models.installed()
        return json_response.respond(ModelList("list", [_model_object(model, model.name) for model in installed]))

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{model}; the answer has the name as the client spelt it."""
        name = request.path_params["model"]
        description = await self._service.models.show(name)
        return json_response.respond(_model_object(description.model, name))

    async def transcriptions(self, request: Request) -> Response:
        """POST /v1/audio/transcriptions: refused, after the file has been read, for many clients send all of it before they listen."""
        try:
            async for _ in request.stream():
                pass
        except ClientDisconnect:
            raise Cancelled("request canceled") from None
        raise BadRequest("transcription is not supported; no model here hears, so make text of the audio elsewhere")


def _model_object(model: Model, name: str) -> ModelObject:
    return ModelObject(name, "model", int(model.modified), names.parse(model.name).namespace)
