"""Ollama's routes for embeddings: bodies to requests, vectors to JSON. The work is the service's."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ndani.api.edge import fields, json_response, request_body
from ndani.api.ollama import request_fields
from ndani.errors import BadRequest, NotFound
from ndani.service import Service
from ndani.types import EmbedRequest, Sampling, Vectors

#: Options that mean something where nothing is sampled.
_OBEYED = ("num_ctx", "num_batch", "num_thread", "num_gpu", "main_gpu", "use_mmap")


class EmbedRoutes:
    """The routes over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def embed(self, request: Request) -> Response:
        """POST /api/embed: a vector for each text of `input`, each of length 1."""
        asked, ignored = parse_embed(await request_body.decode(request))
        made = await self._service.embeddings.embed(asked)
        rendered = render_embed(asked.model, made) | {"embeddings": await _shortened(made.vectors)}
        return await json_response.reply_long(rendered, request_fields.ignored_headers(ignored))

    async def embeddings(self, request: Request) -> Response:
        """POST /api/embeddings, the older form: one `prompt`, one vector."""
        asked, ignored = parse_embeddings(await request_body.decode(request))
        made = await self._service.embeddings.embed(asked)
        cut = {"truncated": made.truncated} if made.truncated else {}
        return json_response.reply(
            {"embedding": made.vectors[0] if made.vectors else []} | cut, headers=request_fields.ignored_headers(ignored)
        )


def parse_embed(body: dict[str, Any]) -> tuple[EmbedRequest, list[str]]:
    """A body of /api/embed, and the options in it that nothing obeys. An empty text, no text and no `input` ask for nothing."""
    name, given = fields.model(body), body.get("input")
    if not name:
        raise NotFound("model '' not found")
    texts = [given] if isinstance(given, str) else [] if given is None else given
    if not isinstance(texts, list) or not set(map(type, texts)) <= {str}:
        raise BadRequest("invalid input type: input must be a string or an array of strings")
    dimensions = body.get("dimensions")
    if dimensions is not None and (isinstance(dimensions, bool) or not isinstance(dimensions, int) or not 0 <= dimensions < 1 << 31):
        raise BadRequest("dimensions must be a whole number; leave it out for all that the model has")
    sampling, ignored, wrong = _sampling(body)
    request = EmbedRequest(
        model=name,
        texts=() if given == "" else tuple(texts),
        truncate=fields.flag(body, "truncate", True),
        dimensions=dimensions or 0,
        sampling=sampling,
        keep_alive=request_fields.keep_alive(body),
        wrong=wrong,
    )
    return request, ignored


def parse_embeddings(body: dict[str, Any]) -> tuple[EmbedRequest, list[str]]:
    """A body of /api/embeddings."""
    name, prompt = fields.model(body), fields.text(body, "prompt")
    if not name:
        raise BadRequest("model is required")
    sampling, ignored, wrong = _sampling(body)
    texts = (prompt,) if prompt else ()
    return EmbedRequest(name, texts, sampling=sampling, keep_alive=request_fields.keep_alive(body), wrong=wrong), ignored


def _sampling(body: dict[str, Any]) -> tuple[Sampling, list[str], str]:
    """The options, those that nothing obeys (here also all that say how a word is chosen), and what is wrong with a value."""
    sampling, _, wrong = request_fields.options(body)
    given = body.get("options") or {}
    return sampling, [name for name, value in given.items() if value is not None and name not in _OBEYED], wrong


def render_embed(model: str, made: Vectors) -> dict[str, Any]:
    """The body of an answer of /api/embed; `truncated` is ours: how many tokens of the texts were not read."""
    body: dict[str, Any] = {"model": model, "embeddings": made.vectors}
    use = made.usage
    counted = {
        "total_duration": use.total_ns,
        "load_duration": use.load_ns,
        "prompt_eval_count": use.prompt_tokens,
        "truncated": made.truncated,
    }
    return body | ({key: value for key, value in counted.items() if value} if made.vectors else {})


async def _shortened(vectors: tuple[tuple[float, ...], ...]) -> list[list[float]]:
    """The same numbers, for the eye: nine digits give every 32-bit float back; the seventeen of a 64-bit one would be half noise."""
    turns, rows = json_response.Turns(), []
    for vector in vectors:
        rows.append([float(f"{number:.9g}") for number in vector])
        await turns.give()
    return rows
