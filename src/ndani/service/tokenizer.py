"""The operations that make token ids of a text, and a text of token ids, with a model's own tokenizer."""

from __future__ import annotations

from ndani.engines.sampling import merge
from ndani.errors import BadRequest
from ndani.runtime.pool import Pool
from ndani.service.lending import lend
from ndani.service.resolver import ModelResolver, ResolvedModel
from ndani.types import DetokenizeRequest, TokenizeRequest

#: Bytes of a text. No context is as long; and decoding its tokens takes a few hundredths of a second.
MAX_TEXT_BYTES = 4 << 20

_UNKNOWN_ID = "tokens holds an id that this model does not have; send ids that its tokenizer made"


class Tokenizer:
    """Texts into token ids and back."""

    def __init__(self, resolver: ModelResolver, pool: Pool) -> None:
        self._resolver = resolver
        self._pool = pool

    async def tokenize(self, request: TokenizeRequest) -> list[int]:
        """The token ids of a text. Raises NotFound, BadRequest for a text that is too long, Busy, LoadFailed, EngineFailed."""
        model = await self._find(request)
        if len(request.text.encode()) > MAX_TEXT_BYTES:
            raise BadRequest(f"the text is longer than {MAX_TEXT_BYTES} bytes; send it in parts")
        spec = self._resolver.spec(model, merge(request.sampling, model.options))
        async with lend(self._pool, spec, self._resolver.keep_alive(request.keep_alive)) as lease:
            return await lease.engine.tokenize(request.text, special=request.add_special, parse_special=request.parse_special)

    async def detokenize(self, request: DetokenizeRequest) -> str:
        """The text of token ids. Raises NotFound, BadRequest for an id that the model does not have, Busy, LoadFailed, EngineFailed."""
        model = await self._find(request)
        if max(request.tokens, default=0) > model.engine.max_token_id:
            raise BadRequest(_UNKNOWN_ID)
        spec = self._resolver.spec(model, merge(request.sampling, model.options))
        async with lend(self._pool, spec, self._resolver.keep_alive(request.keep_alive)) as lease:
            try:
                return await lease.engine.detokenize(request.tokens)
            except BadRequest:
                raise BadRequest(_UNKNOWN_ID) from None

    async def _find(self, request: TokenizeRequest | DetokenizeRequest) -> ResolvedModel:
        model = await self._resolver.resolve(self._resolver.find(request.model, missing=f"model '{request.model}' not found"))
        if request.options_error:
            raise BadRequest(request.options_error)
        return model
