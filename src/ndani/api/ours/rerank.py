"""Reranking, as the servers that offer it agree on it (Jina, Cohere, llama.cpp): a query and documents in, the best ones first."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ndani.api.edge import json_response, request_body
from ndani.api.edge.body_type import convert
from ndani.api.edge.ignored_fields import unknown_fields
from ndani.api.ollama import request_fields
from ndani.api.ours.tokens import KeepAlive, Options
from ndani.errors import BadRequest
from ndani.service import Service
from ndani.types import RankRequest

#: Documents of one request.
MAX_DOCUMENTS = 1000

_TopN = Annotated[int, msgspec.Meta(ge=1, description="How many results are wanted; all without it.")]


class Document(msgspec.Struct):
    """A document as an object; other fields are ignored."""

    text: str


class RerankBody(msgspec.Struct):
    """A query, and the documents to be put into order. Both must not be empty."""

    model: str
    query: str
    documents: Annotated[list[str | Document], msgspec.Meta(max_length=MAX_DOCUMENTS)]
    top_n: _TopN | None = None
    return_documents: bool | None = None
    truncate: Annotated[bool | None, msgspec.Meta(description="Whether a document that is too long loses its end (true).")] = None
    keep_alive: KeepAlive = None
    options: Options = None


class RerankResult(msgspec.Struct, omit_defaults=True):
    """One document: its place in the request, and its score."""

    index: int
    relevance_score: float
    document: Document | None = None


class RerankUsage(msgspec.Struct):
    """Tokens of the query, once with each document, and of the documents."""

    prompt_tokens: int
    total_tokens: int


class RerankResponse(msgspec.Struct):
    """The documents with the highest scores first. `method` says what a score is: the number that the model's rank head gives
    (only their order means something), or the cosine of the vectors of query and document.
    """

    object: Literal["list"]
    model: str
    method: Literal["rank", "cosine"]
    results: list[RerankResult]
    usage: RerankUsage


class RerankRoutes:
    """The route for reranking, over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def rerank(self, request: Request) -> Response:
        """POST /v1/rerank and /rerank: documents in the order of how well they answer a query."""
        raw = await request_body.decode_exact(request)
        body = convert(raw, RerankBody)
        documents = tuple(document if isinstance(document, str) else document.text for document in body.documents)
        if not body.query.strip() or not documents:
            raise BadRequest("query and documents must not be empty")
        sampling, _, options_error = request_fields.options(raw)
        ranking = await self._service.ranking.rank(
            RankRequest(
                model=body.model.strip(),
                query=body.query,
                documents=documents,
                truncate=body.truncate is not False,
                sampling=sampling,
                keep_alive=request_fields.keep_alive(raw),
                options_error=options_error,
            )
        )
        best_first = sorted(range(len(documents)), key=lambda index: -ranking.scores[index])[: body.top_n]
        shown = body.return_documents is True
        results = [RerankResult(index, ranking.scores[index], Document(documents[index]) if shown else None) for index in best_first]
        usage = RerankUsage(ranking.usage.prompt_tokens, ranking.usage.prompt_tokens)
        answer = RerankResponse("list", body.model, ranking.method, results, usage)
        return json_response.respond(answer, headers=unknown_fields(raw, RerankBody))
