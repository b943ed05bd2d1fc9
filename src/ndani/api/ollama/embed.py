"""Ollama's routes for embeddings: bodies are parsed here, and vectors formatted. `service/embed.py` does the work."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ndani.api.edge import fields, json_response
from ndani.api.edge.described_fields import read
from ndani.api.edge.ignored_fields import ignored_headers
from ndani.api.edge.rounded import rounded
from ndani.api.ollama import request_fields
from ndani.api.ollama.bodies import EmbedBody, EmbeddingsBody
from ndani.errors import BadRequest, NotFound
from ndani.service import Service
from ndani.types import EmbedRequest, Sampling, Vectors

#: Options that have an effect although nothing is sampled.
_EFFECTIVE_OPTIONS = ("num_ctx", "num_batch", "num_thread", "num_gpu", "main_gpu", "use_mmap")


class EmbedRoutes:
    """Ollama's two routes for embeddings, over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def embed(self, request: Request) -> Response:
        """POST /api/embed: a vector for each text of `input`, each of length 1."""
        parsed, ignored = parse_embed(await read(request, EmbedBody))
        embeddings = await self._service.embeddings.embed(parsed)
        body = format_embed(parsed.model, embeddings) | {"embeddings": await _rounded(embeddings.vectors)}
        return await json_response.respond_large(body, ignored_headers(ignored))

    async def embeddings(self, request: Request) -> Response:
        """POST /api/embeddings, the older form: one `prompt`, one vector."""
        parsed, ignored = parse_embeddings(await read(request, EmbeddingsBody))
        embeddings = await self._service.embeddings.embed(parsed)
        body: dict[str, Any] = {"embedding": embeddings.vectors[0] if embeddings.vectors else []}
        if embeddings.truncated:
            body["truncated"] = embeddings.truncated
        return json_response.respond(body, headers=ignored_headers(ignored))


def parse_embed(body: dict[str, Any]) -> tuple[EmbedRequest, list[str]]:
    """Parse a body of /api/embed; also returns the names of ignored options. An empty text or list, or no `input`, gives no texts."""
    name, texts = fields.model(body), body.get("input")
    if not name:
        raise NotFound("model '' not found")
    if texts is None or texts == "":
        texts = []
    elif isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, list) or not set(map(type, texts)) <= {str}:
        raise BadRequest("invalid input type: input must be a string or an array of strings")
    dimensions = body.get("dimensions")
    if dimensions is not None and (isinstance(dimensions, bool) or not isinstance(dimensions, int) or not 0 <= dimensions < 1 << 31):
        raise BadRequest("dimensions must be a whole number; leave it out for all that the model has")
    sampling, ignored, options_error = _sampling(body)
    request = EmbedRequest(
        model=name,
        texts=tuple(texts),
        truncate=fields.flag(body, "truncate", True),
        dimensions=dimensions or 0,
        sampling=sampling,
        keep_alive=request_fields.keep_alive(body),
        options_error=options_error,
    )
    return request, ignored


def parse_embeddings(body: dict[str, Any]) -> tuple[EmbedRequest, list[str]]:
    """Parse a body of /api/embeddings; also returns the names of ignored options."""
    name, prompt = fields.model(body), fields.text(body, "prompt")
    if not name:
        raise BadRequest("model is required")
    sampling, ignored, options_error = _sampling(body)
    request = EmbedRequest(
        model=name,
        texts=(prompt,) if prompt else (),
        sampling=sampling,
        keep_alive=request_fields.keep_alive(body),
        options_error=options_error,
    )
    return request, ignored


def _sampling(body: dict[str, Any]) -> tuple[Sampling, list[str], str]:
    """The options, the names of ignored ones (here all that only affect sampling, too), and what is wrong with a value."""
    sampling, _, options_error = request_fields.options(body)
    options = body.get("options") or {}
    ignored = [name for name, value in options.items() if value is not None and name not in _EFFECTIVE_OPTIONS]
    return sampling, ignored, options_error


def format_embed(model: str, embeddings: Vectors) -> dict[str, Any]:
    """The response body of /api/embed. `truncated` is an addition of ours: how many tokens of the texts were not read."""
    body: dict[str, Any] = {"model": model, "embeddings": embeddings.vectors}
    usage = embeddings.usage
    counts = {
        "total_duration": usage.total_ns,
        "load_duration": usage.load_ns,
        "prompt_eval_count": usage.prompt_tokens,
        "truncated": embeddings.truncated,
    }
    return body | ({key: value for key, value in counts.items() if value} if embeddings.vectors else {})


async def _rounded(vectors: tuple[tuple[float, ...], ...]) -> list[list[float]]:
    time_slice, rows = json_response.TimeSlice(), []
    for vector in vectors:
        rows.append(rounded(vector))
        await time_slice.yield_if_over()
    return rows
