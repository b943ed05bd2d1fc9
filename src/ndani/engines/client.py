"""The front's side of an engine: `RunnerClient` speaks the runner protocol to one runner's socket.

Only this file encodes requests and decodes responses of the protocol. The engine's own error messages are never passed on: they
quote prompts.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeVar

import msgspec

from ndani.engines.stream import Coalescer, exchange
from ndani.engines.wire import (
    ChatChunk,
    Chunk,
    ContentResponse,
    EngineError,
    PromptResponse,
    PromptWithImages,
    RawTokensResponse,
    Refusal,
    ScoresResponse,
    TokensResponse,
    VectorsResponse,
)
from ndani.errors import BadRequest, EngineFailed
from ndani.types import Message, Tool

_UNREADABLE_TEMPLATE = "the chat template cannot be read that this model's file carries; create the model again with a TEMPLATE of its own"
_ENDED_EARLY = "the engine ended an answer too early; ask again"
_UNREADABLE_IMAGE = "an image cannot be read; send the whole file, and check that it opens"
_INVALID_RESPONSE = "the engine gave an answer that is none; ask again"
_DECODE_ERRORS = (msgspec.DecodeError, ValueError, RecursionError)

_T = TypeVar("_T")


class PromptTooLong(Exception):
    """The prompt has more tokens than a slot has context. Not yet an error for the user: `question.ask` truncates and retries."""

    def __init__(self, tokens: int) -> None:
        super().__init__(tokens)
        self.tokens = tokens


_Event = TypeVar("_Event", Chunk, ChatChunk)

#: Maximum bytes of a token id in a JSON list, and maximum number of tokens that a model adds around a text.
_MAX_TOKEN_ID_BYTES, MAX_SPECIAL_TOKENS = 12, 64
#: Bytes of the longest encoded vector of any known model: 24,000 numbers.
_MAX_VECTOR_BYTES = 1 << 17
_vectors_decoder = msgspec.json.Decoder(VectorsResponse)
_chunk_decoder = msgspec.json.Decoder(Chunk)
_chat_chunk_decoder = msgspec.json.Decoder(ChatChunk)
_refusal_decoder = msgspec.json.Decoder(Refusal)

#: The fields that we read of the last event. Without this list it would repeat the prompt and every setting.
_LAST_FIELDS = ["content", "tokens", "stop", "stop_type", "stopping_word", "completion_probabilities", "tokens_evaluated", "timings"]


@dataclass(frozen=True, slots=True)
class _Route:
    """A route of the runner protocol, and the error message for requests that the engine refuses.

    `always_bad_request`: any error status means that the request is wrong. llama.cpp answers 500 when a template raises or a token
    id does not exist. `fills_context`: its input can be longer than the context; elsewhere nothing is, whatever an engine says.
    """

    path: str
    refusal_message: str = "the engine refuses this request"
    always_bad_request: bool = False
    fills_context: bool = False

    def with_images(self) -> _Route:
        """The same route for a request that has images: what is wrong may be one of them."""
        return replace(self, refusal_message=f"{_UNREADABLE_IMAGE}; or {self.refusal_message}")

    def refuse(self, status: int, error: EngineError) -> NoReturn:
        """Raise the error for an engine's error response: PromptTooLong, BadRequest or EngineFailed. The engine's message is not read."""
        if error.type == "exceed_context_size_error":
            raise PromptTooLong(error.n_prompt_tokens) if self.fills_context else EngineFailed(_INVALID_RESPONSE)
        if self.always_bad_request or 400 <= status < 500:
            raise BadRequest(self.refusal_message)
        raise EngineFailed("the engine could not answer; ask again")


_APPLY_TEMPLATE = _Route("/apply-template", "this model's chat template refuses these messages; check their roles and order", True)
_TOKENIZE = _Route("/tokenize")
_DETOKENIZE = _Route("/detokenize", "context holds token ids that this model does not have", True)
_COMPLETION = _Route("/completion", "the engine refuses these options or this grammar; check their values", fills_context=True)
_CHAT = _Route("/v1/chat/completions", "this model's chat template refuses these messages or tools; check them", fills_context=True)
_EMBEDDINGS = _Route("/v1/embeddings", "there is a text without a single token, and this model has no vector for that", fills_context=True)

_RERANK = _Route("/v1/rerank", "the engine refuses these documents; send texts that are not empty", fills_context=True)


class RunnerClient:
    """The routes of one runner, called over its socket. Every method raises EngineFailed when the runner exits.

    `without_template`: the engine cannot read the chat template in the weights, so `render` refuses. `media_marker` stands for an
    image in a prompt.
    """

    def __init__(self, socket: str, coalescer: Coalescer, *, without_template: bool = False, media_marker: str = "") -> None:
        self.media_marker = media_marker
        self._socket = socket
        self._coalescer = coalescer
        self._without_template = without_template

    async def render(self, messages: tuple[Message, ...], think: bool | str | None = None, tools: tuple[Tool, ...] = ()) -> str:
        """The prompt that the model's own chat template makes of a conversation; `think`, unless None, sets its `enable_thinking`.

        Raises BadRequest when the template refuses the conversation (an unknown role, a forbidden order of turns), or when the
        engine cannot read the template.
        """
        return (await self._request(_APPLY_TEMPLATE, self._conversation(messages, think, tools), PromptResponse)).prompt

    def _conversation(self, messages: tuple[Message, ...], think: bool | str | None, tools: tuple[Tool, ...]) -> dict[str, Any]:
        """The fields of a conversation, for the engine's own chat template."""
        if self._without_template:
            raise BadRequest(_UNREADABLE_TEMPLATE)
        body: dict[str, Any] = {"messages": [_message_body(message) for message in messages]}
        if tools:
            body["tools"] = [tool.definition for tool in tools]
        if think is not None:
            body["chat_template_kwargs"] = {"enable_thinking": bool(think)} | (
                {"reasoning_effort": think} if isinstance(think, str) else {}
            )
        return body

    async def tokenize(self, text: str, *, special: bool = True, parse_special: bool = True) -> list[int]:
        """The token ids of a prompt; `special`: with the tokens that the model adds to every prompt.

        `parse_special`: the text of a special token becomes that token.
        """
        response = await self._send(_TOKENIZE, {"content": text, "add_special": special, "parse_special": parse_special})
        with _checked_decoding():
            # A token has at least one byte, and a model adds few around a text: a longer list could use any amount of memory.
            if response.count(b",") > MAX_SPECIAL_TOKENS + 4 * len(text.encode()):
                raise ValueError("more tokens than there is text")
            return msgspec.json.decode(response, type=TokensResponse).tokens

    async def measure(self, text: str, head_count: int, tail_count: int) -> tuple[list[int], list[int], int]:
        """The ids of a prompt's first `head_count` and last `tail_count` tokens, and the number of all its tokens.

        The other tokens are counted but not parsed: parsing a text of many megabytes would block other requests.
        """
        response = await self._send(_TOKENIZE, {"content": text, "add_special": True, "parse_special": True})
        with _checked_decoding():
            ids = bytes(msgspec.json.decode(response, type=RawTokensResponse).tokens)[1:-1]
            if not ids:
                return [], [], 0
            # Only the ends of the list are split: an id with its separators is at most _MAX_TOKEN_ID_BYTES long.
            head = ids[: _MAX_TOKEN_ID_BYTES * head_count].split(b",", head_count)[:head_count]
            tail = ids[-_MAX_TOKEN_ID_BYTES * tail_count :].rsplit(b",", tail_count)[-tail_count:] if tail_count else []
            return [int(token) for token in head], [int(token) for token in tail], ids.count(b",") + 1

    async def detokenize(self, tokens: tuple[int, ...] | list[int]) -> str:
        """The text of token ids. Raises BadRequest for ids that this model does not have."""
        return (await self._request(_DETOKENIZE, {"tokens": list(tokens)}, ContentResponse)).content

    async def embed(self, inputs: list[str | list[int]]) -> tuple[list[bytes], int]:
        """A vector for each input (a text, or token ids that are used unchanged), in order, and how many tokens were processed.

        Vectors have length 1, as little-endian 32-bit floats. The engine does not stop when the client disconnects, so send few
        inputs at once. Raises BadRequest for an input without tokens.
        """
        body = {"input": inputs, "encoding_format": "base64", "embd_normalize": 2}
        response = await self._send(_EMBEDDINGS, body, extra_bytes=_MAX_VECTOR_BYTES * len(inputs))
        with _checked_decoding():
            embeddings = _vectors_decoder.decode(response)
        vectors = [item.embedding for item in sorted(embeddings.data, key=lambda item: item.index)]
        if len(vectors) != len(inputs) or not vectors[0]:
            raise EngineFailed(_INVALID_RESPONSE)
        whole_floats = 4 * (len(vectors[0]) // 4)
        if any(len(vector) != whole_floats for vector in vectors):
            raise EngineFailed(_INVALID_RESPONSE)
        return vectors, max(embeddings.usage.prompt_tokens, 0)

    async def rank(self, query: str, documents: list[str]) -> tuple[list[float], int]:
        """A rank head's score for each document, in order, and how many tokens were processed. The engine does not stop in between."""
        scores = await self._request(_RERANK, {"query": query, "documents": documents}, ScoresResponse)
        found = sorted(scores.results, key=lambda score: score.index)
        if [score.index for score in found] != list(range(len(documents))):
            raise EngineFailed(_INVALID_RESPONSE)
        return [score.relevance_score for score in found], max(scores.usage.prompt_tokens, 0)

    async def complete(
        self, prompt: str | list[int] | PromptWithImages, options: dict[str, Any], tap: Callable[[Chunk], bool] | None = None
    ) -> AsyncGenerator[Chunk]:
        """Continue a prompt, chunk by chunk; the last chunk has `stop` set.

        Always a stream with progress events: only then does the engine notice, between two batches, that the client has
        disconnected. Closing this generator stops the computation. While the caller waits for the next chunk, `tap` is called with
        each chunk; one for which it returns True is not yielded. Raises PromptTooLong, BadRequest.
        """
        body = {
            **options,
            "prompt": prompt,
            "return_tokens": True,
            "response_fields": _LAST_FIELDS,
        }
        route = _COMPLETION.with_images() if isinstance(prompt, PromptWithImages) else _COMPLETION
        async for chunk in self._stream(route, body, _chunk_decoder, tap):
            yield chunk
            if chunk.stop:
                return
        raise EngineFailed(_ENDED_EARLY)

    async def chat(
        self,
        messages: tuple[Message, ...],
        think: bool | str | None,
        tools: tuple[Tool, ...],
        options: dict[str, Any],
        tap: Callable[[ChatChunk], bool] | None = None,
    ) -> AsyncGenerator[ChatChunk]:
        """Continue a conversation; the engine renders it and reads the answer's thinking and tool calls. The rest is as in `complete`."""
        body = self._conversation(messages, think, tools) | options
        route = _CHAT
        if any(message.images for message in messages):
            route = _CHAT.with_images()
            body["messages"] = [_with_images(message, fields) for message, fields in zip(messages, body["messages"], strict=True)]
        async for chunk in self._stream(route, body, _chat_chunk_decoder, tap):
            yield chunk
            if chunk.finish_reason:
                return
        raise EngineFailed(_ENDED_EARLY)

    async def _stream(
        self, route: _Route, body: dict[str, Any], decoder: msgspec.json.Decoder[_Event], tap: Callable[[_Event], bool] | None
    ) -> AsyncGenerator[_Event]:
        """The events of a streamed answer, decoded."""
        encoded = msgspec.json.encode(body | {"stream": True, "return_progress": True})
        async with exchange(self._socket, route.path, encoded, self._coalescer) as response:
            if await response.status_code() != 200:
                route.refuse(response.status, _error_of(await response.body()))
            response.start_stream(_event_tap(tap, decoder.decode) if tap else None)
            while batch := await response.events():
                for event in batch:
                    if event.startswith(b"data: {"):
                        with _checked_decoding():
                            chunk = decoder.decode(memoryview(event)[6:])
                        if chunk.error is not None:
                            route.refuse(500, chunk.error)
                        yield chunk
                    elif event.startswith(b"error: "):
                        raise EngineFailed("the engine could not go on with this answer; ask again")

    async def _request(self, route: _Route, body: dict[str, Any], response_type: type[_T]) -> _T:
        response = await self._send(route, body)
        with _checked_decoding():
            return msgspec.json.decode(response, type=response_type)

    async def _send(self, route: _Route, body: dict[str, Any], *, extra_bytes: int = 0) -> bytes:
        async with exchange(self._socket, route.path, msgspec.json.encode(body), self._coalescer, extra_bytes=extra_bytes) as response:
            status = await response.status_code()
            response_body = await response.body()
        if status != 200:
            route.refuse(status, _error_of(response_body))
        return response_body


def _message_body(message: Message) -> dict[str, Any]:
    """A message as the engine expects it, without empty fields."""
    optional = {"reasoning_content": message.thinking, "name": message.tool_name, "tool_call_id": message.tool_call_id}
    body: dict[str, Any] = {"role": message.role, "content": message.content} | {key: text for key, text in optional.items() if text}
    if message.tool_calls:
        body["tool_calls"] = [
            {
                "id": call.id or f"call_{index}",
                "type": "function",
                "function": {"name": call.name, "arguments": msgspec.json.encode(call.arguments).decode()},
            }
            for index, call in enumerate(message.tool_calls)
        ]
    return body


def _with_images(message: Message, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a message with its images before its text. The engine reads a file's format from its first bytes."""
    urls = [f"data:image/png;base64,{base64.b64encode(image).decode()}" for image in message.images]
    parts = [*({"type": "image_url", "image_url": {"url": url}} for url in urls), {"type": "text", "text": message.content}]
    return fields | {"content": parts} if urls else fields


def _event_tap(tap: Callable[[_Event], bool], decode: Callable[[memoryview], _Event]) -> Callable[[bytes], bool]:
    """Turn a tap of chunks into a tap of events; events that are not chunks are not consumed."""

    def offer(event: bytes) -> bool:
        if not event.startswith(b"data: {"):
            return False
        try:
            chunk = decode(memoryview(event)[6:])
        except _DECODE_ERRORS:  # not consumed: the generator decodes it again and raises
            return False
        return tap(chunk)

    return offer


def _error_of(body: bytes) -> EngineError:
    try:
        return _refusal_decoder.decode(body).error
    except _DECODE_ERRORS:
        return EngineError()


@contextmanager
def _checked_decoding() -> Iterator[None]:
    """Turn errors while decoding a response into EngineFailed: a runner that sends invalid responses must not be used again."""
    try:
        yield
    except _DECODE_ERRORS:
        raise EngineFailed(_INVALID_RESPONSE) from None
