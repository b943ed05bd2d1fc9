"""Our own routes for a model's tokenizer: the token ids of a text, and the text of token ids."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ndani.api.edge import json_response, request_body
from ndani.api.edge.body_type import convert
from ndani.api.ollama import request_fields
from ndani.errors import BadRequest
from ndani.service import Service
from ndani.types import DetokenizeRequest, TokenizeRequest

#: The largest id of a token: a JavaScript client reads no larger number exactly.
MAX_TOKEN_ID = 2**53

TokenId = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKEN_ID)]
KeepAlive = Annotated[float | str | None, msgspec.Meta(description="Seconds, or a duration such as 5m, that the model stays loaded.")]
Options = Annotated[dict[str, Any] | None, msgspec.Meta(description="Options of the runner, `num_ctx` among them.")]


class TokenizeBody(msgspec.Struct):
    """A text for a model's tokenizer: in `content`, or in `text` or `prompt`, which mean the same."""

    model: str
    content: str | None = None
    text: str | None = None
    prompt: str | None = None
    add_special: Annotated[bool, msgspec.Meta(description="With the tokens that the model adds to every prompt.")] = False
    parse_special: Annotated[bool, msgspec.Meta(description="Read the text of a special token as that token.")] = True
    keep_alive: KeepAlive = None
    options: Options = None


class TokenizeResponse(msgspec.Struct):
    """The token ids of a text, and how many there are."""

    model: str
    tokens: list[TokenId]
    count: int


class DetokenizeBody(msgspec.Struct):
    """Token ids of a model."""

    model: str
    tokens: list[TokenId]
    keep_alive: KeepAlive = None
    options: Options = None


class DetokenizeResponse(msgspec.Struct):
    """The text of token ids; bytes that are no whole character are U+FFFD."""

    model: str
    content: str


class TokenRoutes:
    """The tokenizer's routes, over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def tokenize(self, request: Request) -> Response:
        """POST /api/tokenize: the token ids of a text."""
        body = await _body(request)
        parsed = convert(body, TokenizeBody)
        texts = [text for text in (parsed.content, parsed.text, parsed.prompt) if text is not None]
        if len(texts) != 1:
            raise BadRequest("content is required, and no second text in text or prompt")
        tokens = await self._service.tokenizer.tokenize(
            TokenizeRequest(text=texts[0], add_special=parsed.add_special, parse_special=parsed.parse_special, **_shared(body))
        )
        return await json_response.respond_large({"model": parsed.model, "tokens": tokens, "count": len(tokens)})

    async def detokenize(self, request: Request) -> Response:
        """POST /api/detokenize: the text of token ids."""
        body = await _body(request)
        parsed = convert(body, DetokenizeBody)
        content = await self._service.tokenizer.detokenize(DetokenizeRequest(tokens=tuple(parsed.tokens), **_shared(body)))
        return json_response.respond(DetokenizeResponse(parsed.model, content))


async def _body(request: Request) -> dict[str, Any]:
    """The body without fields that are null, which are as if they were missing."""
    return {name: value for name, value in (await request_body.decode(request)).items() if value is not None}


def _shared(body: dict[str, Any]) -> dict[str, Any]:
    sampling, _, options_error = request_fields.options(body)
    keep_alive = request_fields.keep_alive(body)
    return {"model": body["model"].strip(), "sampling": sampling, "keep_alive": keep_alive, "options_error": options_error}
